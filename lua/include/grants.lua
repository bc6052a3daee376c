-- What a limit allows beside its definition: top-ups, overrides, what was carried over. Fields of the grants hash:
--   <counter> "<top_up> <count>", <base>|override "<amount> <until_ms> <count>", <counter>|carried "<amount>",
--   <base>|carry "<ordinal> <counter> <slot> <cap> <before_ordinal> <before_counter> <before_slot> <gap>" ("-" for none)
-- A slot is "a<amount>", the amount of a period that may still change, or "r<rest>", what it left for good.
-- The gap is what was spent in periods between the two, by bookings that came without a reserve in them.
local KEEP_CARRY_MS = 400 * 86400000

-- Name a counter's limit and scope over all periods: its name without the period.
local function base_of(counter)
  local head, since = string.match(counter, '^(.*)|[^|]*|(%d+)$')
  return head and (head .. '|' .. since) or counter
end

-- The override in force, or nil; the top-ups.
local function parse_grants(now, top_up, override)
  local amount, until_ms = string.match(override or '', '^(%d+) (%d+) ')
  local in_force = amount and now < tonumber(until_ms)
  return in_force and tonumber(amount) or nil, tonumber(string.match(top_up or '', '^%-?%d+') or '0')
end

-- What a counter was topped up with, and what was carried into it, as they are written.
local function granted_to(key, counter)
  local found = redis.call('HMGET', key.grants, counter, counter .. '|carried')
  return tonumber(string.match(found[1] or '', '^%-?%d+') or '0') + tonumber(found[2] or '0')
end

-- What a period leaves. While its counter lives this is reckoned anew each time: what it still holds counts as spent, and
-- what is corrected late changes what is left to carry.
local function rest_of(key, counter, slot, unwritten)
  local amount = tonumber(string.sub(slot, 2))
  if string.byte(slot) == 114 then
    return amount
  end
  local spent = tonumber(redis.call('HGET', key.spent, counter) or '0')
  local held = tonumber(redis.call('HGET', key.held, counter) or '0')
  return math.max(amount + granted_to(key, counter) + (unwritten or 0) - spent - held, 0)
end

local function parse_carry(text)
  local ordinal, counter, slot, cap, b_ordinal, b_counter, b_slot, gap =
    string.match(text or '', '^(%-?%d+) (%S+) (%S+) (%d+) (%S+) (%S+) (%S+) (%-?%d+)$')
  if not ordinal then
    return nil
  end
  return {
    ordinal = tonumber(ordinal), counter = counter, slot = slot, cap = tonumber(cap),
    before_ordinal = tonumber(b_ordinal), before_counter = b_counter, before_slot = b_slot, gap = tonumber(gap),
  }
end

local function format_carry(c)
  local before = { '-', '-', '-' }
  if c.before_ordinal then
    before = { digits(c.before_ordinal), c.before_counter, c.before_slot }
  end
  local gap = digits(c.before_ordinal and c.gap or 0)
  return table.concat({ digits(c.ordinal), c.counter, c.slot, digits(c.cap), before[1], before[2], before[3], gap }, ' ')
end

-- What the period before leaves to this one: the whole periods between in which nobody asked add the amount of this one.
local function carried_into(key, c, amount)
  local carried = math.min(c.cap, rest_of(key, c.before_counter, c.before_slot, c.unwritten))
  local between = c.ordinal - c.before_ordinal - 1
  if between > 0 then
    carried = math.min(c.cap, math.max(carried + between * amount - c.gap, 0))
  end
  return carried
end

-- Write down for good what was carried into the period of a record.
local function finish_carry(key, c, carried, now, shard, epoch)
  redis.call('HSET', key.grants, c.counter .. '|carried', digits(carried))
  if carried > 0 then
    append_event(key, shard, epoch, now, 'rollover', c.counter, c.counter .. '#rollover', {
      counter = c.counter, amount = digits(carried), ordinal = digits(c.ordinal),
    })
  end
end

-- Turn a carry record to a line's period: the one that it named becomes the one before.
local function turn_carry(book, c, line, write)
  if c and c.ordinal < line.carry_from then
    -- Of a time before anything was carried over.
    c = nil
  end
  local key, unwritten = book.key, 0
  if c and c.before_ordinal then
    unwritten = carried_into(key, c, tonumber(string.sub(c.slot, 2)))
    if write then
      finish_carry(key, c, unwritten, book.now, book.shard, book.epoch)
      unwritten = 0
    end
  end
  return {
    ordinal = line.ordinal, counter = line.counter, slot = 'a' .. digits(line.carry_amount or line.base_amount), cap = line.carry_cap,
    before_ordinal = c and c.ordinal, before_counter = c and c.counter, before_slot = c and c.slot,
    unwritten = unwritten, gap = 0,
  }
end

-- Keep a carry record, and see that the sweep looks at its period's counter though nothing is ever spent on it.
local function keep_carry(book, field, c, line)
  local key = book.key
  redis.call('HSET', key.grants, field, format_carry(c))
  redis.call('ZADD', key.periods, 'NX', digits(line.ends + book.retention), line.counter)
  redis.call('ZADD', key.periods, digits(line.ends + KEEP_CARRY_MS), field)
