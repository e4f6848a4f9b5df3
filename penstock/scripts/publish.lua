-- Append `tokens` events to result streams of jobs whose leases are still held, and renew those leases.
-- KEYS: per job: lane stream, result stream
-- ARGV: group, consumer, then per job: entry id, deliveries, TTL (ms), tokens published before, event id,
--       event JSON
-- Reply: per job 1 (published, now or by a call whose reply was lost) or 0 (the lease is lost, or the stream
--        lacks what was published before: the server lost it, and the job has to run again from what is there)
local group, consumer = ARGV[1], ARGV[2]
local WIDTH = 6
local published = {}

local function count_in(result)
  local last = redis.pcall('XREVRANGE', result, '+', '-', 'COUNT', 1)
  return last[1] and tonumber(string.match(last[1][1], '^%d+')) or 0
end

for i = 1, #KEYS / 2 do
  local lane, result = KEYS[2 * i - 1], KEYS[2 * i]
  local entry, deliveries, ttl, before, id, event = unpack(ARGV, 3 + WIDTH * (i - 1), 2 + WIDTH * i)
  published[i] = 0
  if holds(lane, group, consumer, entry, deliveries) and count_in(result) >= tonumber(before) then
    -- Progress renews the lease. This write comes first also because a full server refuses a script's first
    -- write if it needs memory, but none after one that does not: what runs can finish, and free memory.
    redis.call('XCLAIM', lane, group, consumer, 0, entry, 'JUSTID')
    local reply = redis.pcall('XADD', result, id, 'event', event)
    if type(reply) ~= 'table' then redis.call('PEXPIRE', result, ttl) end
    if type(reply) ~= 'table' or string.find(reply.err, 'equal or smaller', 1, true) then published[i] = 1 end
  end
end
return published
