-- Go on holding what a key has under way. What was forgotten meanwhile is not noted again.
-- KEYS: held, held tokens (see hold.lua)
-- ARGV: how long it is kept from now on (ms), then members
local keep = tonumber(ARGV[1])
local time = redis.call('TIME')
local until_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + keep
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', string.format('%.0f', until_ms), ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], 2 * keep)
redis.call('PEXPIRE', KEYS[2], 2 * keep)
