-- Say where a job is, from what is there: nothing keeps a status. Every step is logarithmic or better.
-- KEYS: lane stream, result stream, lanes hash, attempts hash
-- ARGV: group, entry id, nonce ('' for a raw entry), lane name, job id
-- Reply: {'queued', about how many are ahead, why it is held up}   '', 'lane' or 'queue' (paused), 'undeclared'
--        {'leased', consumer, deliveries, ms since the lease was taken or renewed, failed attempts}
--        {'released', deliveries, ms of idle time, failed attempts, why it is held up}   each attempt a JSON object and a newline
--        {'ended', event id, event JSON}
--        {'expired'}   the server gave out this id, and there is nothing left of the job
--        {'lost'}      parts are left, but nothing will ever finish the job
--        {'unknown'}   the server never gave out this id
local lane, result, lanes, attempts = unpack(KEYS)
local group, entry, nonce, name, job_id = unpack(ARGV)

-- Ids do not fit a double: compared part by part, as digits, the longer being the larger.
local function compare(a, b)
  local a1, a2 = string.match(a, '^0*(%d+)-0*(%d+)$')
  local b1, b2 = string.match(b, '^0*(%d+)-0*(%d+)$')
  if a1 == b1 then a1, b1 = a2, b2 end
  if #a1 ~= #b1 then return #a1 - #b1 end
  return a1 < b1 and -1 or (a1 > b1 and 1 or 0)
end

local function group_info()
  local groups = redis.pcall('XINFO', 'GROUPS', lane)
  for _, flat in ipairs(groups) do
    local info = as_map(flat)
    if info['name'] == group then return info['pending'], info['last-delivered-id'] end
  end
  return 0, '0-0'
end

-- A place on the line of ids: milliseconds, and within one of them the sequence number.
local function place(id)
  local ms, sequence = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms) + math.min(tonumber(sequence), 9999) / 10000
end

-- Entries wait in the order of their ids, and ids are times: the share of the waiting time span that lies
-- before this entry is about the share of the waiting entries that does.
local function ahead(pending, delivered)
  local waiting = redis.call('XLEN', lane) - pending
  local first = redis.call('XRANGE', lane, '(' .. delivered, '+', 'COUNT', 1)[1][1]
  local last = redis.call('XREVRANGE', lane, '+', '-', 'COUNT', 1)[1][1]
  local span = place(last) - place(first)
  if span <= 0 or waiting <= 1 then return 0 end
  return math.floor((waiting - 1) * (place(entry) - place(first)) / span + 0.5)
end

local function is_paused(of)
  local sound, settings = pcall(cjson.decode, redis.call('HGET', lanes, of) or '{}')
  return sound and type(settings) == 'table' and settings['paused'] == true
end

-- Why no consumer takes it up; '' where some will.
local function held_up()
  if name ~= 'standard' and redis.call('HEXISTS', lanes, name) == 0 then return 'undeclared' end
  return is_paused('*') and 'queue' or is_paused(name) and 'lane' or ''
end

local function of_entry()
  local lease = redis.pcall('XPENDING', lane, group, entry, entry, 1)
  if not lease.err and lease[1] then
    local _, consumer, idle, deliveries = unpack(lease[1])
    local failed = redis.call('HGET', attempts, job_id) or ''
    if consumer == '-' then return {'released', deliveries, idle, failed, held_up()} end
    return {'leased', consumer, deliveries, idle, failed}
  end
  local pending, delivered = group_info()
  -- Delivered and owned by no one: an XACK or XGROUP DELCONSUMER by hand. No consumer will be given it again.
  if compare(entry, delivered) <= 0 then return {'lost'} end
  return {'queued', ahead(pending, delivered), held_up()}
end

local found = redis.call('XRANGE', lane, entry, entry)[1]
if found then
  if nonce_of(found[2]) ~= nonce then return {'unknown'} end
  return of_entry()
end
local last = redis.call('XREVRANGE', result, '+', '-', 'COUNT', 1)[1]
if last then
  if string.match(last[1], '-1$') then return {'ended', last[1], as_map(last[2])['event']} end
  return {'lost'}
end
if redis.call('EXISTS', lane) == 0 then return {'unknown'} end
local generated = as_map(redis.call('XINFO', 'STREAM', lane))['last-generated-id']
if compare(entry, generated) > 0 then return {'unknown'} end
return {'expired'}
