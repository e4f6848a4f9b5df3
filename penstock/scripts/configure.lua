-- Set a lane's settings, or with `*` as the lane those of the whole queue; declares the lane.
-- KEYS: lanes hash, control stream
-- ARGV: lane name or '*', then pairs of a setting's name and its JSON value ('null' removes it)
-- Reply: the settings as they are now, JSON
local lanes, control, name = KEYS[1], KEYS[2], ARGV[1]
-- What somebody wrote there by hand may be anything, and is set anew.
local sound, settings = pcall(cjson.decode, redis.call('HGET', lanes, name) or '{}')
if not sound or type(settings) ~= 'table' then settings = {} end
for i = 2, #ARGV, 2 do
  local value = cjson.decode('[' .. ARGV[i + 1] .. ']')[1]
  if value == cjson.null then value = nil end
  settings[ARGV[i]] = value
end
local encoded = cjson.encode(settings)
-- Deleted first: a full server refuses a script's first write if it needs memory.
redis.call('HDEL', lanes, name)
redis.call('HSET', lanes, name, encoded)
-- Whoever waits for jobs looks again.
redis.call('XADD', control, 'MAXLEN', '~', 10000, '*', 'lane', name)
return encoded
