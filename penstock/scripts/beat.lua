-- Write a consumer's heartbeat, also on a full server: a script's first write there may not need memory.
-- KEYS: consumers hash
-- ARGV: consumer, heartbeat JSON
local consumers, consumer, heartbeat = KEYS[1], ARGV[1], ARGV[2]
redis.call('HDEL', consumers, consumer)
redis.call('HSET', consumers, consumer, heartbeat)
