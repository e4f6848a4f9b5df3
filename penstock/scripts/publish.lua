-- Append `tokens` events to result streams of one lane's jobs whose leases are still held; renew those leases.
-- KEYS: lane stream, then per event its result stream
-- ARGV: group, consumer, then per event: entry id, deliveries, TTL (ms), tokens published before, event id,
--       event JSON, 'drop' to remove what was published before it or ''
-- Reply: per event 1 (published, now or by a call whose reply was lost) or 0 (the lease is lost, or the stream
--        lacks what was published before, or holds more: the server lost what it knew, and the job has to run
--        again from what is there)
local lane, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local WIDTH = 7

local function args_of(i)
  return unpack(ARGV, 3 + WIDTH * i, 2 + WIDTH * (i + 1))
end

local entries, deliveries = {}, {}
for i = 0, #KEYS - 2 do
  entries[i + 1], deliveries[i + 1] = ARGV[3 + WIDTH * i], ARGV[4 + WIDTH * i]
end
local holding = held(lane, group, consumer, entries, deliveries)
local renewed = {}
for i, entry in ipairs(entries) do
  if holding[i] then renewed[#renewed + 1] = entry end
end
-- Progress renews the lease. This write comes first also because a full server refuses a script's first write if
-- it needs memory, but none after one that does not: what runs can finish, and free memory.
if #renewed > 0 then
  renewed[#renewed + 1] = 'JUSTID'
  redis.call('XCLAIM', lane, group, consumer, 0, unpack(renewed))
end

local published = {}
for i = 0, #entries - 1 do
  local result = KEYS[2 + i]
  local _, _, ttl, earlier, id, event, drop = args_of(i)
  published[i + 1] = 0
  if holding[i + 1] and fits(result, earlier, id) then
    local reply = redis.pcall('XADD', result, id, 'event', event)
    if type(reply) ~= 'table' then
      -- Only once: a repeat of this call is refused above, and what it added stays.
      if drop == 'drop' then redis.call('XTRIM', result, 'MAXLEN', 1) end
      redis.call('PEXPIRE', result, ttl)
    end
    if type(reply) ~= 'table' or string.find(reply.err, 'equal or smaller', 1, true) then
      published[i + 1] = 1
    end
  end
end
return published
