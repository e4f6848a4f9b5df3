-- Make a new job of a dead letter: both or neither.
-- KEYS: dead stream, lane stream, lanes hash, control stream
-- ARGV: dead letter's entry id, lane name, nonce, job JSON
-- Reply: the new entry's id, or '' (there is no such dead letter)
local dead, lane, lanes, control = unpack(KEYS)
local letter, name, nonce, job = unpack(ARGV)
if not redis.call('XRANGE', dead, letter, letter)[1] then return '' end
redis.call('XLEN', lane)
redis.call('XDEL', dead, letter)
if redis.call('HSETNX', lanes, name, '{}') == 1 then
  redis.call('XADD', control, 'MAXLEN', '~', 10000, '*', 'lane', name)
end
return redis.call('XADD', lane, '*', 'job', job, 'nonce', nonce)
