-- Read the limits of a root together with the version that reserves must name.
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
-- ARGV[1] prefix: the root and "|"
-- Returns {code, now_ms, epoch, version, {json, ...}}
--   code ok
--   code no_epoch: the data is gone or was never begun

-- @include keys clock

local key = name_keys(KEYS)
local now = now_ms()
local meta = redis.call('HMGET', key.meta, 'epoch', 'version')
if not meta[1] then
  return { 'no_epoch', now, '', '0', {} }
end
local all = redis.call('HGETALL', key.limits)
local found = {}
for n = 1, #all, 2 do
  if string.sub(all[n], 1, #ARGV[1]) == ARGV[1] then
    found[#found + 1] = all[n + 1]
  end
end
return { 'ok', now, meta[1], meta[2] or '1', found }
