-- Expire holds past their lease, and delete counters of periods long gone that hold nothing.
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
-- ARGV[3] most
-- Returns {code, now_ms, swept, dropped}
--   code ok
--   code no_epoch: the data is gone or was never begun; nothing changed

-- @include keys clock numbers outbox tombstone record grants thresholds book sweep

local key = name_keys(KEYS)
local now = now_ms()
local retention, most = tonumber(ARGV[1]), tonumber(ARGV[3])
local meta = redis.call('HMGET', key.meta, 'epoch', 'done_since_ms', 'swept_ms', 'drop_after_ms')
if not meta[1] then
  return { 'no_epoch', now, 0, 0 }
end
rotate_tombstones(key, now, meta[2], retention)
local book = open_book(key, now, retention, ARGV[2], meta[1])
local swept = sweep_holds(book, ARGV[2], meta[1], most)
close_book(book)

-- After a jump of the clock nothing is dropped for a while: if the jump was wrong, today's counters must still be there.
local drop_after = tonumber(meta[4] or '0')
if meta[3] and now - tonumber(meta[3]) > retention then
  drop_after = now + retention
end
redis.call('HSET', key.meta, 'swept_ms', digits(now), 'drop_after_ms', digits(drop_after))

local dropped = 0
local old = {}
if now >= drop_after then
  old = redis.call('ZRANGEBYSCORE', key.periods, '-inf', '(' .. digits(now), 'LIMIT', '0', digits(most))
end
for _, counter in ipairs(old) do
  if string.match(counter, '|carry$') or string.match(counter, '|override$') then
    redis.call('HDEL', key.grants, counter)
    redis.call('ZREM', key.periods, counter)
  elseif redis.call('HEXISTS', key.held, counter) == 1 then
    redis.call('ZADD', key.periods, digits(now + retention), counter)
  else
    local oldest = tonumber(redis.call('HGET', key.rolling, counter .. ':o') or '')
    if oldest then
      local fields = { counter .. ':o' }
      for n = oldest, oldest + MAX_BUCKETS do
        fields[#fields + 1] = counter .. ':b' .. digits(n)
      end
      redis.call('HDEL', key.rolling, unpack(fields))
    end
    drop_grants(key, counter, now, ARGV[2], meta[1])
    redis.call('HDEL', key.spent, counter)
    redis.call('ZREM', key.periods, counter)
    dropped = dropped + 1
  end
end
return { 'ok', now, swept, dropped }
