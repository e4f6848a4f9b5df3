-- Take what is due, for as long as a lease: who has it says so again, takes it out, or puts it off.
-- KEYS: a sorted set, by time (ms)
-- ARGV: most members, lease (ms)
-- Reply: the members
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, member in ipairs(due) do
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), member)
end
return due
