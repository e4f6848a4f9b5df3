-- End jobs: token check, acknowledge and delete, terminal event and TTL, batch counters and done entry.
-- Freeing comes first: on a full server with noeviction, that is what lets the writes pass.
-- KEYS: per job: lane stream, result stream, batch hash, batch done stream (the lane again where no batch)
-- ARGV: group, consumer, then per job: entry id, deliveries, result TTL (ms), job id, batch counter
--       ('completed', 'failed', or '' where no batch), row ('' where none), last tokens event's id and JSON
--       ('' where none), terminal event's id and JSON
-- Reply: per job 1 (committed) or 0 (the lease is lost, nothing was written)
local group, consumer = ARGV[1], ARGV[2]
local WIDTH = 10

local function write_result(result, ttl, tokens_id, tokens, terminal_id, terminal)
  -- A job resumed after its last tokens event was published repeats that event: the server refuses it.
  if tokens_id ~= '' then redis.pcall('XADD', result, tokens_id, 'event', tokens) end
  local reply = redis.pcall('XADD', result, terminal_id, 'event', terminal)
  if type(reply) == 'table' and string.find(reply.err, 'equal or smaller', 1, true) then
    -- An earlier run published more than this one knows of. The job is gone from its lane by now, so its
    -- end must be written: behind what is there.
    local last = redis.call('XREVRANGE', result, '+', '-', 'COUNT', 1)[1][1]
    local count, sequence = string.match(last, '^(%d+)-(%d+)$')
    if sequence == '0' then redis.call('XADD', result, count .. '-1', 'event', terminal) end
  end
  redis.call('PEXPIRE', result, ttl)
end

local function write_row(batch, done, counter, job_id, row, terminal, result)
  redis.call('HINCRBY', batch, counter, 1)
  redis.call('XADD', done, '*', 'job_id', job_id, 'row', row, 'event', terminal)
  redis.call('DEL', result)
end

local committed = {}
for i = 1, #KEYS / 4 do
  local lane, result, batch, done = unpack(KEYS, 4 * i - 3, 4 * i)
  local entry, deliveries, ttl, job_id, counter, row, tokens_id, tokens, terminal_id, terminal =
    unpack(ARGV, 3 + WIDTH * (i - 1), 2 + WIDTH * i)
  committed[i] = 0
  if holds(lane, group, consumer, entry, deliveries) then
    redis.call('XACK', lane, group, entry)
    redis.call('XDEL', lane, entry)
    -- A batch that its owner deleted takes no more rows; their results stand alone.
    if counter ~= '' and redis.call('EXISTS', batch) == 1 then
      write_row(batch, done, counter, job_id, row, terminal, result)
    else
      write_result(result, ttl, tokens_id, tokens, terminal_id, terminal)
    end
    committed[i] = 1
  end
end
return committed
