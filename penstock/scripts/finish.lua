-- Delete a batch on behalf of its driver.
-- KEYS: batch hash, done stream
-- ARGV: epoch
-- Reply: how many keys there were
-- Errors, nothing was written: NOBATCH, TAKEN <epoch> <ms>, as `drive`
local refusal = not_driven(KEYS[1], ARGV[1])
if refusal then return refusal end
return redis.call('DEL', KEYS[1], KEYS[2])
