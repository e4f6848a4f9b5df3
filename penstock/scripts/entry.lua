-- Prelude of the scripts that look into entries.

local function as_map(flat)
  local map = {}
  for i = 1, #flat, 2 do map[flat[i]] = flat[i + 1] end
  return map
end

-- The nonce among an entry's fields; '' for a raw entry, or where it is of another form.
local function nonce_of(fields)
  local nonce = as_map(fields)['nonce'] or ''
  return #nonce == 16 and string.match(nonce, '^[0-9a-f]+$') or ''
end
