-- Remove rows from a batch's done stream on behalf of its driver, who has stored them.
-- KEYS: batch hash, done stream
-- ARGV: epoch, id of the first entry to keep
-- Reply: how many were removed
-- Errors, nothing was written: NOBATCH, TAKEN <epoch> <ms>, as `drive`
local refusal = not_driven(KEYS[1], ARGV[1])
if refusal then return refusal end
return redis.call('XTRIM', KEYS[2], 'MINID', ARGV[2])
