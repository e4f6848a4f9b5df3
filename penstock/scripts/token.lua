-- Prelude of every fenced script. A lease's token is (consumer, delivery count): both must still be what the
-- caller was given at its claim. A missing group or stream (a flush, a failover) means that nothing is held.

-- Ids do not fit a double: compared part by part, as digits, the longer being the larger.
local function before(a, b)
  local a1, a2 = string.match(a, '^0*(%d+)-0*(%d+)$')
  local b1, b2 = string.match(b, '^0*(%d+)-0*(%d+)$')
  if a1 == b1 then a1, b1 = a2, b2 end
  if #a1 ~= #b1 then return #a1 < #b1 end
  return a1 < b1
end

local function holds(lane, group, consumer, entry, deliveries)
  local pending = redis.pcall('XPENDING', lane, group, entry, entry, 1)
  return not pending.err and pending[1] ~= nil
    and pending[1][2] == consumer and pending[1][4] == tonumber(deliveries)
end

-- Which of many leases of one lane are still held: by entry id, true. One look at all that the consumer holds
-- between the first and the last of them costs less than one look at each.
local function held(lane, group, consumer, entries, deliveries)
  local found = {}
  local counts, whole = {}, #entries < 4
  if not whole then
    local low, high = entries[1], entries[1]
    for _, entry in ipairs(entries) do
      if before(entry, low) then low = entry elseif before(high, entry) then high = entry end
    end
    local limit = 4 * #entries
    local rows = redis.pcall('XPENDING', lane, group, low, high, limit, consumer)
    if rows.err then return found end
    for _, row in ipairs(rows) do counts[row[1]] = row[4] end
    whole = #rows == limit
  end
  for i, entry in ipairs(entries) do
    if counts[entry] then
      found[entry] = counts[entry] == tonumber(deliveries[i])
    elseif whole then
      found[entry] = holds(lane, group, consumer, entry, deliveries[i])
    end
  end
  return found
end
