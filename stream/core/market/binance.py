"""Binance's spot wire format, sans-I/O: encodes names, URLs and control frames, decodes frames and REST answers.

Everything that knows how Binance writes a thing is in this file; nothing here knows when or where
the bytes travelled. Source: binance-spot-api-docs, web-socket-streams.md and rest-api.md.

A frame that cannot be used raises `WireError`, whose `reason` is a label for a counter. It is the exchange's
fault, so the caller counts it and reads on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import msgspec

from stream.core.market.candle import EARLIEST_MS, HOUR_MS, INTERVAL, LATEST_MS, Candle, CandleError, check, to_ms
from stream.errors import InputError

#: Rows in one REST page.
KLINES_PAGE = 1_000
#: Most streams in one URL, which stays well under the ~8,000 characters that the exchange accepts.
STREAMS_PER_URL = 100

#: All that decoding can raise: bytes that are not UTF-8 and arrays nested too deeply do not raise
#: `DecodeError`, and must not end the reader either.
UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)

SYMBOL_PATTERN = re.compile(r"\w{2,40}")


class WireError(ValueError):
    """The exchange sent something unusable. `reason` is a short code, safe as a metric label."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class UnknownSymbolError(InputError, LookupError):
    """The exchange answered that it does not list the symbol (code -1121)."""


class KlineUpdate(msgspec.Struct, frozen=True, gc=False):
    """One kline frame: the candle as of `event_time` (ms); final only if `closed`."""

    candle: Candle
    event_time: int
    closed: bool


class Reply(msgspec.Struct, frozen=True):
    """The answer to a control frame; `error` is empty when it was accepted."""

    id: int | str | None
    result: tuple[str, ...] | None = None
    error: str = ""


class ServerShutdown(msgspec.Struct, frozen=True):
    """The exchange will drop this connection soon: open another one now."""

    event_time: int


Frame = KlineUpdate | Reply | ServerShutdown


class _Kline(msgspec.Struct, gc=False):
    t: int
    T: int
    s: str
    i: str
    o: float
    c: float
    h: float
    l: float  # noqa: E741 - the exchange's own key
    v: float
    n: int
    x: bool
    q: float
    V: float


class _Event(msgspec.Struct, gc=False):
    e: str = ""
    E: int = 0
    s: str = ""
    k: msgspec.Raw = msgspec.Raw(b"")


class _KlineEvent(msgspec.Struct, gc=False):
    """An event of which nothing is converted but what is in its kline: `E` keeps the type that it came with."""

    e: str
    E: int | float | str
    s: str
    k: _Kline


