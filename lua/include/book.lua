-- The book: counters read once, changed in memory, written back in a few calls. Sums stay exact: a change is added up in a
-- Lua number only below 2^53, and a counter beyond that is written with HINCRBY.
local MAX_BUCKETS = 52

local function open_book(key, now, retention, shard, epoch)
  return { key = key, now = now, retention = retention, shard = shard, epoch = epoch, rows = {}, order = {},
    spent_changed = false, held_changed = false }
end

-- Read the counters of the lines that are not in the book yet.
local function load_rows(book, lines)
  local missing, unread, rows, order, n_missing, n_order = {}, {}, book.rows, book.order, 0, #book.order
  -- Counted loops wherever every line passes: each step of ipairs is a call.
  for n = 1, #lines do
    local line = lines[n]
    local counter = line.counter
    if not rows[counter] then
      rows[counter] = true
      n_missing = n_missing + 1
      missing[n_missing], unread[n_missing] = counter, line
    end
  end
  for first = 1, n_missing, MAX_FIELDS do
    local last = math.min(first + MAX_FIELDS - 1, n_missing)
    local spent = redis.call('HMGET', book.key.spent, unpack(missing, first, last))
    local held = redis.call('HMGET', book.key.held, unpack(missing, first, last))
    for n = first, last do
      local i = n - first + 1
      local spent_text, held_text = spent[i] or '0', held[i] or '0'
      -- All fields at once: a table that grows field by field is laid out anew several times.
      local row = {
        line = unread[n], is_new = not spent[i], spent_text = spent_text, held_text = held_text,
        spent = tonumber(spent_text), held = tonumber(held_text), add_spent = 0, add_held = 0,
        spent_changed = false, held_changed = false, watched = false,
      }
      rows[missing[n]] = row
      n_order = n_order + 1
      order[n_order] = row
    end
  end
end

local function change_held(book, line, amount)
  local row = book.rows[line.counter]
  if math.abs(row.add_held + amount) > MAX_EXACT then
    row.held, row.add_held = redis.call('HINCRBY', book.key.held, line.counter, digits(row.add_held)), 0
  end
  row.add_held = row.add_held + amount
  if amount ~= 0 then
    row.held_changed, book.held_changed = true, true
  end
end

local function change_spent(book, line, amount)
  local row = book.rows[line.counter]
  if math.abs(row.add_spent + amount) > MAX_EXACT then
    row.spent, row.add_spent = redis.call('HINCRBY', book.key.spent, line.counter, digits(row.add_spent)), 0
  end
  row.add_spent = row.add_spent + amount
  if amount ~= 0 then
    row.spent_changed, book.spent_changed = true, true
    -- Of lines that were made before and after the limit was changed, the first says which thresholds.
    row.watched = row.watched or (line.thresholds or line.carries) and line
  end
end

local function first_bucket(now, line)
  return math.floor((now - line.rolling) / line.bucket) + 1
end

