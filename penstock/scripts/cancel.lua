-- End a job as cancelled, at once and whether or not someone works on it: whoever does finds the lease gone.
-- The caller has read the entry before (it never changes) and knows from it the batch, the row and the TTL.
-- KEYS: lane stream, result stream, control stream, attempts hash; where it is a row of a batch: batch hash, done stream
-- ARGV: group, entry id, nonce ('' for a raw entry), job id, result TTL (ms), row ('' where none), event JSON
-- Reply: 1 (cancelled) or 0 (there is no such entry: it has ended, or never was)
local lane, result, control, attempts, batch, done = unpack(KEYS)
local group, entry, nonce, job_id, ttl, row, event = unpack(ARGV)

local BATCH_TTL = 30 * 86400 * 1000 -- ms after the last row was enqueued or ended

local found = redis.call('XRANGE', lane, entry, entry)[1]
if not found or nonce_of(found[2]) ~= nonce then return 0 end
-- These reads refuse keys of a wrong type before the first write.
redis.call('XLEN', control)
local last = redis.call('XREVRANGE', result, '+', '-', 'COUNT', 1)[1]
-- A batch that its owner deleted takes no more rows.
local is_row = batch and redis.call('HLEN', batch) > 0 and redis.call('XLEN', done) >= 0

redis.call('XACK', lane, group, entry)
redis.call('XDEL', lane, entry)
redis.call('HDEL', attempts, job_id)
if is_row then
  redis.call('HINCRBY', batch, 'failed', 1)
  redis.call('XADD', done, '*', 'job_id', job_id, 'row', row, 'event', event)
  redis.call('DEL', result)
  redis.call('PEXPIRE', batch, BATCH_TTL)
  redis.call('PEXPIRE', done, BATCH_TTL)
else
  local count = last and string.match(last[1], '^%d+') or '0'
  redis.call('XADD', result, count .. '-1', 'event', event)
  redis.call('PEXPIRE', result, ttl)
end
redis.call('XADD', control, 'MAXLEN', '~', 10000, '*', 'cancel', job_id)
return 1
