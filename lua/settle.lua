-- Book what a group of reservations cost, wholly or in part, or release them, and append a ledger entry for each.
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
-- ARGV[3] n_items, and per item: id root part kind made_ms amounts lines line_texts estimated entry
--   kind: settle, partial or release (of part 0 by hand: what its holder settles later is still booked); line_texts: the lines as a record has them
--   amounts: words unit:amount, all that the reservation has cost so far (so that a part that overtakes another loses
--   nothing); a release without amounts leaves what is known; after a word "+" what it cost more (or less), for an entry
--   of data that was lost
-- Returns {code, now_ms, epoch, swept, {answer per item}}
--   code ok: answers are
--     settled, released, held, repeated <settled|released|held>, forgotten, out_of_range,
--     each with " late" for a correction or a booking without a hold, " over unit:amount ..." for what went above the hold
--   code no_epoch: the data is gone or was never begun; nothing changed

-- @include keys clock numbers outbox tombstone record grants thresholds book sweep

local key = name_keys(KEYS)
local now = now_ms()
local retention = tonumber(ARGV[1])
local shard = ARGV[2]
local meta = redis.call('HMGET', key.meta, 'epoch', 'done_since_ms')
local epoch = meta[1]
if not epoch then
  return { 'no_epoch', now, '', 0, {} }
end
rotate_tombstones(key, now, meta[2], retention)

local ENDED = { settle = 'settled', release = 'released' }
local book = open_book(key, now, retention, shard, epoch)
local n_items = tonumber(ARGV[3])
local items, ids = {}, {}
for n = 1, n_items do
  local i = 4 + (n - 1) * 9
  items[n] = {
    id = ARGV[i], root = ARGV[i + 1], part = tonumber(ARGV[i + 2]), kind = ARGV[i + 3], made = tonumber(ARGV[i + 4]),
    amounts = ARGV[i + 5], line_texts = ARGV[i + 6], estimated = ARGV[i + 7] == '1', entry = ARGV[i + 8],
  }
  ids[n] = ARGV[i]
end
-- What each id is now, kept up to date while the group is worked through: an id may come twice in it.
local live, dead = {}, {}
local texts, stones = redis.call('HMGET', key.holds, unpack(ids)), read_tombstones(key, ids)
for n, id in ipairs(ids) do
  live[id], dead[id] = texts[n] or nil, stones[n] or nil
end

