-- Integers only: a Lua number below 2^53 written without exponent or fraction.
local MAX_EXACT = 9007199254740991
local MAX_COUNTER = 9200000000000000000
-- Fields of one command: Lua unpacks fewer than 8,000 words, and a call that fails half way leaves what it wrote before.
local MAX_FIELDS = 2000

local function digits(number)
  return string.format('%d', number)
end
