-- Renew the leases of a group of reservations.
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
-- ARGV[1] retention_ms
-- ARGV[2] shard
-- ARGV[3] n_items, and per item: id lease_ms
-- Returns {code, now_ms, epoch, swept, {answer per item}}
--   code ok: answers are extended, settled, released, expired, forgotten
--   code no_epoch: the data is gone or was never begun; nothing changed

-- @include keys clock numbers outbox tombstone record grants thresholds book sweep

local key = name_keys(KEYS)
local now = now_ms()
local meta = redis.call('HMGET', key.meta, 'epoch', 'done_since_ms')
if not meta[1] then
  return { 'no_epoch', now, '', 0, {} }
end
rotate_tombstones(key, now, meta[2], tonumber(ARGV[1]))

local ids = {}
for n = 1, tonumber(ARGV[3]) do
  ids[n] = ARGV[2 + 2 * n]
end
local live, dead = redis.call('HMGET', key.holds, unpack(ids)), read_tombstones(key, ids)
local answers = {}
for n, id in ipairs(ids) do
  if live[n] then
    redis.call('ZADD', key.leases, digits(now + tonumber(ARGV[3 + 2 * n])), id)
    answers[n] = 'extended'
  else
    answers[n] = dead[n] and string.match(dead[n], '^%S+') or 'forgotten'
  end
end
-- After the items: a lease renewed before the sweep lives on.
local book = open_book(key, now, tonumber(ARGV[1]), ARGV[2], meta[1])
local swept = sweep_holds(book, ARGV[2], meta[1], SWEEP_MAX)
close_book(book)
return { 'ok', now, meta[1], swept, answers }
