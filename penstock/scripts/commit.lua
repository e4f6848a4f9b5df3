-- End jobs of one lane: token check, acknowledge and delete, terminal events and TTL, batch counters and done
-- entries, and what the jobs have cost their lane.
-- Freeing comes first: on a full server with noeviction, that is what lets the writes pass.
-- KEYS: lane stream, deficits hash, attempts hash; where the jobs are rows: their batch's hash, its done stream;
--       then per job its result stream
-- ARGV: group, consumer, lane name, '1' where the jobs are rows of a batch or '0', then per job: entry id,
--       deliveries, tokens charged at its claim, tokens it cost, result TTL (ms), tokens that its stream
--       must hold before this (0 where it does not stream), last tokens event's id and JSON
--       ('' where none; 'drop' as the id removes what was published), terminal event's id and JSON, and for a row
--       also the batch's counter ('completed' or 'failed') and the row ('' where none)
-- Reply: per job 1 (committed) or 0 (the lease is lost, or the server lost what was published before, or what it
--        knew of it, and the job has to run again from what is there: nothing was written)
local lane, deficits, attempts = KEYS[1], KEYS[2], KEYS[3]
local group, consumer, name, is_rows = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'
local batch, done = KEYS[4], KEYS[5]
local FIRST_KEY, WIDTH = is_rows and 6 or 4, is_rows and 12 or 10
local COST_MEMORY = 1 / 16 -- weight of the newest job in the lane's average cost

local function args_of(i)
  return unpack(ARGV, 5 + WIDTH * i, 4 + WIDTH * (i + 1))
end

local entries, deliveries = {}, {}
for i = 0, #KEYS - FIRST_KEY do
  entries[i + 1], deliveries[i + 1] = ARGV[5 + WIDTH * i], ARGV[6 + WIDTH * i]
end
local holding = held(lane, group, consumer, entries, deliveries)
-- Costs a job that does not stream nothing.
local function fits_stream(i)
  local result = KEYS[FIRST_KEY + i]
  local _, _, _, _, _, before, tokens_id = args_of(i)
  if before == '0' and (tokens_id == '' or tokens_id == 'drop') then return true end
  return fits(result, before, tokens_id)
end

local ended, seen = {}, {}
for i, entry in ipairs(entries) do
  holding[i] = holding[i] and not seen[entry] and fits_stream(i - 1)
  if holding[i] then
    ended[#ended + 1] = entry
    seen[entry] = true
  end
end

-- The lane pays the difference between what its jobs cost and what was charged when they were claimed.
local function settle(known, extra, cost, count)
  local deficit = (tonumber(known[1] or false) or 0) - extra
  -- Nobody saves up while there is nothing to take.
  if deficit > 0 and redis.call('XLEN', lane) == 0 then deficit = 0 end
  redis.call('HSET', deficits, name, string.format('%.1f', deficit))
  if count == 0 then return end
  local average = tonumber(known[2] or false) or cost / count
  local kept = (1 - COST_MEMORY) ^ count
  redis.call('HSET', deficits, name .. ':cost',
    string.format('%.1f', average * kept + cost / count * (1 - kept)))
end

local committed = {}
if #ended == 0 then
  for i = 1, #entries do committed[i] = 0 end
  return committed
end
-- These reads refuse keys of a wrong type before the first write.
-- A batch that its owner deleted takes no more rows; their results stand alone.
local to_batch = is_rows and redis.call('HLEN', batch) > 0 and redis.call('XLEN', done) >= 0
local any_attempts = redis.call('HLEN', attempts) > 0
local known = redis.call('HMGET', deficits, name, name .. ':cost')
redis.call('XACK', lane, group, unpack(ended))
redis.call('XDEL', lane, unpack(ended))
local extra, cost, count, rows = 0, 0, 0, {}
for i = 0, #entries - 1 do
  local result = KEYS[FIRST_KEY + i]
  local _, _, charged, spent, ttl, _, tokens_id, tokens, terminal_id, terminal, counter, row = args_of(i)
  committed[i + 1] = 0
  if holding[i + 1] then
    if to_batch then
      rows[#rows + 1] = {counter, result, row, terminal}
    else
      write_result(result, ttl, tokens_id, tokens, terminal_id, terminal)
    end
    if any_attempts then redis.call('HDEL', attempts, job_of(result)) end
    spent = tonumber(spent)
    extra = extra + spent - tonumber(charged)
    -- What failed at once says nothing about what the lane's jobs cost.
    if spent > 0 then cost, count = cost + spent, count + 1 end
    committed[i + 1] = 1
  end
end
if to_batch then
  write_rows(batch, done, rows)
  keep_batch(batch, done)
end
if extra ~= 0 or count > 0 then settle(known, extra, cost, count) end
return committed
