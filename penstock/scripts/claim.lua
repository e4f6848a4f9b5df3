-- Take jobs: first what has expired or was released, then what is new, lane by lane in their fair shares; never
-- more than `credit`, and nothing from a lane (or a whole queue) that is paused.
-- The shares are deficit round robin in tokens (Shreedhar & Varghese 1995, with debts as in surplus round robin):
-- a lane whose turn comes is given a quantum times its weight and takes jobs while it has tokens left. A job is
-- charged what the lane's jobs cost on average; `commit` settles the difference. Debts are bounded, so that a lane
-- which had the queue for itself does not pay for that for ever.
-- KEYS: lanes hash, deficits hash, attempts hash, then lane streams in the order of their names
-- ARGV: group, consumer, lease (ms), credit, then per lane its name and the reclaim cursor: '' to take nothing
--       that was taken before, 'released' for what has no owner alone, as owners are given time to renew
-- Reply: { { {lane index, entry id, deliveries, tokens charged, failed attempts, {field, value, ...}}, ... },
--          { {last delivered id, next reclaim cursor}, ... one per lane }, server time (ms) }
local lanes, deficits, attempts = KEYS[1], KEYS[2], KEYS[3]
local group, consumer, lease, credit = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local QUANTUM = 256 -- tokens; also what a lane's jobs are taken to cost before any has ended
local MOST = 64 -- jobs of the lane's average cost: bound of debts, and of what jobs that cost less give back
local taken, states, served = {}, {}, {}

local function with_group(lane, command)
  local reply = redis.pcall(unpack(command))
  if type(reply) == 'table' and reply.err and string.find(reply.err, 'NOGROUP', 1, true) then
    redis.call('XGROUP', 'CREATE', lane.key, group, '0', 'MKSTREAM')
    reply = redis.pcall(unpack(command))
  end
  if type(reply) == 'table' and reply.err then
    -- What was taken so far must reach its owner, and a key that is no lane must not keep others waiting.
    if #taken == 0 and not string.find(reply.err, 'WRONGTYPE', 1, true) then error(reply.err) end
    return nil
  end
  return reply
end

local function settings_of(name)
  local known = redis.call('HGET', lanes, name)
  if not known or known == '{}' then return {} end
  -- What somebody wrote there by hand may be anything, and is not to keep the other lanes waiting.
  local sound, settings = pcall(cjson.decode, known)
  return sound and type(settings) == 'table' and settings or {}
end

-- How often the job has failed: only of those delivered before, who are few.
local function failures(lane, entry, fields)
  local nonce = nonce_of(fields)
  local suffix = nonce ~= '' and '.' .. nonce or ''
  local known = redis.call('HGET', attempts, lane.name .. '.' .. entry .. suffix) or ''
  local _, count = string.gsub(known, '\n', '')
  return count
end

