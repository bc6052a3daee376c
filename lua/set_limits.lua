-- Add, replace and drop limits in one step; every process notices by the version.
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
-- ARGV[1] epoch that the caller looked at, or empty for whatever is in force
-- ARGV[2] version that the caller looked at, likewise
-- ARGV[3] n_put, then per limit: field json
-- then n_drop, then per limit: field
--   json: an object without since_ms; the script puts in the server time from which the limit counts, and of one with rollover
--   carries_since_ms, from when on it carries over without a break
-- Returns {code, now_ms, epoch, version}
--   code ok
--   code stale_limits: another version is in force; nothing changed
--   code no_epoch: the data is gone or was never begun; nothing changed

-- @include keys clock numbers

local key = name_keys(KEYS)
local now = now_ms()
local meta = redis.call('HMGET', key.meta, 'epoch', 'version')
if not meta[1] then
  return { 'no_epoch', now, '', '0' }
end
if ARGV[1] ~= '' and (ARGV[1] ~= meta[1] or ARGV[2] ~= (meta[2] or '1')) then
  return { 'stale_limits', now, meta[1], meta[2] or '1' }
end
local n_put = tonumber(ARGV[3])
for n = 1, n_put do
  local field, json = ARGV[2 * n + 2], ARGV[2 * n + 3]
  local before = redis.call('HGET', key.limits, field) or ''
  local since = string.match(before, '"since_ms": ?(%d+)')
  -- From the next millisecond on: a reservation of this one may have been made without the limit.
  since = since or digits(now + 1)
  if string.find(json, '"rollover"', 1, true) then
    local carries = string.match(before, '"carries_since_ms": ?(%d+)') or digits(now + 1)
    json = '{"carries_since_ms":' .. carries .. ',' .. string.sub(json, 2)
  end
  redis.call('HSET', key.limits, field, '{"since_ms":' .. since .. ',' .. string.sub(json, 2))
end
local at = 4 + 2 * n_put
for n = 1, tonumber(ARGV[at]) do
  redis.call('HDEL', key.limits, ARGV[at + n])
end
local version = redis.call('HINCRBY', key.meta, 'version', '1')
return { 'ok', now, meta[1], digits(version) }
