-- Take jobs: first what has expired or was released, then what is new; never more than `credit`.
-- KEYS: lane streams, in the order in which to serve them
-- ARGV: group, consumer, lease (ms), credit, then per lane the reclaim cursor ('' skips reclaiming)
-- Reply: { { {lane index, entry id, deliveries, {field, value, ...}}, ... },
--          { {last delivered id, next reclaim cursor}, ... one per lane } }
local group, consumer, lease, credit = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local taken, lanes = {}, {}

local function with_group(lane, command)
  local reply = redis.pcall(unpack(command))
  if type(reply) == 'table' and reply.err and string.find(reply.err, 'NOGROUP', 1, true) then
    redis.call('XGROUP', 'CREATE', lane, group, '0', 'MKSTREAM')
    reply = redis.pcall(unpack(command))
  end
  if type(reply) == 'table' and reply.err then
    -- What was taken so far must reach its owner, and a key that is no lane must not keep others waiting.
    if #taken == 0 and not string.find(reply.err, 'WRONGTYPE', 1, true) then error(reply.err) end
    return nil
  end
  return reply
end

local function deliveries(lane, entry)
  return redis.call('XPENDING', lane, group, entry, entry, 1)[1][4]
end

local function reclaim(index, lane, cursor)
  local reply = with_group(lane, {'XAUTOCLAIM', lane, group, consumer, lease, cursor, 'COUNT', credit})
  if not reply then return cursor end
  for _, entry in ipairs(reply[2]) do
    if entry and entry[2] then
      taken[#taken + 1] = {index, entry[1], deliveries(lane, entry[1]), entry[2]}
      credit = credit - 1
    end
  end
  return reply[1]
end

local function read_new(index, lane)
  local reply = with_group(lane,
    {'XREADGROUP', 'GROUP', group, consumer, 'COUNT', credit, 'STREAMS', lane, '>'})
  if not reply then return end
  for _, entry in ipairs(reply[1][2]) do
    taken[#taken + 1] = {index, entry[1], 1, entry[2]}
    credit = credit - 1
  end
end

local function last_delivered(lane)
  local groups = redis.pcall('XINFO', 'GROUPS', lane)
  if groups.err then return '0-0' end
  for _, info in ipairs(groups) do
    local row = {}
    for i = 1, #info, 2 do row[info[i]] = info[i + 1] end
    if row['name'] == group then return row['last-delivered-id'] end
  end
  return '0-0'
end

for index, lane in ipairs(KEYS) do
  local cursor = ARGV[4 + index]
  lanes[index] = {'0-0', cursor}
  if credit > 0 and cursor ~= '' then lanes[index][2] = reclaim(index - 1, lane, cursor) end
end
for index, lane in ipairs(KEYS) do
  if credit > 0 then read_new(index - 1, lane) end
  lanes[index][1] = last_delivered(lane)
end
return {taken, lanes}
