-- Hold what a group of requests needs on every limit that each touches: each request all or nothing, in order.
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
-- ARGV[1] epoch
-- ARGV[2] version
-- ARGV[3] retention_ms
-- ARGV[4] shard
-- ARGV[5] n_lines, then per line: counter unit amount starts_ms ends_ms kind
-- then n_items, and per item: id root lease_ms made_ms needs lines tail key
--   made_ms: 0, or that of a hold whose data was lost: held again whatever the limits say, less what its parts booked
--   needs: words unit:held:expected:0; lines: indices of the lines above, * for all of them; tail: the lines and the entry as a record ends
--   key: empty, or "<key> <fingerprint>": while another reservation with this key is held or settled, none is made
-- Returns {code, now_ms, epoch, version, swept, {spent of each line before the group}, {held}, {answer per item}, {amount}}
--   code ok: amounts in effect of the lines, none where they are as they came; answers are
--     held, booked, repeated <held <made_ms>|settled|released|expired>, wrong_period, exceeds_limit <line> ...,
--     each with " shadow <line> ..." where shadow lines exceeded; in_flight <id>, already_done <id>, key_reused
--   code no_epoch: the data is gone or was never begun; nothing changed
--   code stale_limits: epoch or version differ from the caller's; nothing changed but the sweep

-- @include keys clock numbers outbox tombstone record lines grants thresholds book sweep

local key = name_keys(KEYS)
local now = now_ms()
local meta = redis.call('HMGET', key.meta, 'epoch', 'version', 'done_since_ms', 'grants')
if not meta[1] then
  return { 'no_epoch', now, '', '0', 0, {}, {}, {}, {} }
end
local retention = tonumber(ARGV[3])
rotate_tombstones(key, now, meta[3], retention)
local book = open_book(key, now, retention, ARGV[4], meta[1])
local swept = sweep_holds(book, ARGV[4], meta[1], SWEEP_MAX)
if meta[1] ~= ARGV[1] or meta[2] ~= ARGV[2] then
  close_book(book)
  return { 'stale_limits', now, meta[1], meta[2], swept, {}, {}, {}, {} }
end

local lines, at = parse_lines(ARGV, 6, tonumber(ARGV[5]))
load_rows(book, lines)
begin_anew(book, lines)
evict_all(book, lines)
-- What the sweep and the eviction changed is written and counted before anything is decided.
close_book(book)
for n = 1, #lines do
  lines[n].row = book.rows[lines[n].counter]
end
local amounts = {}
if apply_grants(book, lines, meta[4], true) then
  for n, line in ipairs(lines) do
    amounts[n] = digits(line.amount)
  end
end
local spent_before, held_before = texts_of(book, lines)

local n_items = tonumber(ARGV[at])
local items, ids = {}, {}
for n = 1, n_items do
  local i = at + 1 + (n - 1) * 8
  items[n] = {
    id = ARGV[i], root = ARGV[i + 1], lease = tonumber(ARGV[i + 2]), made = tonumber(ARGV[i + 3]),
    needs = ARGV[i + 4], lines = ARGV[i + 5], tail = ARGV[i + 6],
    key = ARGV[i + 7],
  }
  ids[n] = ARGV[i]
end
local live = redis.call('HMGET', key.holds, unpack(ids))
local dead = read_tombstones(key, ids)

-- Items often touch the same lines: look each set up once.
local sets = {}
local function set_of(words)
  local set = sets[words]
  if not set then
    local own, index, count, in_period = lines, false, 0, true
    if words ~= '*' then
      own, index = {}, {}
      for word in string.gmatch(words, '%d+') do
        count = count + 1
        own[count], index[count] = lines[tonumber(word)], word
      end
    end
    for n = 1, #own do
      local line = own[n]
      if now < line.starts or (line.ends > 0 and now >= line.ends) then
        in_period = false
      end
    end
    set = { lines = own, index = index, in_period = in_period }
    sets[words] = set
  end
  return set
end

-- The lines that this need would carry past their amount: enforced ones and shadow ones, as words.
local function exceeded_by(set, need)
  local refusing, shadow
  for n = 1, #set.lines do
    local line = set.lines[n]
    local amount = need[line.unit] or 0
    if amount > 0 then
      local row = line.row
      local total = row.spent + (row.held + row.add_spent + row.add_held + amount)
      if total > MAX_COUNTER or (line.enforce and line.amount >= 0 and total > line.amount) then
        refusing = (refusing or '') .. ' ' .. (set.index and set.index[n] or digits(n))
      elseif line.amount >= 0 and total > line.amount and not line.soft then
        shadow = (shadow or ' shadow') .. ' ' .. (set.index and set.index[n] or digits(n))
      end
    end
  end
  return refusing, shadow or ''
end

local new_holds, new_leases, fresh = {}, {}, {}