local function take(lane, entry, deliveries, fields)
  local failed = deliveries > 1 and failures(lane, entry, fields) or 0
  -- Rounded up: Lua's numbers reach the caller as integers.
  taken[#taken + 1] = {lane.index, entry, deliveries, math.ceil(lane.cost), failed, fields}
  credit = credit - 1
end

local function reclaim(lane)
  local reply = with_group(lane,
    {'XAUTOCLAIM', lane.key, group, consumer, lease, lane.cursor, 'COUNT', credit})
  if not reply then return end
  for _, entry in ipairs(reply[2]) do
    if entry and entry[2] then
      local pending = redis.call('XPENDING', lane.key, group, entry[1], entry[1], 1)[1]
      take(lane, entry[1], pending[4], entry[2])
    end
  end
  lane.cursor = reply[1]
end

local function reclaim_released(lane)
  local rows = redis.pcall('XPENDING', lane.key, group, 'IDLE', lease, '-', '+', credit, '-')
  if rows.err or #rows == 0 then return end
  local entries, deliveries = {}, {}
  for i, row in ipairs(rows) do
    entries[i], deliveries[row[1]] = row[1], row[4]
  end
  for _, entry in ipairs(redis.call('XCLAIM', lane.key, group, consumer, lease, unpack(entries))) do
    if entry and entry[2] then take(lane, entry[1], deliveries[entry[1]] + 1, entry[2]) end
  end
end

-- How many wait for their first consumer, and the last one that did not.
local function waiting(lane)
  local groups = with_group(lane, {'XINFO', 'GROUPS', lane.key}) or {}
  for _, flat in ipairs(groups) do
    local info = as_map(flat)
    if info['name'] == group then
      lane.delivered = info['last-delivered-id']
      if lane.length > info['pending'] then return lane.length - info['pending'] end
      -- An entry deleted by hand stays pending and spoils the difference.
      return #redis.call('XRANGE', lane.key, '(' .. lane.delivered, '+', 'COUNT', 1)
    end
  end
  return lane.length
end

local function read_new(lane, count)
  local reply = with_group(lane,
    {'XREADGROUP', 'GROUP', group, consumer, 'COUNT', count, 'STREAMS', lane.key, '>'})
  local entries = reply and reply[1] and reply[1][2] or {}
  for _, entry in ipairs(entries) do
    take(lane, entry[1], 1, entry[2])
    lane.delivered = entry[1]
  end
  return #entries
end

-- Nobody has tokens: as many rounds at once as it takes until somebody has.
local function refill(active)
  local rounds = math.huge
  for _, lane in ipairs(active) do
    if lane.waiting > lane.count then
      rounds = math.min(rounds, math.floor(-lane.deficit / (QUANTUM * lane.weight)))
    end
  end
  for _, lane in ipairs(active) do
    if lane.waiting > lane.count then lane.deficit = lane.deficit + rounds * QUANTUM * lane.weight end
  end
end

-- Decide how many new jobs of each lane to take; gives the lane whose turn comes next, or, with a `>` before it, the
-- lane whose turn goes on: it has been given its quantum.
local function divide(active, turn)
  local left, room, at, idle = #active, credit, 1, 0
  local goes_on, name = string.match(turn, '^(>?)(.*)$')
  for i, lane in ipairs(active) do
    if lane.name >= name then at = i break end
  end
  local resumed = goes_on == '>' and active[at].name == name
  if resumed and active[at].deficit <= 0 then
    -- Its jobs cost more than they were charged: that was its turn.
    at, resumed = at % #active + 1, false
  end
  while room > 0 and left > 0 do
    local lane = active[at]
    local before = room
    if lane.waiting > lane.count then
      if not resumed then lane.deficit = lane.deficit + QUANTUM * lane.weight end
      if lane.deficit > 0 then
        local count = math.min(lane.waiting - lane.count, room, math.ceil(lane.deficit / lane.cost))
        lane.count, lane.deficit, room = lane.count + count, lane.deficit - count * lane.cost, room - count
      end
      if lane.waiting == lane.count then left = left - 1 end
      if room == 0 and lane.deficit > 0 and lane.waiting > lane.count then return '>' .. lane.name end
    end
    resumed = false
    idle = room < before and 0 or idle + 1
    if idle >= #active then
      refill(active)
      idle = 0
    end
    at = at % #active + 1
  end
  return active[at].name
end

local function load(index)
  local lane = {
    index = index - 1, key = KEYS[3 + index], name = ARGV[3 + 2 * index], cursor = ARGV[4 + 2 * index], count = 0,
    delivered = '0-0',
  }
  local length = redis.pcall('XLEN', lane.key)
  lane.length = type(length) == 'number' and length or 0
  return lane
end

-- Whether the lane is served. Of empty lanes, which may be many, nothing is asked but whether they are.
local function is_served(lane, queue_paused)
  if lane.length == 0 then
    lane.cursor = lane.cursor ~= '' and '0-0' or ''
    return false
  end
  local settings = settings_of(lane.name)
  if queue_paused or settings['paused'] == true then
    -- Whoever waits for entries beyond these hears on the control stream that the lane goes on.
    lane.delivered = redis.call('XREVRANGE', lane.key, '+', '-', 'COUNT', 1)[1][1]
    return false
  end
  local weight = tonumber(settings['weight'] or 1) or 1
  lane.weight = weight >= 0.01 and math.min(weight, 1000) or 0.01
  local known = redis.call('HMGET', deficits, lane.name, lane.name .. ':cost')
  lane.cost = math.max(tonumber(known[2] or QUANTUM) or QUANTUM, 1)
  local most = MOST * math.max(lane.cost, QUANTUM * lane.weight)
  lane.deficit = math.min(math.max(tonumber(known[1] or 0) or 0, -most), most)
  return true
end

local all, active = {}, {}
local queue_paused = settings_of('*')['paused'] == true
for index = 1, #KEYS - 3 do
  local lane = load(index)
  all[index] = lane
  if is_served(lane, queue_paused) then served[#served + 1] = lane end
end
for _, lane in ipairs(served) do
  if credit > 0 and lane.cursor == 'released' then
    reclaim_released(lane)
  elseif credit > 0 and lane.cursor ~= '' then
    reclaim(lane)
  end
end
for _, lane in ipairs(served) do
  lane.waiting = waiting(lane)
  if lane.waiting > 0 then
    active[#active + 1] = lane
  elseif lane.deficit > 0 then
    -- Nobody saves up while there is nothing to take. (On a full server this is for another time.)
    redis.pcall('HSET', deficits, lane.name, 0)
  end
end
if credit > 0 and #active > 0 then
  local turn = divide(active, redis.call('HGET', deficits, '*') or '')
  for _, lane in ipairs(active) do
    local charged = lane.count
    local count = charged > 0 and read_new(lane, charged) or 0
    lane.deficit = lane.deficit + (charged - count) * lane.cost
    -- A lane with nothing left to take keeps its debts and not its savings.
    if count < charged or lane.waiting <= charged then lane.deficit = math.min(lane.deficit, 0) end
  end
  -- Behind the reads: a full server refuses a script's first write if it needs memory.
  for _, lane in ipairs(active) do
    redis.call('HSET', deficits, lane.name, string.format('%.2f', lane.deficit))
  end
  redis.call('HSET', deficits, '*', turn)
end
for index, lane in ipairs(all) do states[index] = {lane.delivered, lane.cursor} end
local time = redis.call('TIME')
return {taken, states, tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)}