class _Combined(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """The frame that nearly all are, decoded in one pass."""

    stream: str
    data: _KlineEvent


class _Envelope(msgspec.Struct, gc=False):
    stream: str = ""
    data: msgspec.Raw = msgspec.Raw(b"")
    e: str = ""
    id: int | str | None = None
    result: Any = None
    error: Any = None
    code: int | None = None
    msg: str = ""


_envelope = msgspec.json.Decoder(_Envelope)
_event = msgspec.json.Decoder(_Event)
# strict=False: the exchange writes prices as strings. NaN and "Infinity" get as far as `check`.
_combined = msgspec.json.Decoder(_Combined, strict=False)
_kline = msgspec.json.Decoder(_Kline, strict=False)
_rows = msgspec.json.Decoder(
    list[tuple[int, float, float, float, float, float, int, float, int, float, float, Any]], strict=False
)


def stream_name(symbol: str) -> str:
    return f"{symbol.lower()}@kline_{INTERVAL}"


def stream_url(base: str, symbols: Sequence[str]) -> str:
    """Returns the combined-stream URL; symbols beyond `STREAMS_PER_URL` must be subscribed on the connection."""
    return f"{base.rstrip('/')}/stream?streams={'/'.join(stream_name(s) for s in symbols[:STREAMS_PER_URL])}"


def control(
    method: Literal["SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS"], symbols: Sequence[str], request_id: int
) -> bytes:
    """Returns a control frame; the exchange accepts at most 5 a second on a connection, pongs included."""
    body: dict[str, Any] = {"method": method, "id": request_id}
    if method != "LIST_SUBSCRIPTIONS":
        body["params"] = [stream_name(s) for s in symbols]
    return msgspec.json.encode(body)


def decode_frame(data: bytes | str) -> Frame:
    """Decodes a text frame, in raw or combined framing, times in ms or µs. Raises `WireError` if it cannot be used."""
    try:
        event = _combined.decode(data).data
    except UNREADABLE:
        # Another frame, or one that is broken: which it is, the steps below tell.
        return _decode_other_frame(data)
    event_time = event.E
    if event.e != "kline" or not isinstance(event_time, int):
        return _decode_other_frame(data)
    return _kline_update(event.s, event_time, event.k)


def _decode_other_frame(data: bytes | str) -> Frame:
    try:
        envelope = _envelope.decode(data)
        body = data
        if envelope.stream or envelope.data:
            if not envelope.data:
                raise WireError("not_json_object", "a combined frame without data")
            body = bytes(envelope.data)
        elif not envelope.e:
            return _reply(envelope)
        event = _event.decode(body)
    except UNREADABLE as error:
        raise WireError("not_json_object", f"not a frame of this exchange: {error}") from None
    if event.e == "serverShutdown":
        return ServerShutdown(to_ms(event.E))
    if event.e != "kline":
        raise WireError("unknown_event", f"unexpected event {event.e[:40]!r}")
    try:
        k = _kline.decode(event.k)
    except UNREADABLE as error:
        raise WireError("kline_fields", f"a kline without its fields: {error}") from None
    return _kline_update(event.s, event.E, k)


def _reply(envelope: _Envelope) -> Reply:
    # Errors are documented flat and have been seen nested; both are accepted.
    nested = envelope.error if isinstance(envelope.error, dict) else {}
    code, text = nested.get("code", envelope.code), nested.get("msg", envelope.msg)
    if code is not None or envelope.error is not None:
        return Reply(envelope.id, error=f"{code}: {str(text)[:200]}")
    if envelope.id is None:
        raise WireError("unknown_event", "neither an event nor a reply")
    names = envelope.result
    if isinstance(names, list):
        return Reply(envelope.id, result=tuple(str(n) for n in names))
    return Reply(envelope.id)


@lru_cache(maxsize=4_096)
def _is_symbol(name: str) -> bool:
    return SYMBOL_PATTERN.fullmatch(name) is not None


def _kline_update(symbol: str, event_stamp: int, k: _Kline) -> KlineUpdate:
    if k.i != INTERVAL:
        raise WireError("interval", f"interval {k.i[:10]!r} was not asked for")
    if k.s != symbol or not _is_symbol(symbol):
        raise WireError("symbol", "event and kline name different symbols, or none")
    open_time = to_ms(k.t)
    if to_ms(k.T) != open_time + HOUR_MS - 1:
        raise WireError("off_grid", f"the kline closes at {k.T}, not an hour after {k.t}")
    event_time = to_ms(event_stamp)
    # An absurd event time would mislead the whole node, so it must lie near the hour of its candle.
    if not open_time <= event_time <= open_time + 25 * HOUR_MS:
        raise WireError("time_range", f"event time {event_stamp} is not a time of this exchange")
    if k.x and event_time < open_time + HOUR_MS - 1:
        raise WireError("closed_early", f"closed at {event_time}, before its hour was over")
    candle = Candle(symbol, open_time, k.o, k.h, k.l, k.c, k.v, k.q, k.n, k.V)
    return KlineUpdate(_checked(candle), event_time, k.x)


def _checked(candle: Candle) -> Candle:
    try:
        check(candle)
    except CandleError as error:
        raise WireError(error.reason, str(error)) from None
    quote, taker, trades = candle.quote_volume, candle.taker_buy_base, candle.trades
    if not ((quote is None or 0 <= quote < math.inf) and (taker is None or 0 <= taker < math.inf)):
        raise WireError("volume_range", f"a volume is not a finite number of at least 0: {(quote, taker)}")
    if trades is not None and trades < 0:
        raise WireError("trades_range", f"{trades} trades are not a number of trades")
    return candle


def symbols_param(symbols: Sequence[str]) -> str:
    """Returns the parameter `symbols` of GET /api/v3/exchangeInfo. One name that the exchange does not list fails the
    whole question."""
    return msgspec.json.encode(list(symbols)).decode()


def klines_params(symbol: str, start_ms: int, end_ms: int | None = None, limit: int = KLINES_PAGE) -> dict[str, str]:
    """Returns the query of GET /api/v3/klines for the candles that open in [start_ms, end_ms]."""
    params = {"symbol": symbol, "interval": INTERVAL, "startTime": str(start_ms), "limit": str(limit)}
    if end_ms is not None:
        params["endTime"] = str(end_ms)
    return params


class KlinesPage(msgspec.Struct, frozen=True):
    """The closed candles of one REST page, in order. `rows` counts all rows and `forming` those not closed; `rejected`
    has the reason for each closed row that was set aside. `newest_open_time` is that of the last usable row, closed or
    forming: how far the data behind the answer reach."""

    candles: tuple[Candle, ...]
    rows: int
    forming: int
    rejected: tuple[str, ...]
    newest_open_time: int | None = None


def decode_klines(body: bytes, symbol: str, server_time_ms: int) -> KlinesPage:
    """Decodes the closed candles of a klines answer. The row still forming at `server_time_ms` looks like any other and
    is dropped here; a row that breaks a candle's rules is set aside, not fatal. A row's own close time can only delay
    its close beyond the end of the hour: it may have been cut to seconds. Raises `WireError` if the body cannot be
    decoded."""
    try:
        rows = _rows.decode(body)
    except UNREADABLE as error:
        raise WireError("klines_body", f"not a klines answer: {error}") from None
    candles: list[Candle] = []
    rejected: list[str] = []
    forming = 0
    newest: int | None = None
    for t, o, h, low, c, v, T, q, n, V, _, _ in rows:
        # Nearly all are closed, in order and right, and there are thousands: all of what follows in one expression.
        if (
            (newest is None or newest < t)
            and server_time_ms > T
            and t <= server_time_ms - HOUR_MS
            and EARLIEST_MS <= t < LATEST_MS
            and t % HOUR_MS == 0
            and 0 < low <= o <= h < math.inf
            and low <= c <= h
            and 0 <= v < math.inf
            and 0 <= q < math.inf
            and 0 <= V < math.inf
        ):
            candles.append(Candle(symbol, t, o, h, low, c, v, q, n, V))
            newest = t
            continue
        candle = Candle(symbol, to_ms(t), o, h, low, c, v, q, n, V)
        is_forming = max(to_ms(T), candle.close_time) >= server_time_ms
        forming += is_forming
        try:
            if newest is not None and candle.open_time <= newest:
                raise WireError("row_order", f"row {t} does not follow {newest}")
            _checked(candle)
        except WireError as error:
            if not is_forming:
                rejected.append(error.reason)
            continue
        newest = candle.open_time
        if not is_forming:
            candles.append(candle)
    return KlinesPage(tuple(candles), len(rows), forming, tuple(rejected), newest)


class _Time(msgspec.Struct):
    serverTime: int


def decode_time(body: bytes) -> int:
    """Decodes the server time, in ms. Raises `WireError` if it is not one."""
    try:
        return _server_time(msgspec.json.decode(body, type=_Time).serverTime)
    except UNREADABLE as error:
        raise WireError("time_body", f"not a time answer: {error}") from None


def _server_time(server_time: int) -> int:
    if not EARLIEST_MS <= to_ms(server_time) < LATEST_MS:
        raise WireError("time_range", f"server time {server_time} is not a time of this exchange")
    return to_ms(server_time)


class SymbolInfo(msgspec.Struct, frozen=True):
    symbol: str
    status: str

    @property
    def trading(self) -> bool:
        return self.status == "TRADING"


class RateLimit(msgspec.Struct, frozen=True):
    rateLimitType: str
    interval: str
    intervalNum: int
    limit: int


class ExchangeInfo(msgspec.Struct, frozen=True):
    serverTime: int
    symbols: list[SymbolInfo]
    rateLimits: list[RateLimit] = []

    @property
    def weight_per_minute(self) -> int | None:
        for rule in self.rateLimits:
            if (rule.rateLimitType, rule.interval, rule.intervalNum) == ("REQUEST_WEIGHT", "MINUTE", 1):
                return rule.limit
        return None


def decode_exchange_info(body: bytes) -> ExchangeInfo:
    try:
        return msgspec.json.decode(body, type=ExchangeInfo)
    except UNREADABLE as error:
        raise WireError("exchange_info_body", f"not an exchangeInfo answer: {error}") from None


class _Refusal(msgspec.Struct):
    code: int
    msg: str = ""


def raise_refusal(status: int, body: bytes) -> None:
    """Raises what a 4xx body means: `UnknownSymbolError` for code -1121, `WireError` for everything else."""
    try:
        refusal = msgspec.json.decode(body, type=_Refusal)
    except UNREADABLE:
        raise WireError(f"http_{status}", f"HTTP {status} without a reason") from None
    if refusal.code == -1121:
        raise UnknownSymbolError(refusal.msg)
    raise WireError(f"http_{status}", f"HTTP {status}: {refusal.code} {refusal.msg[:200]}")
