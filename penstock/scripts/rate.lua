-- Count one request of a key, if its limit has room for it (a token bucket, kept as the time at which it is full:
-- the generic cell rate algorithm). The bucket holds a minute's requests.
-- KEYS: the key's time (microseconds)
-- ARGV: requests per minute
-- Reply: 0 (counted), or the milliseconds after which there is room
local MINUTE = 60000000
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local step = MINUTE / tonumber(ARGV[1])
local full = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now) + step
if full - now > MINUTE + 0.5 then return math.ceil((full - now - MINUTE) / 1000) end
redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000))
return 0
