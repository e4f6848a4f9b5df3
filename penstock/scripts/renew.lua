-- Extend leases of one lane that are still held: the entries' idle time starts anew, deliveries stay as they are.
-- KEYS: lane stream
-- ARGV: group, consumer, then per lease: entry id, deliveries
-- Reply: per lease 1 (renewed) or 0 (lost)
local lane, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local entries, deliveries = {}, {}
for i = 3, #ARGV, 2 do
  entries[#entries + 1], deliveries[#deliveries + 1] = ARGV[i], ARGV[i + 1]
end
local holding = held(lane, group, consumer, entries, deliveries)
local renewed, reply = {}, {}
for i, entry in ipairs(entries) do
  reply[i] = holding[entry] and 1 or 0
  if holding[entry] then renewed[#renewed + 1] = entry end
end
if #renewed > 0 then
  renewed[#renewed + 1] = 'JUSTID'
  redis.call('XCLAIM', lane, group, consumer, 0, unpack(renewed))
end
return reply