end

-- Something was booked on a line that carries over, perhaps in a period in which nobody reserved.
local function note_booking(book, line, amount)
  local field = base_of(line.counter) .. '|carry'
  local c = parse_carry(redis.call('HGET', book.key.grants, field))
  if not c or line.ordinal > c.ordinal then
    keep_carry(book, field, turn_carry(book, c, line, true), line)
  elseif c.before_ordinal and c.before_ordinal < line.ordinal and line.ordinal < c.ordinal then
    c.gap = c.gap + amount
    redis.call('HSET', book.key.grants, field, format_carry(c))
  end
end

-- What the period of a record has used beyond its own amount and top-ups: of what was carried into it.
local function used_beyond(key, c)
  if string.byte(c.slot) == 114 then
    return 0
  end
  local spent = tonumber(redis.call('HGET', key.spent, c.counter) or '0')
  local held = tonumber(redis.call('HGET', key.held, c.counter) or '0')
  local top_up = tonumber(string.match(redis.call('HGET', key.grants, c.counter) or '', '^%-?%d+') or '0')
  return math.max(spent + held - tonumber(string.sub(c.slot, 2)) - top_up, 0)
end

-- Reckon what is carried into a line's period; `write` takes the turn of periods down.
local function carry_over(book, line, write)
  local key, field = book.key, base_of(line.counter) .. '|carry'
  local text = redis.call('HGET', key.grants, field)
  local c = parse_carry(text)
  local carried = tonumber(redis.call('HGET', key.grants, line.counter .. '|carried') or '0')
  if c and line.ordinal < c.ordinal then
    -- The clock went back: what was carried on, and is used there, is not there a second time. Nor are periods between idle any more.
    if write and c.before_ordinal and line.ordinal > c.before_ordinal then
      c.gap = math.max(c.gap, (c.ordinal - c.before_ordinal - 1) * tonumber(string.sub(c.slot, 2)))
      redis.call('HSET', key.grants, field, format_carry(c))
    end
    local before = c.before_ordinal or c.ordinal - 1
    if line.ordinal < before or string.byte(c.slot) == 114 then
      -- Further back than can be told: what this period left, a cap at most, went on for good and may be spent.
      return carried - math.max(c.cap, line.carry_cap)
    end
    return carried - used_beyond(key, c)
  end
  if not c or line.ordinal > c.ordinal then
    c = turn_carry(book, c, line, write)
    if write then
      keep_carry(book, field, c, line)
      text = format_carry(c)
    end
  end
  c.slot, c.cap = 'a' .. digits(line.base_amount), line.carry_cap
  if c.before_ordinal then
    carried = carried_into(key, c, line.base_amount)
    if string.byte(c.before_slot) == 114 and write then
      finish_carry(key, c, carried, book.now, book.shard, book.epoch)
      c.before_ordinal = nil
    end
  end
  if write and format_carry(c) ~= text then
    redis.call('HSET', key.grants, field, format_carry(c))
  end
  return carried
end

-- Turn the amounts of lines into the amounts in effect. `has_grants` of the shard's meta spares most shards the look.
local function apply_grants(book, lines, has_grants, write)
  local found = {}
  if has_grants then
    local fields = {}
    for n, line in ipairs(lines) do
      fields[2 * n - 1], fields[2 * n] = line.counter, base_of(line.counter) .. '|override'
    end
    for first = 1, #fields, 2 * MAX_FIELDS do
      local some = redis.call('HMGET', book.key.grants, unpack(fields, first, math.min(first + 2 * MAX_FIELDS - 1, #fields)))
      for n = 1, #some do
        found[first + n - 1] = some[n]
      end
    end
  end
  local changed = false
  for n = 1, #lines do
    local line = lines[n]
    if line.amount >= 0 and (has_grants or line.carries) then
      local override, topped = parse_grants(book.now, found[2 * n - 1] or nil, found[2 * n] or nil)
      local amount, carried = override or line.amount, 0
      if line.carries and book.now >= line.starts and (line.ends == 0 or book.now < line.ends) then
        carried = carry_over(book, line, write)
      end
      line.amount = math.min(math.max(amount + topped + carried, 0), MAX_COUNTER)
      changed = true
    end
  end
  return changed
end

-- A counter is about to be deleted: keep what a carry record needs of it, and delete what was granted to it.
local function drop_grants(key, counter, now, shard, epoch)
  local field = base_of(counter) .. '|carry'
  local c = parse_carry(redis.call('HGET', key.grants, field))
  if c and c.before_ordinal and (c.before_counter == counter or c.counter == counter) then
    c.before_slot = 'r' .. digits(rest_of(key, c.before_counter, c.before_slot))
    finish_carry(key, c, carried_into(key, c, tonumber(string.sub(c.slot, 2))), now, shard, epoch)
    c.before_ordinal = nil
  end
  if c then
    c.slot = c.counter == counter and 'r' .. digits(rest_of(key, counter, c.slot)) or c.slot
    redis.call('HSET', key.grants, field, format_carry(c))
  end
  redis.call('HDEL', key.grants, counter, counter .. '|carried', counter .. '|fired', counter .. '|repaired')
end