-- The head of a hold's record: anew, or with the parts that the ledger knew of before the data was lost.
local function head_of(item, made)
  local stone = item.stone
  if not stone then
    return digits(made) .. ' 0 0 ' .. item.root .. ' ' .. item.needs
  end
  redis.call('HDEL', key.done, item.id)
  redis.call('HDEL', key.done_before, item.id)
  local units, seen = {}, {}
  for unit, ceiling, expected in string.gmatch(item.needs, '(%S+):(%d+):(%d+):%d+') do
    units[#units + 1] = { unit = unit, ceiling = tonumber(ceiling), expected = tonumber(expected), known = stone.known[unit] or 0 }
    seen[unit] = true
  end
  for unit, amount in pairs(stone.known) do
    if not seen[unit] then
      units[#units + 1] = { unit = unit, ceiling = 0, expected = 0, known = amount }
    end
  end
  return format_head(made, stone.last_part, stone.entries, item.root, units)
end

local function admit(item, set, need)
  for n = 1, #set.lines do
    local line = set.lines[n]
    local amount = need[line.unit] or 0
    if amount > 0 and item.lease > 0 then
      change_held(book, line, amount)
    elseif amount > 0 then
      spend(book, line, now, amount)
    end
  end
  local made = item.made > 0 and item.made or now
  if item.lease > 0 then
    new_holds[#new_holds + 1] = item.id
    new_holds[#new_holds + 1] = head_of(item, made) .. item.tail
    new_leases[#new_leases + 1] = digits(now + item.lease)
    new_leases[#new_leases + 1] = item.id
    return 'held'
  end
  redis.call('HSET', key.done, item.id, format_tombstone({
    resolution = 'settled', last_part = 1, entries = 1, made = now, known = {}, estimated = {}, tail = '',
  }))
  local entry = string.match(item.tail, '\n({.*)$')
  if entry ~= '{}' then
    local booked = string.gsub(item.needs, '(%S+:%d+):%d+:%d+', '%1')
    append_entry(key, ARGV[4], meta[1], {
      id = item.id, part = 1, kind = 'settle', root = item.root, made = now, at = now, estimated = false, late = false,
      booked = booked, entry = entry,
    })
  end
  return 'booked'
end

-- Whether another reservation with this idempotency key stands in the way; else the key names this one if it is made.
local fresh_keys = {}
local function same_key(item)
  if item.key == '' then
    return nil
  end
  local name, fingerprint = string.match(item.key, '^(%S+) (%S+)$')
  item.key_field, item.fingerprint = 'key ' .. name, fingerprint
  local seen = fresh_keys[item.key_field] or read_tombstones(key, { item.key_field })[1]
  if not seen then
    return nil
  end
  local before, id = string.match(seen, '^(%S+) (%S+)$')
  if id == item.id then
    return nil
  elseif before ~= fingerprint then
    return 'key_reused'
  elseif fresh[id] or redis.call('HEXISTS', key.holds, id) == 1 then
    return fresh[id] == 'settled' and 'already_done ' .. id or 'in_flight ' .. id
  end
  local resolution = string.match(read_tombstones(key, { id })[1] or '', '^%S+')
  if resolution == 'settled' then
    return 'already_done ' .. id
  end
  return resolution == 'held' and 'in_flight ' .. id or nil
end

local function decide(n, item)
  if fresh[item.id] then
    return 'repeated ' .. fresh[item.id]
  end
  if live[n] then
    return 'repeated held ' .. string.match(live[n], '^%d+')
  end
  if dead[n] then
    local stone = parse_tombstone(dead[n])
    if stone.resolution ~= 'held' then
      return 'repeated ' .. stone.resolution
    elseif item.made == 0 or item.lease == 0 then
      return 'repeated held ' .. digits(stone.made)
    end
    item.stone = stone
  end
  local other = same_key(item)
  if other then
    return other
  end
  local set = set_of(item.lines)
  if item.made == 0 and not set.in_period then
    return 'wrong_period'
  end
  local need = {}
  for unit, held in string.gmatch(item.needs, '(%S+):(%d+):%d+:%d+') do
    need[unit] = math.max(tonumber(held) - (item.stone and item.stone.known[unit] or 0), 0)
  end
  local refusing, shadow = exceeded_by(set, need)
  if refusing and item.made == 0 then
    return 'exceeds_limit' .. refusing .. shadow
  end
  local answer = admit(item, set, need)
  fresh[item.id] = answer == 'held' and 'held ' .. digits(now) or 'settled'
  if item.key ~= '' then
    fresh_keys[item.key_field] = item.fingerprint .. ' ' .. item.id
    redis.call('HSET', key.done, item.key_field, fresh_keys[item.key_field])
  end
  return answer .. shadow
end

local answers = {}
for n, item in ipairs(items) do
  answers[n] = decide(n, item)
end

close_book(book)
if #new_holds > 0 then
  redis.call('HSET', key.holds, unpack(new_holds))
  redis.call('ZADD', key.leases, unpack(new_leases))
end
return { 'ok', now, meta[1], meta[2], swept, spent_before, held_before, answers, amounts }
