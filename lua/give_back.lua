-- Take back what a booking without a hold counted, as if it had not been made: its request went no further.
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
-- ARGV[3] id
-- ARGV[4] amounts: words unit:amount, as they were booked
-- ARGV[5] line_texts: the lines as a record has them
-- Returns {code, now_ms, epoch}
--   code released: taken out of the period or bucket in which it was counted
--   code repeated: it was given back before, or it is no such booking; nothing changed
--   code forgotten: too old to be known; nothing changed
--   code no_epoch: the data is gone or was never begun; nothing changed

-- @include keys clock numbers outbox tombstone record grants thresholds book

local key = name_keys(KEYS)
local now = now_ms()
local meta = redis.call('HMGET', key.meta, 'epoch', 'done_since_ms')
if not meta[1] then
  return { 'no_epoch', now, '' }
end
local retention = tonumber(ARGV[1])
rotate_tombstones(key, now, meta[2], retention)
local text = read_tombstones(key, { ARGV[3] })[1]
if not text then
  return { 'forgotten', now, meta[1] }
end
local stone = parse_tombstone(text)
-- What was settled knows what it cost; what was booked at once does not.
if stone.resolution ~= 'settled' or next(stone.known) then
  return { 'repeated', now, meta[1] }
end
local amounts = {}
for unit, amount in string.gmatch(ARGV[4], '(%S+):(%d+)') do
  amounts[unit] = tonumber(amount)
end
local book = open_book(key, now, retention, ARGV[2], meta[1])
local lines = parse_line_texts(ARGV[5])
load_rows(book, lines)
for _, line in ipairs(lines) do
  spend(book, line, stone.made, -(amounts[line.unit] or 0))
end
close_book(book)
stone.resolution = 'released'
redis.call('HSET', key.done, ARGV[3], format_tombstone(stone))
return { 'released', now, meta[1] }
