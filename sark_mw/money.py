"""Money: integer nano-dollars inside, `Decimal` at the edge, one rounding rule (up)."""

from __future__ import annotations

from decimal import ROUND_CEILING, Context, Decimal, InvalidOperation

from sark_mw.errors import MoneyError

NANOS_PER_USD = 1_000_000_000
#: The largest limit: $9.2 billion, below int64's 9.22e18 nanos.
MAX_LIMIT_NANOS = 9_200_000_000 * NANOS_PER_USD
#: The most that one reservation may hold of any unit: Lua's doubles add up to this exactly ($9.0 million).
MAX_HOLD = 2**53 - 1

# 50 digits: no product of a token count and a price rounds before `ceil_nanos` does.
_EXACT = Context(prec=50, rounding=ROUND_CEILING)


def ceil_nanos(nanos: Decimal) -> int:
    """Round a non-negative amount of nanos up to a whole one: the only rounding of money there is."""
    return int(nanos.to_integral_value(rounding=ROUND_CEILING))


def to_decimal(amount: Decimal | int | str) -> Decimal:
    """Read an amount; floats are refused because 0.1 is not one tenth."""
    if isinstance(amount, bool) or not isinstance(amount, (Decimal, int, str)):
        raise MoneyError(f"an amount must be a Decimal, an int or a string, not {type(amount).__name__}")
    try:
        value = Decimal(amount)
    except InvalidOperation:
        raise MoneyError(f"not an amount: {amount!r}") from None
    if not value.is_finite():
        raise MoneyError(f"not a finite amount: {amount!r}")
    return value


def to_nanos(amount: Decimal | int | str) -> int:
    """Convert dollars to nanos, rounding up; negative amounts and amounts over $9.2 billion raise `MoneyError`."""
    value = to_decimal(amount)
    if value < 0:
        raise MoneyError(f"an amount must not be negative: {value:.12g}")
    if value.adjusted() > 10:
        raise MoneyError(f"an amount must not exceed {from_nanos(MAX_LIMIT_NANOS)} USD: {value:.12g}")
    nanos = ceil_nanos(_EXACT.multiply(value, Decimal(NANOS_PER_USD)))
    if nanos > MAX_LIMIT_NANOS:
        raise MoneyError(f"an amount must not exceed {from_nanos(MAX_LIMIT_NANOS)} USD: {value:.12g}")
    return nanos


def from_nanos(nanos: int) -> Decimal:
    """Convert nanos (any sign) to dollars, exactly, without trailing zeros beyond the cents."""
    sign, whole = (-1, -nanos) if nanos < 0 else (1, nanos)
    value = _EXACT.multiply(Decimal(whole).scaleb(-9, _EXACT), Decimal(sign))
    cents = value.quantize(Decimal("0.01"), context=_EXACT)
    return cents if cents == value else value.normalize(_EXACT)


def price_nanos(units: int, usd_per_million: Decimal) -> Decimal:
    """Price `units` (tokens) in nanos, unrounded: add up all parts of a request, then `ceil_nanos` once."""
    return _EXACT.multiply(Decimal(units), _EXACT.multiply(usd_per_million, Decimal(1000)))
