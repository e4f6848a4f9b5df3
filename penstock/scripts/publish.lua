-- Append `tokens` events to result streams of jobs whose leases are still held, and renew those leases.
-- KEYS: per job: lane stream, result stream
-- ARGV: group, consumer, then per job: entry id, deliveries, result TTL (ms), event id, event JSON
-- Reply: per job 1 (published) or 0 (the lease is lost, or the stream is already past this event)
local group, consumer = ARGV[1], ARGV[2]
local published = {}
for i = 1, #KEYS / 2 do
  local lane, result = KEYS[2 * i - 1], KEYS[2 * i]
  local base = 2 + 5 * (i - 1)
  local entry, deliveries, ttl, id, event =
    ARGV[base + 1], ARGV[base + 2], ARGV[base + 3], ARGV[base + 4], ARGV[base + 5]
  published[i] = 0
  if holds(lane, group, consumer, entry, deliveries) then
    -- Progress renews the lease. This write comes first also because a full server refuses a script's first
    -- write if it needs memory, but none after one that does not: what runs can finish, and free memory.
    redis.call('XCLAIM', lane, group, consumer, 0, entry, 'JUSTID')
    local reply = redis.pcall('XADD', result, id, 'event', event)
    if type(reply) ~= 'table' then
      redis.call('PEXPIRE', result, ttl)
      published[i] = 1
    end
  end
end
return published
