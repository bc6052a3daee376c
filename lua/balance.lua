-- Read counters and the ledger sequence of the same instant.
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
-- ARGV[3] n_lines, then per line: counter unit amount starts_ms ends_ms kind
-- Returns {code, now_ms, epoch, seq, swept, {spent of each line}, {held}, {amount in effect}}
--   code ok; no amounts where they are as they came
--   code no_epoch: the data is gone or was never begun; nothing changed

-- @include keys clock numbers outbox tombstone record lines grants thresholds book sweep

local key = name_keys(KEYS)
local now = now_ms()
local meta = redis.call('HMGET', key.meta, 'epoch', 'done_since_ms', 'grants')
if not meta[1] then
  return { 'no_epoch', now, '', '0', 0, {}, {}, {} }
end
rotate_tombstones(key, now, meta[2], tonumber(ARGV[1]))
local book = open_book(key, now, tonumber(ARGV[1]), ARGV[2], meta[1])
local swept = sweep_holds(book, ARGV[2], meta[1], SWEEP_MAX)
local lines = parse_lines(ARGV, 4, tonumber(ARGV[3]))
load_rows(book, lines)
begin_anew(book, lines)
evict_all(book, lines)
close_book(book)
local spent, held = texts_of(book, lines)
local amounts = {}
if apply_grants(book, lines, meta[3], false) then
  for n, line in ipairs(lines) do
    amounts[n] = digits(line.amount)
  end
end
return { 'ok', now, meta[1], redis.call('HGET', key.meta, 'seq') or '0', swept, spent, held, amounts }
