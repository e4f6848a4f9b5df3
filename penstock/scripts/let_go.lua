-- Forget what a key had under way.
-- KEYS: held, held tokens (see hold.lua)
-- ARGV: member, its tokens
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 and redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('DECRBY', KEYS[2], ARGV[2])
end
