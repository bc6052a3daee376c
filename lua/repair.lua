-- Add to a counter what it differs from the ledger by, once for each time the difference was measured.
--
-- KEYS[1] meta hash
-- KEYS[2] spent hash
-- KEYS[3] held hash
-- KEYS[4] rolling hash
-- KEYS[5] periods zset
-- KEYS[6] holds hash
-- KEYS[7] leases zset
-- KEYS[8] done hash
-- KEYS[9] done_before hash
-- KEYS[10] outbox stream
-- KEYS[11] limits hash
-- KEYS[12] grants hash
-- ARGV[1] epoch: in which the difference was measured
-- ARGV[2] seq: the ledger sequence at which it was measured
-- ARGV[3] counter
-- ARGV[4] change: what is added to spent, signed
-- ARGV[5] keep_until_ms: when the counter may be deleted if it is not there, 0 for never
-- Returns {code, now_ms, epoch, spent}
--   code repaired
--   code stale: measured in another epoch, or before the last repair of this counter; nothing changed
--   code no_epoch: the data is gone or was never begun; nothing changed

-- @include keys clock numbers

local key = name_keys(KEYS)
local now = now_ms()
local meta = redis.call('HMGET', key.meta, 'epoch', 'seq')
if not meta[1] then
  return { 'no_epoch', now, '', '0' }
end
local last = tonumber(redis.call('HGET', key.grants, ARGV[3] .. '|repaired') or '-1')
if meta[1] ~= ARGV[1] or tonumber(ARGV[2]) <= last then
  return { 'stale', now, meta[1], redis.call('HGET', key.spent, ARGV[3]) or '0' }
end
redis.call('HINCRBY', key.spent, ARGV[3], ARGV[4])
if ARGV[5] ~= '0' then
  redis.call('ZADD', key.periods, 'NX', ARGV[5], ARGV[3])
end
redis.call('HSET', key.grants, ARGV[3] .. '|repaired', meta[2] or '0')
return { 'repaired', now, meta[1], redis.call('HGET', key.spent, ARGV[3]) }
