-- Lines as the wrapper sends them: six arguments each. Returns them and the index of the next argument.
--   counter unit amount starts_ms ends_ms kind; kind: "e" enforced, "s" shadow or "o" soft, then words for what it has:
--   r<rolling_ms>,<bucket_ms>  k<idle_ms>  c<cap>,<ordinal>,<from ordinal> carries over  t<percent>,... thresholds
local function parse_kind(line, kind)
  for word, value in string.gmatch(kind, ' (%a)(%S+)') do
    local first, second, third = string.match(value, '^(%d+),?(%-?%d*),?(%-?%d*)')
    if word == 'r' then
      line.rolling, line.bucket = tonumber(first), tonumber(second)
    elseif word == 'k' then
      line.idle = tonumber(first)
    elseif word == 'c' then
      line.carry_cap, line.ordinal, line.carry_from, line.carries = tonumber(first), tonumber(second), tonumber(third), true
      line.base_amount = line.amount
    elseif word == 't' then
      line.thresholds, line.base_amount = value, line.amount
    end
  end
end

local function parse_lines(argv, at, count)
  local lines = {}
  for i = 1, count do
    local kind, amount = argv[at + 5], tonumber(argv[at + 2])
    -- All fields at once, and eight of them: a table that grows is laid out anew, and one of nine has room for sixteen.
    local line = {
      counter = argv[at], unit = argv[at + 1], amount = amount, starts = tonumber(argv[at + 3]),
      ends = tonumber(argv[at + 4]), rolling = 0, enforce = kind == 'e', row = false,
    }
    if kind ~= 'e' then
      line.enforce, line.soft = string.byte(kind) == 101, string.byte(kind) == 111
      parse_kind(line, kind)
    end
    lines[i] = line
    at = at + 6
  end
  return lines, at
end
