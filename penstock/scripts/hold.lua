-- Note what a key has under way, if its limit has room for it. Notes that nobody kept are forgotten first.
-- KEYS: held (sorted set, member ID:TOKENS, score the time in ms until which it is kept), held tokens (their sum)
-- ARGV: member, its tokens, limit, how long it is kept (ms)
-- Reply: -1 (noted), or the tokens that are held
local held, sum = KEYS[1], KEYS[2]
local member, tokens, limit, keep = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local total = tonumber(redis.call('GET', sum) or 0)
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', held, '-inf', now)) do
  total = total - tonumber(string.match(gone, '%d+$'))
  redis.call('ZREM', held, gone)
end
if redis.call('ZCARD', held) == 0 then total = 0 end
local fits = total + tokens <= limit
if fits then
  redis.call('ZADD', held, string.format('%.0f', now + keep), member)
  total = total + tokens
end
redis.call('SET', sum, string.format('%.0f', total), 'PX', 2 * keep)
redis.call('PEXPIRE', held, 2 * keep)
return fits and -1 or total
