"""Symbols: the exchange's name of what people call a pair, by one rule for every flag, setting, file and column."""

from __future__ import annotations

import re

from stream.core.market.binance import SYMBOL_PATTERN

#: BTCUSDT, or base and quote with one separator between: BTC/USDT, BTC-USDT, BTC_USDT. A quote may end in a digit
#: (USD1) but begins with a letter: BTCUSDT_240329 is a future.
_SPELLED = re.compile(r"([^\W_]+)(?:[/_-]([^\W\d_][^\W_]*))?")
#: Suffixes that exchanges give to contracts that are not spot pairs.
_DERIVATIVES = ("PERP", "SWAP", "FUTURES")


class SymbolError(ValueError):
    """The text names no spot pair. The message is one line with the text and the right spelling."""


def parse(text: str) -> str:
    """Returns the exchange's name of a spot pair, in capitals, from any spelling of it. Raises `SymbolError` if the
    text names none."""
    spelled = _SPELLED.fullmatch(text.strip())
    if spelled is not None and (spelled[2] or "").upper() not in _DERIVATIVES:
        symbol = (spelled[1] + (spelled[2] or "")).upper()
        if SYMBOL_PATTERN.fullmatch(symbol):
            return symbol
    raise SymbolError(f"{text!r} is no symbol of a spot pair; write it like BTCUSDT or BTC/USDT")


def parse_list(text: str) -> tuple[str, ...]:
    """Returns the symbols of a comma-separated list, each once, in order. Raises `SymbolError` as `parse` does."""
    return tuple(dict.fromkeys(parse(part) for part in text.split(",") if part.strip()))
