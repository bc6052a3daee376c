-- Integers only: a Lua number below 2^53 written without exponent or fraction.
local MAX_EXACT = 9007199254740991
local MAX_COUNTER = 9200000000000000000

local function digits(number)
  return string.format('%.0f', number)
end
