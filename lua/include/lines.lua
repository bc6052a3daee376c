-- Lines as the wrapper sends them: six arguments each. Returns them and the index of the next argument.
--   counter unit amount starts_ms ends_ms kind; kind: "e" enforced or "s" shadow, then rolling_ms and bucket_ms where it rolls
local function parse_lines(argv, at, count)
  local lines = {}
  for i = 1, count do
    local kind = argv[at + 5]
    local line = {
      counter = argv[at], unit = argv[at + 1], amount = tonumber(argv[at + 2]), starts = tonumber(argv[at + 3]),
      ends = tonumber(argv[at + 4]), rolling = 0, bucket = 0, enforce = string.byte(kind) == 101, row = false,
    }
    if #kind > 1 then
      local rolling, bucket = string.match(kind, '(%d+) (%d+)')
      line.rolling, line.bucket = tonumber(rolling), tonumber(bucket)
    end
    lines[i] = line
    at = at + 6
  end
  return lines, at
end
