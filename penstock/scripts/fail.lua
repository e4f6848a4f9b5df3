-- Charge a job with a failed attempt: it is tried again after `delay`, or, past its last attempt, it ends as a
-- dead letter and `failed`.
-- KEYS: lane stream, result stream, attempts hash, dead stream; where it is a row: its batch's hash, done stream
-- ARGV: group, consumer, entry id, deliveries, lease (ms), delay (ms), attempts that it has, error JSON, result TTL
--       (ms), 'drop' to remove what was published or '', terminal event's id and JSON, row ('' where none), how
--       long dead letters are kept (ms)
-- Reply: 'retry', 'dead', or 'lost' (the lease is lost, nothing was written)
local lane, result, attempts, dead, batch, done = unpack(KEYS)
local group, consumer, entry, deliveries, lease, delay, allowed, problem, ttl, drop, terminal_id, terminal, row, keep =
  unpack(ARGV)
if not holds(lane, group, consumer, entry, deliveries) then return 'lost' end

local job_id = job_of(result)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
delay = math.min(tonumber(delay), tonumber(lease))
local function record(retry_at)
  return string.format('{"at_ms":%.0f,"consumer":%s,"error":%s,"retry_at_ms":%.0f}',
    now, cjson.encode(consumer), problem, retry_at)
end

-- One JSON object a line: added to, never parsed here.
local known = redis.call('HGET', attempts, job_id) or ''
local _, count = string.gsub(known, '\n', '')
if count + 1 < tonumber(allowed) then
  -- First of the writes, as it needs no memory: a full server refuses none behind it.
  redis.call('XCLAIM', lane, group, '-', 0, entry, 'IDLE', tonumber(lease) - delay, 'JUSTID')
  redis.call('HSET', attempts, job_id, known .. record(now + delay) .. '\n')
  return 'retry'
end

local found = redis.call('XRANGE', lane, entry, entry)[1] -- nothing where somebody deleted it by hand
local fields, job = found and found[2] or {}, ''
for i = 1, #fields, 2 do
  if fields[i] == 'job' then job = fields[i + 1] end
end
-- These reads refuse keys of a wrong type before the first write.
redis.call('XLEN', dead)
local to_batch = batch and redis.call('HLEN', batch) > 0 and redis.call('XLEN', done) >= 0
redis.call('XACK', lane, group, entry)
redis.call('XDEL', lane, entry)
redis.call('HDEL', attempts, job_id)
redis.call('XADD', dead, '*', 'job_id', job_id, 'job', job, 'event', terminal,
  'attempts', known .. record(0) .. '\n')
redis.call('XTRIM', dead, 'MINID', '~', string.format('%.0f', math.max(now - tonumber(keep), 0)))
if to_batch then
  write_rows(batch, done, {{'failed', result, row, terminal}})
  keep_batch(batch, done)
else
  write_result(result, ttl, drop, '', terminal_id, terminal)
end
return 'dead'
