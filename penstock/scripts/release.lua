-- Give leases back: the entries go to the pseudo-consumer `-`, claimable after `delay`, deliveries unchanged.
-- KEYS: control stream, then one lane stream per lease
-- ARGV: group, consumer, lease (ms), delay (ms), then per lease: entry id, deliveries
-- Reply: per lease 1 (released) or 0 (it was lost already)
local group, consumer, lease, delay = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local released, any = {}, false
for i = 1, #KEYS - 1 do
  local lane, entry, deliveries = KEYS[1 + i], ARGV[3 + 2 * i], ARGV[4 + 2 * i]
  released[i] = 0
  if holds(lane, group, consumer, entry, deliveries) then
    redis.call('XCLAIM', lane, group, '-', 0, entry, 'IDLE', math.max(lease - delay, 0), 'JUSTID')
    released[i] = 1
    any = true
  end
end
if any then redis.call('XADD', KEYS[1], 'MAXLEN', '~', 10000, '*', 'wake', 'released') end
return released
