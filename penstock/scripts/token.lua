-- Prelude of every fenced script. A lease's token is (consumer, delivery count): both must still be what the
-- caller was given at its claim. A missing group or stream (a flush, a failover) means that nothing is held.
local function holds(lane, group, consumer, entry, deliveries)
  local pending = redis.pcall('XPENDING', lane, group, entry, entry, 1)
  return not pending.err and pending[1] ~= nil
    and pending[1][2] == consumer and pending[1][4] == tonumber(deliveries)
end
