"""Binance's spot dialect from the exchange's side: candles in, its exact frames, rows and errors out.

The counterpart of `stream.core.market.binance` and deliberately separate from it: a shared mistake would
make the two agree and both be wrong. Decimals are strings that read back as the same float.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec

from stream.core.market.candle import HOUR_MS, INTERVAL, Candle

#: Every interval of the dialect; this exchange has candles of one of them and sends nothing for the rest.
INTERVALS = ("1s", "1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "3d", "1w", "1M")

Json = dict[str, Any]


def decimal(value: float) -> str:
    """Returns a number with eight decimals, as the exchange writes it; more only where they would change the float."""
    text = f"{value:.8f}"
    return text if float(text) == value else format(Decimal(repr(value)), "f")


def kline_payload(candle: Candle, event_ms: int, closed: bool, microseconds: bool = False) -> bytes:
    """Returns one kline event in raw framing."""
    v = _with_stand_ins(candle)
    first_trade = candle.open_time // HOUR_MS * 10_000_000 if v.trades else -1
    return msgspec.json.encode(
        {
            "e": "kline",
            "E": event_ms * 1_000 if microseconds else event_ms,
            "s": candle.symbol,
            "k": {
                "t": _open_stamp(candle, microseconds),
                "T": _close_stamp(candle, microseconds),
                "s": candle.symbol,
                "i": INTERVAL,
                "f": first_trade,
                "L": first_trade + v.trades - 1 if v.trades else -1,
                "o": decimal(candle.open),
                "c": decimal(candle.close),
                "h": decimal(candle.high),
                "l": decimal(candle.low),
                "v": decimal(candle.volume),
                "n": v.trades,
                "x": closed,
                "q": decimal(v.quote_volume),
                "V": decimal(v.taker_buy_base),
                "Q": decimal(v.taker_buy_quote),
                "B": "0",
            },
        }
    )


def combined(stream: str, payload: bytes) -> bytes:
    """Returns a raw frame in combined framing."""
    return b'{"stream":' + msgspec.json.encode(stream) + b',"data":' + payload + b"}"


def kline_row(candle: Candle, microseconds: bool = False) -> list[int | str]:
    """Returns one row of GET /api/v3/klines. Unlike on the socket, the order is open, high, low, close."""
    v = _with_stand_ins(candle)
    return [
        _open_stamp(candle, microseconds),
        decimal(candle.open),
        decimal(candle.high),
        decimal(candle.low),
        decimal(candle.close),
        decimal(candle.volume),
        _close_stamp(candle, microseconds),
        decimal(v.quote_volume),
        v.trades,
        decimal(v.taker_buy_base),
        decimal(v.taker_buy_quote),
        "0",
    ]


def stream_name(symbol: str) -> str:
    return f"{symbol.lower()}@kline_{INTERVAL}"


def refusal(code: int, message: str, request_id: int | str | None = None) -> bytes:
    """Returns an error for the socket, flat as documented."""
    return msgspec.json.encode({"code": code, "msg": message, "id": request_id})


def accepted(result: Any, request_id: int | str | None) -> bytes:
    return msgspec.json.encode({"result": result, "id": request_id})


class _Volumes(msgspec.Struct, frozen=True):
    quote_volume: float
    trades: int
    taker_buy_base: float
    taker_buy_quote: float


def _with_stand_ins(candle: Candle) -> _Volumes:
    """Returns a candle's volumes, with plausible values for those that it lacks.

    A tape may have OHLCV only, and the wire format has no way to omit the rest.
    """
    quote = candle.volume * candle.close if candle.quote_volume is None else candle.quote_volume
    trades = int(candle.volume > 0) if candle.trades is None else candle.trades
    taker = candle.volume / 2 if candle.taker_buy_base is None else candle.taker_buy_base
    taker_quote = round(quote * taker / candle.volume, 8) if candle.volume else 0.0
    return _Volumes(quote, trades, taker, taker_quote)


def _open_stamp(candle: Candle, microseconds: bool) -> int:
    return candle.open_time * 1_000 if microseconds else candle.open_time


def _close_stamp(candle: Candle, microseconds: bool) -> int:
    return (candle.open_time + HOUR_MS) * 1_000 - 1 if microseconds else candle.close_time
