-- Put jobs into a lane, many per call, all or none; for bulk runs, with the batch's epoch and cursor.
-- KEYS: lane stream, lanes hash, control stream, batch hash (the lane again where the jobs are no rows), then,
--       where the jobs have idempotency keys, per job the key that remembers it
-- ARGV: lane name, '1' to check and move the batch's cursor or '0', expected cursor, new cursor, jobs that a lane
--       holds where nobody has set a limit, how long idempotency keys are remembered (ms), the epoch
--       of the batch's driver ('' where it has none and nobody may have one), then per job: nonce, JSON
-- Reply: the entry ids in the order of the jobs, in one string, a space between them (an array of many
--        small strings costs a client more to parse than the jobs cost to send); in the place of a job that
--        was enqueued before under its idempotency key, its whole job id
-- Errors, nothing was written:
--         CURSORMOVED <where it is>   the cursor is not where it was expected
--         TAKEN <epoch> <ms>          another drives the batch, as `drive`
--         NOBATCH                     there is no such batch
--         QUEUEFULL <jobs> <limit> <ms>   the lane holds so many jobs; after so long there may be room
--         MEMORYFULL <used> <limit> <ms>  likewise, bytes of the server's memory
local lane, lanes, control, batch = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local name, moves, expected, cursor = ARGV[1], ARGV[2] == '1', ARGV[3], ARGV[4]
local limit, remember, epoch = tonumber(ARGV[5]), ARGV[6], ARGV[7]
local FIRST, FIRST_KEY = 8, 5
local BATCH_TTL = 30 * 86400 * 1000 -- ms after the last row was enqueued or ended
local MEMORY_SHARE = 0.85 -- what runs needs the rest of the memory to finish
local is_batch, is_keyed = batch ~= lane, #KEYS >= FIRST_KEY

local function setting(field, of)
  local known = redis.call('HGET', lanes, of)
  if not known or known == '{}' then return nil end
  -- What somebody wrote there by hand may be anything.
  local sound, settings = pcall(cjson.decode, known)
  return sound and type(settings) == 'table' and settings[field] or nil
end

-- By Little's law, the time in which as many jobs leave the lane as are to come, if it is in a steady state.
local function hint(jobs, length)
  local first = redis.call('XRANGE', lane, '-', '+', 'COUNT', 1)[1]
  if not first then return 1000 end
  local time = redis.call('TIME')
  local age = tonumber(time[1]) * 1000 - tonumber(string.match(first[1], '^%d+'))
  return math.min(math.max(age * jobs / math.max(length, 1), 100), 60000)
end

local function memory()
  local info = redis.pcall('INFO', 'memory')
  if type(info) == 'table' then return 0, 0 end -- denied to this user
  return tonumber(string.match(info, 'used_memory:(%d+)') or 0), tonumber(string.match(info, 'maxmemory:(%d+)') or 0)
end

-- Whatever can be refused is refused here: a script that stops half-way leaves its first writes.
local length = redis.call('XLEN', lane)
redis.call('XLEN', control)
local is_new = redis.call('HEXISTS', lanes, name) == 0
local total
if is_batch then
  if redis.call('EXISTS', batch) == 0 then return redis.error_reply('NOBATCH there is no such batch') end
  local newest = redis.call('HGET', batch, 'epoch') or ''
  if (epoch ~= '' or moves) and epoch ~= newest then
    return redis.error_reply('TAKEN ' .. (newest == '' and '-' or newest) .. ' 0')
  end
  local at = redis.call('HGET', batch, 'cursor') or ''
  if moves and at ~= expected then return redis.error_reply('CURSORMOVED ' .. at) end
  total = tonumber(redis.call('HGET', batch, 'total') or 0)
end
local known, jobs, new = {}, 0, {}
for i = FIRST, #ARGV, 2 do
  local place = (i - FIRST) / 2
  local key = is_keyed and KEYS[FIRST_KEY + place]
  known[place] = key and redis.call('GET', key)
  -- A key that is there twice makes one job.
  if not known[place] and not (key and new[key]) then jobs = jobs + 1 end
  if key then new[key] = true end
end
limit = tonumber(setting('max_jobs', name)) or tonumber(setting('max_jobs', '*')) or tonumber(limit)
if jobs > 0 and length + jobs > limit then
  return redis.error_reply(string.format('QUEUEFULL %.0f %.0f %.0f', length, limit, hint(jobs, length)))
end
local used, most = memory()
if jobs > 0 and most > 0 and used > MEMORY_SHARE * most then
  return redis.error_reply(
    string.format('MEMORYFULL %.0f %.0f %.0f', used, MEMORY_SHARE * most, hint(jobs, length)))
end

if is_new then
  redis.call('HSET', lanes, name, '{}')
  redis.call('XADD', control, 'MAXLEN', '~', 10000, '*', 'lane', name)
end
local entries = {}
for i = FIRST, #ARGV, 2 do
  local place = (i - FIRST) / 2
  local entry = known[place]
  if not entry and is_keyed then entry = redis.call('GET', KEYS[FIRST_KEY + place]) end -- twice in this call
  if not entry then
    entry = redis.call('XADD', lane, '*', 'job', ARGV[i + 1], 'nonce', ARGV[i])
    if is_keyed then
      redis.call('SET', KEYS[FIRST_KEY + place], name .. '.' .. entry .. '.' .. ARGV[i], 'PX', remember)
    end
  end
  entries[#entries + 1] = entry
end
-- One HSET for both: whoever made the batch was allowed HSET, so this is not the write that fails.
if moves then
  redis.call('HSET', batch, 'total', string.format('%.0f', total + jobs), 'cursor', cursor)
elseif is_batch then
  redis.call('HSET', batch, 'total', string.format('%.0f', total + jobs))
end
if is_batch then redis.call('PEXPIRE', batch, BATCH_TTL) end
return table.concat(entries, ' ')