-- What this item books per unit: the cost so far that it states, less what is booked already (known and estimated).
local function booking_of(item, known, estimated)
  local stated, order, booked = {}, {}, {}
  local relative = string.byte(item.amounts) == 43
  for unit, amount in string.gmatch(item.amounts, '(%S+):(%-?%d+)') do
    local before = relative and (known[unit] or 0) + (estimated[unit] or 0) or 0
    stated[unit] = math.max(before + tonumber(amount), 0)
    order[#order + 1] = unit
  end
  for unit, amount in pairs(known) do
    if not stated[unit] then
      stated[unit] = amount + (relative and estimated[unit] or 0)
      order[#order + 1] = unit
    end
  end
  for unit, amount in pairs(stated) do
    booked[unit] = amount - (known[unit] or 0) - (estimated[unit] or 0)
  end
  table.sort(order)
  return booked, order, stated
end

-- Whether every counter can take its booking; asked before anything is changed.
local function in_range(own, booked)
  load_rows(book, own)
  for _, line in ipairs(own) do
    local row = book.rows[line.counter]
    if row.spent + (row.add_spent + (booked[line.unit] or 0)) > MAX_COUNTER then
      return false
    end
  end
  return true
end

local function words_of(booked, order)
  local words = {}
  for _, unit in ipairs(order) do
    if booked[unit] and booked[unit] ~= 0 then
      words[#words + 1] = unit .. ':' .. digits(booked[unit])
    end
  end
  return table.concat(words, ' ')
end

local function append(item, part, made, root, booked, late)
  append_entry(key, shard, epoch, {
    id = item.id, part = part, kind = item.kind, root = root, made = made, at = now,
    estimated = item.estimated, late = late, booked = booked, entry = item.entry,
  })
end

local function bury(item, stone)
  local text = format_tombstone(stone)
  redis.call('HSET', key.done, item.id, text)
  dead[item.id] = text
end

local function resolve_hold(item, record)
  local known = {}
  for _, u in ipairs(record.units) do
    known[u.unit] = u.known
  end
  local booked, order, stated = booking_of(item, known, {})
  if not in_range(record.lines, booked) then
    return 'out_of_range'
  end
  for _, unit in ipairs(order) do
    if not known[unit] then
      record.units[#record.units + 1] = { unit = unit, ceiling = 0, expected = 0, known = 0, remaining = 0 }
    end
  end
  local final = item.kind ~= 'partial'
  local over, freed = {}, {}
  for _, u in ipairs(record.units) do
    local amount = booked[u.unit]
    if amount > u.remaining then
      over[#over + 1] = u.unit .. ':' .. digits(amount - u.remaining)
    end
    -- A cost that falls again is held again, as spent falls by as much.
    freed[u.unit] = u.remaining - (final and 0 or math.max(u.ceiling - stated[u.unit], 0))
    u.known = stated[u.unit]
  end
  for _, line in ipairs(record.lines) do
    change_held(book, line, -(freed[line.unit] or 0))
    spend(book, line, record.made, booked[line.unit] or 0)
  end
  append(item, record.entries + 1, record.made, record.root, words_of(booked, order), false)
  if final then
    redis.call('HDEL', key.holds, item.id)
    redis.call('ZREM', key.leases, item.id)
    live[item.id] = nil
    bury(item, {
      resolution = ENDED[item.kind], last_part = math.max(item.part, record.last_part), entries = record.entries + 1,
      made = record.made, known = stated, estimated = {}, tail = record.line_texts,
    })
  else
    local text = format_head(record.made, item.part, record.entries + 1, record.root, record.units) .. record.tail
    redis.call('HSET', key.holds, item.id, text)
    live[item.id] = text
  end
  return (final and ENDED[item.kind] or 'held') .. (#over > 0 and ' over ' .. table.concat(over, ' ') or '')
end

-- The reservation was resolved by expiry or release: book the difference to the truth, on its own lines and in its own period.
local function correct(item, stone)
  local booked, order, stated = booking_of(item, stone.known, stone.estimated)
  local own = parse_line_texts(stone.tail ~= '' and stone.tail or item.line_texts)
  if not in_range(own, booked) then
    return 'out_of_range'
  end
  for _, line in ipairs(own) do
    spend(book, line, stone.made, booked[line.unit] or 0)
  end
  append(item, stone.entries + 1, stone.made, item.root, words_of(booked, order), true)
  bury(item, {
    resolution = ENDED[item.kind] or stone.resolution, last_part = item.part, entries = stone.entries + 1, made = stone.made,
    known = stated, estimated = {}, tail = stone.tail,
  })
  return (ENDED[item.kind] or 'held') .. ' late'
end

-- Nothing is known of the reservation (its data was lost): book it in full, unless tombstones are too short-lived to know.
local function book_unknown(item)
  local stone = {
    resolution = 'held', last_part = 0, entries = math.max(item.part - 1, 0), made = item.made, known = {}, estimated = {}, tail = '',
  }
  if item.kind == 'release' and item.amounts == '' then
    -- Its reserve may still be on the way: it must find the reservation ended.
    stone.resolution, stone.last_part, stone.made = 'released', item.part, now
    bury(item, stone)
    return 'released late'
  end
  if item.made <= 0 or now - item.made > retention then
    return 'forgotten'
  end
  return correct(item, stone)
end

local function resolve(item)
  if live[item.id] then
    local record = parse_record(live[item.id])
    local by_hand = item.kind == 'release' and item.part == 0
    if item.part <= record.last_part and not by_hand then
      return 'repeated held'
    end
    return resolve_hold(item, record)
  end
  if not dead[item.id] then
    return book_unknown(item)
  end
  local stone = parse_tombstone(dead[item.id])
  if stone.resolution == 'settled' or item.part <= stone.last_part then
    return 'repeated ' .. (item.kind == 'partial' and 'held' or stone.resolution)
  end
  if stone.resolution == 'released' and item.kind == 'release' then
    return 'repeated released'
  end
  return correct(item, stone)
end

local answers = {}
for n, item in ipairs(items) do
  answers[n] = resolve(item)
end
-- After the items: a settle that comes before the sweep wins over the expiry.
local swept = sweep_holds(book, shard, epoch, SWEEP_MAX)
close_book(book)
return { 'ok', now, epoch, swept, answers }
