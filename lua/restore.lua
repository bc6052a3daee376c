-- Begin a shard, or rebuild it from the ledger after its data was lost. The first caller wins.
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
-- ARGV[1] epoch: the new one
-- ARGV[2] seq: the last ledger sequence that must not be used again
-- ARGV[3] retention_ms
-- ARGV[4] n_limits, then per limit: field json
-- then n_counters, and per counter: counter spent ends_ms rolling_ms bucket_ms idle_ms carries
--   carries: 1 if it carries over: its rest may be corrected for as long as reservations are remembered
-- then n_resolved, and per reservation: id tombstone
-- then n_grants, and per field of the grants hash: field value
-- Returns {code, now_ms, epoch}
--   code ok: written
--   code exists: another caller was first, nothing changed

-- @include keys clock numbers outbox grants thresholds book

local key = name_keys(KEYS)
local now = now_ms()
local epoch = redis.call('HGET', key.meta, 'epoch')
if epoch then
  return { 'exists', now, epoch }
end
local book = open_book(key, now, tonumber(ARGV[3]), '', ARGV[1])
-- What is left of a partial loss would be counted twice. The outbox stays: its entries are owed to the ledger.
for _, name in ipairs({ key.spent, key.held, key.rolling, key.periods, key.holds, key.leases, key.done, key.done_before, key.limits, key.meta,
  key.grants }) do
  redis.call('DEL', name)
end
local at = 4
for _ = 1, tonumber(ARGV[at]) do
  redis.call('HSET', key.limits, ARGV[at + 1], ARGV[at + 2])
  at = at + 2
end
at = at + 1
for _ = 1, tonumber(ARGV[at]) do
  local line = {
    counter = ARGV[at + 1], ends = tonumber(ARGV[at + 3]), rolling = tonumber(ARGV[at + 4]), bucket = tonumber(ARGV[at + 5]),
    idle = ARGV[at + 6] ~= '0' and tonumber(ARGV[at + 6]), carries = ARGV[at + 7] == '1',
  }
  if line.rolling > 0 and ARGV[at + 2] ~= '0' then
    -- The ledger's sum of a window is not spread over its buckets: all of it leaves a window from now.
    redis.call('HSET', key.rolling, line.counter .. ':o', digits(first_bucket(now, line)),
      line.counter .. ':b' .. digits(math.floor(now / line.bucket)), ARGV[at + 2])
  end
  redis.call('HSET', key.spent, line.counter, ARGV[at + 2])
  keep_until(book, line)
  at = at + 7
end
at = at + 1
for _ = 1, tonumber(ARGV[at]) do
  redis.call('HSET', key.done, ARGV[at + 1], ARGV[at + 2])
  at = at + 2
end
at = at + 1
local n_grants = tonumber(ARGV[at])
for _ = 1, n_grants do
  redis.call('HSET', key.grants, ARGV[at + 1], ARGV[at + 2])
  at = at + 2
end
if n_grants > 0 then
  redis.call('HSET', key.meta, 'grants', '1')
end
redis.call('HSET', key.meta, 'seq', ARGV[2], 'version', '1', 'done_since_ms', digits(now), 'epoch', ARGV[1])
return { 'ok', now, ARGV[1] }
