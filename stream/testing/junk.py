"""Frames that must harm no client: everything that has been seen on a kline stream and is no valid kline of it.

Each kind is made from a real candle, so that exactly one thing is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from stream.core.market.candle import HOUR_MS, Candle
from stream.testing.wire import kline_payload


def _changed(candle: Candle, event_ms: int, **fields: object) -> bytes:
    event = msgspec.json.decode(kline_payload(candle, event_ms, True))
    for name, value in fields.items():
        if value is None:
            del event["k"][name]
        else:
            event["k"][name] = value
    return msgspec.json.encode(event)


def _far_ahead(candle: Candle, event_ms: int) -> bytes:
    years = 10 * 8_766 * HOUR_MS
    return kline_payload(msgspec.structs.replace(candle, open_time=candle.open_time + years), event_ms + years, True)


#: What is sent, by the name of the kind; `malformed` accepts these names.
JUNK: dict[str, Callable[[Candle, int], bytes]] = {
    "not_json": lambda c, t: b"this is no JSON",
    "binary": lambda c, t: b"\xff\xfe\x00\x80",
    "empty": lambda c, t: b"",
    "truncated": lambda c, t: kline_payload(c, t, True)[:120],
    "nested": lambda c, t: b"[" * 100_000,
    "unknown_event": lambda c, t: b'{"e":"24hrTicker","E":1,"s":"BTCUSDT"}',
    "missing_field": lambda c, t: _changed(c, t, c=None),
    "nan": lambda c, t: _changed(c, t, h="NaN"),
    "infinity": lambda c, t: _changed(c, t, v="Infinity"),
    "high_below_low": lambda c, t: _changed(c, t, h=str(c.low / 2)),
    "negative_volume": lambda c, t: _changed(c, t, v="-1.00000000"),
    "other_interval": lambda c, t: _changed(c, t, i="1m"),
    "other_symbol": lambda c, t: _changed(c, t, s="XYZUSDT"),
    "error_flat": lambda c, t: b'{"code":2,"msg":"Invalid request","id":77}',
    "error_nested": lambda c, t: b'{"error":{"code":2,"msg":"Invalid request: invalid stream"},"id":78}',
    "off_grid": lambda c, t: _changed(c, t, t=c.open_time + 28 * 60_000 + 14_789),
    "closed_short": lambda c, t: _changed(c, t, T=c.open_time + 900_000),
    "closed_early": lambda c, t: kline_payload(c, c.open_time + 60_000, True),
    "far_ahead": _far_ahead,
    # Larger than any frame of this exchange: the client may end the connection over it.
    "oversize": lambda c, t: b'{"e":"kline","x":"' + b"x" * 5_000_000 + b'"}',
}
