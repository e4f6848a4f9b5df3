-- Take a batch to drive it, or go on driving it: whoever has its newest epoch, and nobody else, puts rows into it,
-- trims it and deletes it. An epoch is a time in microseconds, so that none comes twice after a loss of data.
-- KEYS: batch hash
-- ARGV: the epoch that the caller has ('' for none), how long the batch is its own (ms; 0: until somebody takes
--       it), how: 'renew' what the caller has; 'take' a batch that is there, a new epoch unless the caller's is
--       the newest; 'restart' it, there or not: no rows, no cursor; how many rows it will have ('': unknown)
-- Reply: the epoch that the caller has now
-- Errors, nothing was written:
--         NOBATCH             there is no such batch
--         TAKEN <epoch> <ms>  another drives it, for so long at least
local batch = KEYS[1]
local held, lease, how = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local BATCH_TTL = 30 * 86400 * 1000 -- ms after the last row was enqueued or ended

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local known = redis.call('HMGET', batch, 'total', 'epoch', 'driven_until_ms')
local epoch = known[2] or ''
if how ~= 'restart' and not known[1] then return redis.error_reply('NOBATCH there is no such batch') end
if held == '' or held ~= epoch then
  local left = (tonumber(known[3] or 0) or 0) - now
  if how == 'renew' or left > 0 then
    return redis.error_reply(string.format('TAKEN %s %.0f', epoch == '' and '-' or epoch, math.max(left, 0)))
  end
  local micros = tonumber(time[1]) * 1000000 + tonumber(time[2])
  epoch = string.format('%.0f', math.max(micros, (tonumber(epoch) or 0) + 1))
end
if how == 'restart' then
  redis.call('DEL', batch)
  redis.call('HSET', batch, 'total', 0)
end
redis.call('HSET', batch, 'epoch', epoch, 'driven_until_ms', string.format('%.0f', now + lease))
if ARGV[4] and ARGV[4] ~= '' then redis.call('HSET', batch, 'expected', ARGV[4]) end
redis.call('PEXPIRE', batch, BATCH_TTL)
return epoch
