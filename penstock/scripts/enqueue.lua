-- Put jobs into a lane, many per call, all or none; for bulk runs, with the batch's cursor.
-- KEYS: lane stream, lanes set, control stream, batch hash (only where the jobs are rows of a batch)
-- ARGV: lane name, '1' to check and move the batch's cursor or '0', expected cursor, new cursor,
--       then per job: nonce, JSON
-- Reply: the entry ids in the order of the jobs, in one string, a space between them (an array of many
--        small strings costs a client more to parse than the jobs cost to send)
-- Errors: CURSORMOVED <where it is>   the cursor is not where it was expected; nothing was written
--         NOBATCH                     there is no such batch; nothing was written
local lane, lanes, control, batch = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local name, moves, expected, cursor = ARGV[1], ARGV[2] == '1', ARGV[3], ARGV[4]
local FIRST = 5

-- Whatever can be refused is refused here: a script that stops half-way leaves its first writes.
redis.call('XLEN', lane)
redis.call('XLEN', control)
local is_new = redis.call('SISMEMBER', lanes, name) == 0
local total
if batch then
  if redis.call('EXISTS', batch) == 0 then return redis.error_reply('NOBATCH there is no such batch') end
  local at = redis.call('HGET', batch, 'cursor') or ''
  if moves and at ~= expected then return redis.error_reply('CURSORMOVED ' .. at) end
  total = tonumber(redis.call('HGET', batch, 'total') or 0)
end

if is_new then
  redis.call('SADD', lanes, name)
  redis.call('XADD', control, 'MAXLEN', '~', 10000, '*', 'lane', name)
end
local entries = {}
for i = FIRST, #ARGV, 2 do
  entries[#entries + 1] = redis.call('XADD', lane, '*', 'job', ARGV[i + 1], 'nonce', ARGV[i])
end
-- One HSET for both: whoever made the batch was allowed HSET, so this is not the write that fails.
if moves then
  redis.call('HSET', batch, 'total', string.format('%.0f', total + #entries), 'cursor', cursor)
elseif batch then
  redis.call('HSET', batch, 'total', string.format('%.0f', total + #entries))
end
return table.concat(entries, ' ')
