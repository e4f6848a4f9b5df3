-- Prelude of the scripts that change a batch on behalf of its driver.

-- The error where the batch is not there, or not the driver's any more; nil where all is well.
local function not_driven(batch, epoch)
  local known = redis.call('HMGET', batch, 'total', 'epoch', 'driven_until_ms')
  if not known[1] then return redis.error_reply('NOBATCH there is no such batch') end
  if known[2] == epoch then return nil end
  return redis.error_reply('TAKEN ' .. (known[2] or '-') .. ' 0')
end
