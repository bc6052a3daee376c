-- Expiry: a hold whose lease ended is booked at max(known, expected), flagged as estimated.
local SWEEP_MAX = 64
local MAX_LEASE_MS = 86400000

local function expire_hold(book, shard, epoch, id, text)
  local key, now = book.key, book.now
  local record = parse_record(text)
  local extra, remaining, known, booked = {}, {}, {}, {}
  for _, u in ipairs(record.units) do
    extra[u.unit] = math.max(u.expected - u.known, 0)
    known[u.unit] = u.known
    remaining[u.unit] = u.remaining
    if extra[u.unit] > 0 then
      booked[#booked + 1] = u.unit .. ':' .. digits(extra[u.unit])
    end
  end
  load_rows(book, record.lines)
  for _, line in ipairs(record.lines) do
    change_held(book, line, -(remaining[line.unit] or 0))
    spend(book, line, record.made, extra[line.unit] or 0)
  end
  redis.call('HDEL', key.holds, id)
  redis.call('HSET', key.done, id, format_tombstone({
    resolution = 'expired', last_part = record.last_part, entries = record.entries + 1, made = record.made,
    known = known, estimated = extra, tail = record.line_texts,
  }))
  append_entry(key, shard, epoch, {
    id = id, part = record.entries + 1, kind = 'expire', root = record.root, made = record.made, at = now,
    estimated = true, late = false, booked = table.concat(booked, ' '), entry = record.entry,
  })
end

-- Changes the book; the caller closes it.
local function sweep_holds(book, shard, epoch, most)
  local key, now = book.key, book.now
  local ids = redis.call('ZRANGEBYSCORE', key.leases, '-inf', '(' .. digits(now), 'LIMIT', '0', digits(most))
  if #ids == 0 then
    -- A lease that ends later than any can was made while the clock was ahead.
    ids = redis.call('ZREVRANGEBYSCORE', key.leases, '+inf', '(' .. digits(now + 2 * MAX_LEASE_MS), 'LIMIT', '0', digits(most))
  end
  if #ids == 0 then
    return 0
  end
  local texts = redis.call('HMGET', key.holds, unpack(ids))
  for n, id in ipairs(ids) do
    if texts[n] then
      expire_hold(book, shard, epoch, id, texts[n])
    end
  end
  redis.call('ZREM', key.leases, unpack(ids))
  return #ids
end