-- Take the buckets that left the window off the spent sum of a rolling line.
local function evict(book, line)
  local key, now = book.key, book.now
  local first, current = first_bucket(now, line), math.floor(now / line.bucket)
  local oldest = tonumber(redis.call('HGET', key.rolling, line.counter .. ':o') or '')
  if not oldest or (first <= oldest and oldest <= current) then
    return
  end
  -- Buckets ahead of the clock (it went back) are folded into the current one: still counted, and leaving a window from now.
  local folding = oldest > current
  local names = {}
  for n = oldest, folding and oldest + MAX_BUCKETS or math.min(first - 1, oldest + MAX_BUCKETS) do
    names[#names + 1] = line.counter .. ':b' .. digits(n)
  end
  local amounts = redis.call('HMGET', key.rolling, unpack(names))
  redis.call('HDEL', key.rolling, unpack(names))
  redis.call('HSET', key.rolling, line.counter .. ':o', digits(first))
  for n = 1, #names do
    if amounts[n] and folding then
      redis.call('HINCRBY', key.rolling, line.counter .. ':b' .. digits(current), amounts[n])
    elseif amounts[n] then
      change_spent(book, line, -tonumber(amounts[n]))
    end
  end
end

local function evict_all(book, lines)
  for n = 1, #lines do
    if lines[n].rolling > 0 then
      evict(book, lines[n])
    end
  end
end

-- Book an amount on a line, in the bucket of `made` if it rolls; what left the window already is not counted.
local function spend(book, line, made, amount)
  if line.idle then
    -- A correction may come after the counter was forgotten: it leaves no less than nothing.
    local row = book.rows[line.counter]
    amount = math.max(amount, -(row.spent + row.add_spent))
  end
  if amount == 0 then
    return
  end
  if line.rolling > 0 then
    local key, now = book.key, book.now
    if made + line.rolling <= now then
      return
    end
    local current = math.floor(now / line.bucket)
    local oldest = tonumber(redis.call('HGET', key.rolling, line.counter .. ':o') or '')
    if not oldest then
      oldest = first_bucket(now, line)
      redis.call('HSET', key.rolling, line.counter .. ':o', digits(oldest))
    elseif oldest > current then
      -- The clock went back since: what is booked now must not fall before the window.
      evict(book, line)
      oldest = first_bucket(now, line)
    end
    local bucket = math.min(math.floor(made / line.bucket), current)
    if bucket < oldest then
      return
    end
    redis.call('HINCRBY', key.rolling, line.counter .. ':b' .. digits(bucket), digits(amount))
  end
  change_spent(book, line, amount)
end

-- Remember when a counter may be deleted; `total` windows stay.
local function keep_until(book, line)
  if line.rolling > 0 then
    redis.call('ZADD', book.key.periods, digits(book.now + line.rolling + book.retention), line.counter)
  elseif line.idle then
    redis.call('ZADD', book.key.periods, digits(book.now + line.idle), line.counter)
  elseif line.carries then
    -- Its rest may be corrected for as long as reservations are remembered.
    redis.call('ZADD', book.key.periods, digits(math.max(line.ends, book.now + book.retention) + book.retention), line.counter)
  elseif line.ends > 0 then
    redis.call('ZADD', book.key.periods, digits(line.ends + book.retention), line.counter)
  end
end

-- Write one kind of change of all rows: small counters in one HSET, large ones with HINCRBY.
local function write_rows(book, hash, what, drop_zero)
  local sets, gone, n_sets, n_gone = {}, {}, 0, 0
  local change, flag, text = 'add_' .. what, what .. '_changed', what .. '_text'
  for n = 1, #book.order do
    local row = book.order[n]
    if row[flag] then
      local before, counter, written = row[what], row.line.counter, false
      local total = before + row[change]
      if math.abs(total) > MAX_EXACT or math.abs(before) > MAX_EXACT then
        -- What the server says: a sum that was beyond 2^53 and comes back below it is not exact here.
        total = redis.call('HINCRBY', hash, counter, digits(row[change]))
      elseif total == 0 and drop_zero then
        n_gone = n_gone + 1
        gone[n_gone] = counter
        written = '0'
      else
        written = digits(total)
        sets[n_sets + 1], sets[n_sets + 2] = counter, written
        n_sets = n_sets + 2
      end
      row[what], row[change], row[flag], row[text] = total, 0, false, written
    end
  end
  for first = 1, n_gone, MAX_FIELDS do
    redis.call('HDEL', hash, unpack(gone, first, math.min(first + MAX_FIELDS - 1, n_gone)))
  end
  for first = 1, n_sets, 2 * MAX_FIELDS do
    redis.call('HSET', hash, unpack(sets, first, math.min(first + 2 * MAX_FIELDS - 1, n_sets)))
  end
end

-- An idle window that nobody used for so long begins anew, before the sweep comes to it.
local function begin_anew(book, lines)
  local key = book.key
  for _, line in ipairs(lines) do
    local row = line.idle and book.rows[line.counter]
    if row and row.held == 0 and row.spent ~= 0 then
      local ended = tonumber(redis.call('ZSCORE', key.periods, line.counter) or '')
      if ended and ended < book.now then
        drop_grants(key, line.counter, book.now, book.shard, book.epoch)
        redis.call('HDEL', key.spent, line.counter)
        redis.call('ZREM', key.periods, line.counter)
        row.spent, row.spent_text, row.is_new = 0, '0', true
      end
    end
  end
end

-- Whether what is kept of a counter has changed in a way that moves the time until which it is kept.
local function is_kept_anew(row, line)
  return row.spent_changed and (row.is_new or line.rolling > 0)
    or (row.spent_changed or row.held_changed) and (line.idle or line.carries)
end

local function close_book(book)
  if not (book.spent_changed or book.held_changed) then
    return
  end
  local watched = {}
  for n = 1, #book.order do
    local row = book.order[n]
    local line = row.line
    if row.spent_changed or line.idle or line.carries then
      if is_kept_anew(row, line) then
        keep_until(book, line)
        row.is_new = false
      end
      if row.watched then
        row.booked = row.add_spent
        watched[#watched + 1] = row
      end
    end
  end
  if book.spent_changed then
    write_rows(book, book.key.spent, 'spent', false)
  end
  if book.held_changed then
    write_rows(book, book.key.held, 'held', true)
  end
  book.spent_changed, book.held_changed = false, false
  for _, row in ipairs(watched) do
    if row.watched.carries then
      note_booking(book, row.watched, row.booked)
    end
    if row.watched.thresholds then
      fire_thresholds(book, row, book.shard, book.epoch)
    end
    row.watched = false
  end
end

-- What the counters are after the last close of the book, exactly: as the strings that Redis holds.
local function texts_of(book, lines)
  local spent, held, rows = {}, {}, book.rows
  for i = 1, #lines do
    local line = lines[i]
    local row = rows[line.counter]
    -- Only a counter beyond 2^53 that was just changed has no text: HINCRBY knows it exactly, we do not.
    spent[i] = row.spent_text or redis.call('HGET', book.key.spent, line.counter) or '0'
    held[i] = row.held_text or redis.call('HGET', book.key.held, line.counter) or '0'
  end
  return spent, held
end
