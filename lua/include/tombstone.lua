-- Tombstones: what is remembered of resolved reservations, in two generations.
local function rotate_tombstones(key, now, since, retention)
  since = tonumber(since or '0')
  if now < since then
    -- The clock went back: the generation begins anew, but forgets nothing.
    redis.call('HSET', key.meta, 'done_since_ms', digits(now))
    return
  elseif now - since <= retention then
    return
  end
  if redis.call('EXISTS', key.done_before) == 1 then
    redis.call('UNLINK', key.done_before)
  end
  if redis.call('EXISTS', key.done) == 1 then
    redis.call('RENAME', key.done, key.done_before)
  end
  redis.call('HSET', key.meta, 'done_since_ms', digits(now))
end

-- One tombstone or nil per id.
local function read_tombstones(key, ids)
  local found = redis.call('HMGET', key.done, unpack(ids))
  local before = redis.call('HMGET', key.done_before, unpack(ids))
  for n = 1, #ids do
    found[n] = found[n] or before[n]
  end
  return found
end

-- First line: resolution, caller's last part, entries, made, then per unit what is known and what was estimated on top.
-- The lines of the reservation follow where a correction may still come (expired, released).
local function parse_tombstone(text)
  local head, tail = string.match(text, '^([^\n]*)(.*)$')
  local resolution, part, entries, made, rest = string.match(head, '^(%S+) (%d+) (%d+) (%d+) ?(.*)$')
  local known, estimated = {}, {}
  for unit, sure, guessed in string.gmatch(rest, '(%S+):(%-?%d+):(%d+)') do
    known[unit], estimated[unit] = tonumber(sure), tonumber(guessed)
  end
  return {
    resolution = resolution, last_part = tonumber(part), entries = tonumber(entries), made = tonumber(made),
    known = known, estimated = estimated, tail = tail,
  }
end

local function format_tombstone(stone)
  local words = { stone.resolution, digits(stone.last_part), digits(stone.entries), digits(stone.made) }
  for unit, amount in pairs(stone.known) do
    words[#words + 1] = unit .. ':' .. digits(amount) .. ':' .. digits(stone.estimated[unit] or 0)
  end
  return table.concat(words, ' ') .. (stone.resolution == 'settled' and '' or stone.tail)
end
