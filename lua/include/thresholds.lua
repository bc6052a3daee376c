-- Thresholds: percents of a limit's amount at which its period tells, once each.

-- The highest threshold that `spent` has reached of an amount in tenths, 0 for none. Whole numbers only: 0.9 is none.
local function reached(thresholds, spent, tenths)
  local highest = 0
  for word in string.gmatch(thresholds, '%d+') do
    local percent = tonumber(word)
    if tenths <= 0 and spent > 0 or tenths > 0 and spent * 1000 >= percent * tenths then
      highest = percent
    end
  end
  return highest
end

-- Tell of every threshold that a booking has carried a row past; the caller has just written the row's counter.
local function fire_thresholds(book, row, shard, epoch)
  local key, line, counter = book.key, row.watched, row.watched.counter
  local found = redis.call('HMGET', key.grants, counter, base_of(counter) .. '|override', counter .. '|carried', counter .. '|fired')
  local override, topped = parse_grants(book.now, found[1], found[2])
  local carried = tonumber(found[3] or '0')
  if line.carries then
    local c = parse_carry(redis.call('HGET', key.grants, base_of(counter) .. '|carry'))
    if c and c.counter == counter and c.before_ordinal then
      carried = carried_into(key, c, tonumber(string.sub(c.slot, 2)))
    end
  end
  local amount = (override or line.base_amount) + topped + carried
  local fired, now_reached = tonumber(found[4] or '0'), reached(line.thresholds, row.spent, amount * 10)
  -- On a window that rolls the mark falls with the sum, once that is well below: else it would tell again and again.
  local falls_to = line.rolling > 0 and reached(line.thresholds, row.spent, amount * 9) or fired
  if now_reached > fired then
    for word in string.gmatch(line.thresholds, '%d+') do
      local percent = tonumber(word)
      if percent > fired and percent <= now_reached then
        -- A window without periods may come to the same threshold again.
        local again = (line.rolling > 0 or line.idle) and ('#' .. digits(book.now)) or ''
        append_event(key, shard, epoch, book.now, 'threshold', counter, counter .. '#' .. word .. again, {
          counter = counter, percent = percent, spent = digits(row.spent), amount = digits(amount),
        })
      end
    end
  end
  if now_reached > fired or falls_to < fired then
    redis.call('HSET', key.grants, counter .. '|fired', digits(math.max(now_reached, falls_to)))
  end
end
