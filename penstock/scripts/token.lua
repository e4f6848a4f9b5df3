-- Prelude of every fenced script. A lease's token is (consumer, delivery count): both must still be what the
-- caller was given at its claim. A missing group or stream (a flush, a failover) means that nothing is held.

local function holds(lane, group, consumer, entry, deliveries)
  local pending = redis.pcall('XPENDING', lane, group, entry, entry, 1)
  return not pending.err and pending[1] ~= nil
    and pending[1][2] == consumer and pending[1][4] == tonumber(deliveries)
end

-- Which of many leases of one lane are still held: by their places, true. One look at all that the consumer holds
-- between the first and the last of them costs less than one look at each. A consumer may ask for an older lease of
-- an entry and a newer one at once: only the newer is held.
local function held(lane, group, consumer, entries, deliveries)
  local holding = {}
  local counts, whole = {}, #entries < 4
  if not whole then
    -- Whole milliseconds: cheaper to compare than ids, which do not fit a double.
    local low, high, least, most = '-', '+', math.huge, 0
    for _, entry in ipairs(entries) do
      local ms = string.match(entry, '^%d+')
      local at = tonumber(ms)
      if at < least then low, least = ms, at end
      if at > most then high, most = ms, at end
    end
    if most > 2 ^ 53 then low, high = '-', '+' end -- ids made by hand: these would be rounded
    local limit = 4 * #entries
    local rows = redis.pcall('XPENDING', lane, group, low, high, limit, consumer)
    if rows.err then return holding end
    for _, row in ipairs(rows) do counts[row[1]] = row[4] end
    whole = #rows == limit
  end
  for i, entry in ipairs(entries) do
    if counts[entry] then
      holding[i] = counts[entry] == tonumber(deliveries[i])
    elseif whole then
      holding[i] = holds(lane, group, consumer, entry, deliveries[i])
    end
  end
  return holding
end

-- Whether a stream can take a `tokens` event `id` that comes behind `before` tokens: it lacks none of these, and
-- holds no others behind them, which another run cut otherwise; or it holds that event already.
local function fits(result, before, id)
  local last = redis.pcall('XREVRANGE', result, '+', '-', 'COUNT', 1)
  local count = last[1] and tonumber(string.match(last[1][1], '^%d+')) or 0
  return count == tonumber(before) or count > tonumber(before)
    and (id == '' or tonumber(string.match(id, '^%d+')) <= count)
end
