-- Set top-ups and overrides: sums that the ledger's database knows, each only over one that is made of fewer events.
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
-- ARGV[2] n_grants, then per grant: field value keep_until_ms
--   field: <counter> with value "<top_up> <count>", or <base>|override with value "<amount> <until_ms> <count>"
--   keep_until_ms: when the counter's period ends, 0 for what has no end (or when an override ends)
-- Returns {code, now_ms, epoch, {1 or 0 per grant: whether it was written}}
--   code ok
--   code no_epoch: the data is gone or was never begun; nothing changed

-- @include keys clock numbers

local key = name_keys(KEYS)
local now = now_ms()
local epoch = redis.call('HGET', key.meta, 'epoch')
if not epoch then
  return { 'no_epoch', now, '', {} }
end
local written = {}
for n = 1, tonumber(ARGV[2]) do
  local field, value, keep = ARGV[3 * n], ARGV[3 * n + 1], tonumber(ARGV[3 * n + 2])
  local count = tonumber(string.match(value, '%d+$'))
  local before = tonumber(string.match(redis.call('HGET', key.grants, field) or '', '%d+$') or '0')
  written[n] = count > before and 1 or 0
  if count > before then
    redis.call('HSET', key.grants, field, value)
    redis.call('HSET', key.meta, 'grants', '1')
    if keep > 0 then
      -- An override that was made longer is kept longer; when a counter goes, what is booked on it has decided before.
      local how = string.match(field, '|override$') and 'GT' or 'NX'
      redis.call('ZADD', key.periods, how, digits(keep + tonumber(ARGV[1])), field)
    end
  end
end
return { 'ok', now, epoch, written }
