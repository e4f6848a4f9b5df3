-- Prelude of the scripts that end jobs: where a terminal event goes.

local BATCH_TTL = 30 * 86400 * 1000 -- ms after the last row was enqueued or ended

-- The id of the last entry that a stream ever had.
local function last_id(stream)
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
end

-- `tokens_id`: '' for nothing but the end; 'drop' to remove the checkpoints of a job that does not stream.
local function write_result(result, ttl, tokens_id, tokens, terminal_id, terminal)
  if tokens_id == 'drop' then
    redis.pcall('XTRIM', result, 'MAXLEN', 0)
  elseif tokens_id ~= '' then
    -- A job resumed after its last tokens event was published repeats that event: the server refuses it.
    redis.pcall('XADD', result, tokens_id, 'event', tokens)
  end
  local reply = redis.pcall('XADD', result, terminal_id, 'event', terminal)
  if type(reply) == 'table' and reply.err then
    -- The job is gone from its lane by now, so its end must be written, whatever is in the way.
    if string.find(reply.err, 'WRONGTYPE', 1, true) then
      redis.call('DEL', result)
      redis.call('XADD', result, terminal_id, 'event', terminal)
    elseif string.find(reply.err, 'equal or smaller', 1, true) then
      -- An earlier run published more than this one knows of: behind what is there.
      local count, sequence = string.match(last_id(result), '^(%d+)-(%d+)$')
      if sequence == '0' then redis.call('XADD', result, count .. '-1', 'event', terminal) end
    else
      error(reply.err)
    end
  end
  redis.call('PEXPIRE', result, ttl)
end

-- Whoever drives a batch deletes it; one that nobody has touched for so long, nobody will.
local function keep_batch(batch, done)
  redis.call('PEXPIRE', batch, BATCH_TTL)
  redis.call('PEXPIRE', done, BATCH_TTL)
end

-- The job's id is what its result stream is called.
local function job_of(result)
  return string.match(result, ':result:(.+)$')
end

-- `rows`: {batch's counter, result stream, row, terminal event} of each. Their own streams go.
local function write_rows(batch, done, rows)
  local counts, results = {}, {}
  for i, ended in ipairs(rows) do
    local counter, result, row, terminal = unpack(ended)
    counts[counter] = (counts[counter] or 0) + 1
    redis.call('XADD', done, '*', 'job_id', job_of(result), 'row', row, 'event', terminal)
    results[i] = result
  end
  for counter, count in pairs(counts) do redis.call('HINCRBY', batch, counter, count) end
  if #results > 0 then redis.call('DEL', unpack(results)) end
end
