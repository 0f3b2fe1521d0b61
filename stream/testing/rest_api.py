"""The exchange's REST side, its archive and the control of its faults: a Litestar app over the running exchange.

Only what market data needs. Parameters are parsed by hand, because a wrong one must be answered with the
exchange's error (`{"code": -1121, ...}`) and not with a framework's.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import unquote

import msgspec
from litestar import Litestar, MediaType, Request, Response, Router, get, post

from stream.core.market.candle import to_ms
from stream.testing.access_log import AccessLog
from stream.testing.archive import Archive
from stream.testing.fault_board import FaultBoard
from stream.testing.faults import FaultError
from stream.testing.tape import Tape
from stream.testing.wire import INTERVALS, Json, kline_row

MINUTE_S = 60
WEIGHT_PER_MINUTE = 6_000
#: Requests that are refused with 429 before a ban; the ban's length doubles from two minutes to three days.
OFFENCES_UNTIL_BAN = 10
FIRST_BAN_S, LONGEST_BAN_S = 120, 259_200
DEFAULT_LIMIT, MAX_LIMIT = 500, 1_000
WEIGHTS = {"/api/v3/ping": 1, "/api/v3/time": 1, "/api/v3/exchangeInfo": 20, "/api/v3/klines": 2}

Asked = Request[Any, Any, Any]


class Running(Protocol):
    """What the app needs of the exchange behind it."""

    tape: Tape
    board: FaultBoard
    access_log: AccessLog

    def now_ms(self) -> int: ...
    def server_time(self) -> int: ...
    def state(self) -> Json: ...
    def fault(self, name: str | bytes, **params: Any) -> Json: ...


class WeightMeter:
    """Request weight used in the last minute, and the refusal of requests beyond the limit.

    A minute is over when it is over on the virtual or on the real clock: the virtual one may stand still. Over the
    limit requests are refused (429) until the oldest weight is forgotten; a client that goes on regardless is banned
    (418), each time for twice as long.
    """

    def __init__(self, limit: int = WEIGHT_PER_MINUTE, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._monotonic = monotonic
        self._spent: deque[tuple[int, float, int]] = deque()
        self._offences = 0
        self._bans = 0
        self._banned_until_s = 0.0
        #: The most that was used within a minute, and how often more was asked for.
        self.most = 0
        self.refused = 0

    def spend(self, weight: int, now_ms: int) -> tuple[int, int] | None:
        """Counts a request. Returns status and seconds of Retry-After where it is refused, which costs no weight."""
        now_s = self._monotonic()
        if now_s < self._banned_until_s:
            return 418, math.ceil(self._banned_until_s - now_s)
        if self.used(now_ms) + weight <= self.limit:
            self._offences = 0
            self._spent.append((now_ms, now_s, weight))
            self.most = max(self.most, self.used(now_ms))
            return None
        self.refused += 1
        self._offences += 1
        if self._offences > OFFENCES_UNTIL_BAN:
            ban_s = min(FIRST_BAN_S * 2**self._bans, LONGEST_BAN_S)
            self._offences, self._bans, self._banned_until_s = 0, self._bans + 1, now_s + ban_s
            return 418, ban_s
        return 429, max(1, math.ceil(self._spent[0][1] + MINUTE_S - now_s)) if self._spent else MINUTE_S

    def used(self, now_ms: int) -> int:
        now_s = self._monotonic()
        while self._spent:
            at_ms, at_s, _ = self._spent[0]
            if at_ms > now_ms - MINUTE_S * 1_000 and at_s > now_s - MINUTE_S:
                break
            self._spent.popleft()
        return sum(weight for _, _, weight in self._spent)


class _Refused(Exception):  # noqa: N818 - not an error of ours but an answer of the exchange
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def _listed(exchange: Running) -> list[str]:
    return [s for s in exchange.tape.symbols if exchange.board.status(s) != "DELISTED"]


def _scripted(board: FaultBoard, path: str) -> Response[Any] | None:
    failure = board.rest_answer(path)
    if failure is None:
        return None
    headers = {} if failure.retry_after is None else {"Retry-After": str(failure.retry_after)}
    if failure.status == 403:  # a firewall in front of the exchange answers, in its own language
        body, media = "<html><body><h1>403 Forbidden</h1></body></html>", MediaType.HTML
        return Response(body, status_code=403, headers=headers, media_type=media)
    return _json({"code": _code_of(failure.status), "msg": "scripted failure"}, failure.status, headers)


def rest_app(exchange: Running, meter: WeightMeter) -> Litestar:
    archive = Archive(exchange.tape, exchange.board, exchange.now_ms)
    #: What a cache in front of the exchange keeps: until when (monotonic), and the answer.
    answers: dict[str, tuple[float, Response[bytes]]] = {}

    async def before(request: Asked) -> Response[Any] | None:
        path = request.url.path
        weight = WEIGHTS.get(path, 1)
        exchange.access_log.add("request", None, path, params=dict(request.query_params), weight=weight)
        refused = meter.spend(weight, exchange.now_ms())
        if refused is not None:
            status, wait_s = refused
            body = {"code": _code_of(status), "msg": f"Too much request weight used; {meter.limit} a minute."}
            return _json(body, status, {"Retry-After": str(wait_s)})
        if (late_s := exchange.board.delay_s(path)) > 0:
            # The answer is as of now, and arrives later.
            now_ms = exchange.now_ms()
            await asyncio.sleep(late_s)
            request.state.asked_at_ms = now_ms
        return _scripted(exchange.board, path)

    async def before_file(request: Asked) -> Response[Any] | None:
        exchange.access_log.add("request", None, request.url.path, weight=0)
        return _scripted(exchange.board, request.url.path)

    async def after(response: Response[Any]) -> Response[Any]:
        response.headers["X-MBX-USED-WEIGHT-1M"] = str(meter.used(exchange.now_ms()))
        return response

    @get("/ping")
    async def ping() -> Response[bytes]:
        return _json({})

    @get("/time")
    async def server_time(request: Asked) -> Response[bytes]:
        now_ms = _asked_at_ms(request, exchange.server_time()) + exchange.board.time_error_ms()
        return _json({"serverTime": now_ms * 1_000 if _wants_microseconds(request) else now_ms})

    @get("/exchangeInfo")
    async def exchange_info(request: Asked) -> Response[bytes]:
        query = request.query_params
        try:
            symbols = _asked_symbols(query.get("symbol"), query.get("symbols"), _listed(exchange))
        except _Refused as refused:
            return _refusal(refused)
        return _json(
            {
                "timezone": "UTC",
                "serverTime": exchange.now_ms(),
                "rateLimits": [
                    _rate_limit("REQUEST_WEIGHT", 1, meter.limit),
                    _rate_limit("RAW_REQUESTS", 5, 300_000),
                ],
                "exchangeFilters": [],
                "symbols": [_symbol_info(symbol, exchange.board.status(symbol)) for symbol in symbols],
            }
        )

    @get("/klines")
    async def klines(request: Asked) -> Response[bytes]:
        board, now_ms = exchange.board, _asked_at_ms(request, exchange.now_ms())
        cached = answers.get(str(request.url))
        if board.cache is not None and cached is not None and time.monotonic() < cached[0]:
            return cached[1]
        kind = board.spoilt_rows()
        lag_ms = 0 if board.lag is None else round(board.lag.seconds * 1_000)
        cap = MAX_LIMIT if board.cap is None else board.cap.rows
        try:
            rows = _klines(request, exchange.tape, _listed(exchange), now_ms - lag_ms, cap, kind)
        except _Refused as refused:
            return _refusal(refused)
        answer = _spoilt(rows, kind)
        if board.cache is not None:
            answers[str(request.url)] = time.monotonic() + board.cache.seconds, answer
        return answer

    @get("/{name:path}")
    async def archived(request: Asked) -> Response[bytes]:
        content = archive.file(unquote(request.url.path).removeprefix("/data/spot/"))
        if content is None:
            missing = b"<Error><Code>NoSuchKey</Code></Error>"
            return Response(missing, status_code=404, media_type="application/xml")
        return Response(content, media_type="application/zip")

    @post("/fault", status_code=200)
    async def fault(request: Asked) -> Response[bytes]:
        try:
            return _json(exchange.fault(await request.body()))
        except FaultError as error:
            return _json({"error": str(error)}, 400)

    @get("/state")
    async def state() -> Response[bytes]:
        return _json(exchange.state())

    @get("/log")
    async def log() -> Response[bytes]:
        return _json(exchange.access_log.entries())

    api = Router(
        "/api/v3", route_handlers=[ping, server_time, exchange_info, klines], before_request=before, after_request=after
    )
    data = Router("/data/spot", route_handlers=[archived], before_request=before_file)
    control = Router("/control", route_handlers=[fault, state, log])
    return Litestar([api, data, control], openapi_config=None, logging_config=None)


def _klines(
    request: Asked, tape: Tape, listed: list[str], now_ms: int, cap: int, kind: str | None
) -> list[list[int | str]]:
    query = request.query_params
    symbol, interval = _mandatory(query.get("symbol"), "symbol"), _mandatory(query.get("interval"), "interval")
    if symbol not in listed:
        raise _Refused(-1121, "Invalid symbol.")
    if interval not in INTERVALS:
        raise _Refused(-1120, "Invalid interval.")
    start, end = _integer(query.get("startTime"), "startTime"), _integer(query.get("endTime"), "endTime")
    limit = _integer(query.get("limit"), "limit")
    limit = DEFAULT_LIMIT if limit is None else limit
    if limit < 1:
        raise _Refused(-1130, "Data sent for parameter 'limit' is not valid.")
    if interval != "1h":
        return []
    if kind == "foreign":
        symbol = next((s for s in listed if s != symbol), symbol)
    closed, forming = tape.visible(
        symbol,
        now_ms,
        None if start is None or kind == "newest" else to_ms(start),
        None if end is None else to_ms(end),
        min(limit, MAX_LIMIT, cap),
    )
    candles = closed if forming is None else [*closed, forming]
    microseconds = _wants_microseconds(request)
    return [kline_row(candle, microseconds) for candle in candles]


def _asked_symbols(symbol: str | None, symbols: str | None, listed: list[str]) -> list[str]:
    if symbol is not None and symbols is not None:
        raise _Refused(-1128, "Combination of optional parameters invalid.")
    if symbol is None and symbols is None:
        return listed
    try:
        asked = [symbol] if symbol is not None else msgspec.json.decode(symbols or "", type=list[str])
    except msgspec.DecodeError:
        raise _Refused(-1100, "Illegal characters found in parameter 'symbols'.") from None
    if not set(asked) <= set(listed):
        raise _Refused(-1121, "Invalid symbol.")  # one unknown name fails the whole call
    return asked


def _symbol_info(symbol: str, status: str) -> Json:
    quote = next((q for q in ("USDT", "USDC", "BTC", "EUR") if symbol.endswith(q)), "")
    return {
        "symbol": symbol,
        "status": status,
        "baseAsset": symbol.removesuffix(quote),
        "quoteAsset": quote,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "isSpotTradingAllowed": True,
        "filters": [],
        "permissions": [],
    }


def _asked_at_ms(request: Asked, now_ms: int) -> int:
    """Returns the time of which an answer is: now, or for a delayed answer the time of the request."""
    asked_at_ms: int = request.state.get("asked_at_ms", now_ms)
    return asked_at_ms


def _spoilt(rows: list[list[int | str]], kind: str | None) -> Response[bytes]:
    if kind == "html":
        return Response(b"<html><body>we will be back soon</body></html>", media_type=MediaType.HTML)
    if kind == "nested":
        return Response(b"[" * 100_000, media_type="application/json")
    if kind == "duplicate" and rows:
        rows = [rows[0], *rows]
    if kind == "off_grid" and rows:
        stray = list(rows[0])
        stray[0] = int(stray[0]) + 28 * 60_000 + 14_789
        rows = [rows[0], stray, *rows[1:]]
    if kind == "short":
        rows = rows[:-2]
    if kind == "empty":
        rows = []
    if kind == "unusable":
        rows = [[row[0], "-1", *row[2:]] for row in rows]
    if kind == "partly_unusable":
        rows = [[row[0], "-1", *row[2:]] if n % 10 == 5 else row for n, row in enumerate(rows)]
    if kind == "cut_times":
        rows = [[*row[:6], int(row[6]) // 1_000, *row[7:]] for row in rows]
    body = msgspec.json.encode(rows)
    if kind == "truncated":
        body = body[: len(body) // 2]
    return Response(body, media_type="application/json")


def _rate_limit(kind: str, minutes: int, limit: int) -> Json:
    return {"rateLimitType": kind, "interval": "MINUTE", "intervalNum": minutes, "limit": limit}


def _mandatory(value: str | None, name: str) -> str:
    if not value:
        raise _Refused(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")
    return value


def _integer(value: str | None, name: str) -> int | None:
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 20):
        raise _Refused(-1100, f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'.")
    return int(value)


def _wants_microseconds(request: Asked) -> bool:
    return request.headers.get("X-MBX-TIME-UNIT", "").upper() == "MICROSECOND"


def _code_of(status: int) -> int:
    return -1003 if status in (418, 429) else -1000


def _refusal(refused: _Refused) -> Response[bytes]:
    return _json({"code": refused.code, "msg": str(refused)}, 400)


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    return Response(msgspec.json.encode(body), status_code=status, headers=headers or {}, media_type="application/json")
