-- Hold records: a first line that changes with partial settles, a line for each counter, the caller's entry.
local function format_head(made, last_part, entries, root, units)
  local words = { digits(made), digits(last_part), digits(entries), root }
  for _, u in ipairs(units) do
    words[#words + 1] = u.unit .. ':' .. digits(u.ceiling) .. ':' .. digits(u.expected) .. ':' .. digits(u.known)
  end
  return table.concat(words, ' ')
end

-- The lines of a record or tombstone: each after a newline, none begins with "{".
local function parse_line_texts(text)
  local lines = {}
  for unit, rolling, bucket, ends, options, counter in string.gmatch(text, '\n(%S+) (%d+) (%d+) (%d+) (%S+) (%S+)') do
    local line = {
      unit = unit, rolling = tonumber(rolling), bucket = tonumber(bucket), ends = tonumber(ends), counter = counter,
    }
    if options ~= '-' then
      line.idle = tonumber(string.match(options, 'k(%d+)') or '')
      local cap, ordinal, from, carry_amount = string.match(options, 'c(%d+),(%-?%d+),(%-?%d+):(%d+)')
      if cap then
        line.carries, line.carry_cap, line.ordinal = true, tonumber(cap), tonumber(ordinal)
        line.carry_from, line.carry_amount = tonumber(from), tonumber(carry_amount)
      end
      local percents, amount = string.match(options, 't([%d,]+):(%d+)')
      line.thresholds, line.base_amount = percents or false, tonumber(amount or '0')
    end
    lines[#lines + 1] = line
  end
  return lines
end

local function parse_record(text)
  local head_end = string.find(text, '\n', 1, true)
  local entry_at = string.find(text, '\n{', head_end, true)
  local head = string.sub(text, 1, head_end - 1)
  local made, part, entries, root, rest = string.match(head, '^(%d+) (%d+) (%d+) (%S+) ?(.*)$')
  local units = {}
  for unit, ceiling, expected, known in string.gmatch(rest, '(%S+):(%d+):(%d+):(%-?%d+)') do
    units[#units + 1] = {
      unit = unit, ceiling = tonumber(ceiling), expected = tonumber(expected), known = tonumber(known),
      remaining = math.max(tonumber(ceiling) - tonumber(known), 0),
    }
  end
  local line_texts = string.sub(text, head_end, entry_at - 1)
  return {
    made = tonumber(made), last_part = tonumber(part), entries = tonumber(entries), root = root, units = units,
    lines = parse_line_texts(line_texts), line_texts = line_texts, tail = string.sub(text, head_end), entry = string.sub(text, entry_at + 1),
  }
end
