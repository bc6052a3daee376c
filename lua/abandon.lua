-- Give up the data of a shard that fell behind the ledger: it is lost then, and will be rebuilt.
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
-- ARGV[1] epoch: the one to give up
-- Returns {code, now_ms, epoch}
--   code ok: nothing is decided here until the shard is restored; what was held or booked counts no more, the outbox stays
--   code no_epoch: it was lost already
--   code exists: another epoch is in force, nothing changed

-- @include keys clock

local key = name_keys(KEYS)
local now = now_ms()
local epoch = redis.call('HGET', key.meta, 'epoch')
if not epoch then
  return { 'no_epoch', now, '' }
end
if epoch ~= ARGV[1] then
  return { 'exists', now, epoch }
end
redis.call('HDEL', key.meta, 'epoch')
return { 'ok', now, '' }
