-- Extend leases that are still held: the entries' idle time starts anew, deliveries stay as they are.
-- KEYS: one lane stream per lease
-- ARGV: group, consumer, then per lease: entry id, deliveries
-- Reply: per lease 1 (renewed) or 0 (lost)
local group, consumer = ARGV[1], ARGV[2]
local held = {}
for i, lane in ipairs(KEYS) do
  local entry, deliveries = ARGV[1 + 2 * i], ARGV[2 + 2 * i]
  held[i] = 0
  if holds(lane, group, consumer, entry, deliveries) then
    redis.call('XCLAIM', lane, group, consumer, 0, entry, 'JUSTID')
    held[i] = 1
  end
end
return held
