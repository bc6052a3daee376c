-- List live reservations by the end of their lease, without changing anything.
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
-- ARGV[1] root, or empty for all
-- ARGV[2] most
-- Returns {code, now_ms, epoch, {id, ends_ms and record of each, one after the other}}
--   code ok
--   code no_epoch: the data is gone or was never begun

-- @include keys clock

local MOST_READ = 1000
local key = name_keys(KEYS)
local now = now_ms()
local epoch = redis.call('HGET', key.meta, 'epoch')
if not epoch then
  return { 'no_epoch', now, '', {} }
end
local found = {}
local most = tonumber(ARGV[2])
local leases = redis.call('ZRANGE', key.leases, '0', MOST_READ - 1, 'WITHSCORES')
for n = 1, #leases, 2 do
  local record = redis.call('HGET', key.holds, leases[n])
  local root = record and string.match(record, '^%d+ %d+ %d+ (%S+)')
  if root and (ARGV[1] == '' or ARGV[1] == root) and #found < 3 * most then
    found[#found + 1] = leases[n]
    found[#found + 1] = leases[n + 1]
    found[#found + 1] = record
  end
end
return { 'ok', now, epoch, found }
