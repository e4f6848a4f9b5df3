-- Remove consumers that have left or died: what they hold is released for others to take at once, then their names
-- go. Whoever was only stopped and goes on finds its leases gone, and says nothing.
-- A name is deleted only when nothing is pending under it: XGROUP DELCONSUMER destroys pending entries.
-- KEYS: control stream, consumers hash, then lane streams
-- ARGV: group, lease (ms), whom: a name; with a `*` behind it, a prefix of names; `?` for all that are dead: silent
--       for three of their heartbeats, or, where they never had one, for three leases; a name to spare ('' for none)
-- Reply: how many leases were released
local group, lease, pattern, spared = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local prefix = string.match(pattern, '^(.*)%*$')
local released = 0

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- idle: how long the group has not heard of it (ms); nil where the group does not know it
local function is_dead(name, idle)
  local known = redis.call('HGET', KEYS[2], name)
  local sound, beat = pcall(cjson.decode, known or '')
  if not known or not sound or type(beat) ~= 'table' then return not idle or idle > 3 * lease end
  return now - (tonumber(beat['at_ms']) or 0) > 3 * (tonumber(beat['interval_ms']) or 0)
end

local function matches(name, idle)
  if name == spared or name == '-' then return false end
  if pattern == '?' then return is_dead(name, idle) end
  -- Behind the prefix only what a process adds: `node.*` is not to take `node.gpu1.9f86d081` for its own.
  if prefix then
    return string.sub(name, 1, #prefix) == prefix and string.find(string.sub(name, #prefix + 1), '^%x+$') ~= nil
  end
  return name == pattern
end

local function release_all(lane, name)
  repeat
    local pending = redis.call('XPENDING', lane, group, '-', '+', 100, name)
    for _, row in ipairs(pending) do
      -- On Redis 6.2 an entry that was deleted unacknowledged stays pending, and XCLAIM does not move it.
      local moved = redis.call('XCLAIM', lane, group, '-', 0, row[1], 'IDLE', lease, 'JUSTID')
      if #moved == 0 then redis.call('XACK', lane, group, row[1]) end
      released = released + 1
    end
  until #pending == 0
  redis.call('XGROUP', 'DELCONSUMER', lane, group, name)
end

for i = 3, #KEYS do
  local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[i], group)
  if not consumers.err then
    for _, info in ipairs(consumers) do
      local row = {}
      for j = 1, #info, 2 do row[info[j]] = info[j + 1] end
      if matches(row['name'], row['idle']) then release_all(KEYS[i], row['name']) end
    end
  end
end
for _, name in ipairs(redis.call('HKEYS', KEYS[2])) do
  if matches(name) then redis.call('HDEL', KEYS[2], name) end
end
if released > 0 then redis.call('XADD', KEYS[1], 'MAXLEN', '~', 10000, '*', 'wake', 'released') end
return released
