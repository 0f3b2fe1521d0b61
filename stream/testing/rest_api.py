"""The exchange's REST side and the switchboard of its faults: a Litestar app over the running exchange.

Only what market data needs. Parameters are read by hand, because a wrong one must be answered in the
exchange's words (`{"code": -1121, ...}`) and not in a framework's.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import msgspec
from litestar import Litestar, MediaType, Request, Response, Router, get, post

from stream.core.candle import to_ms
from stream.testing.access_log import AccessLog
from stream.testing.faults import FaultBoard, FaultError
from stream.testing.tape import Tape
from stream.testing.wire import INTERVALS, Json, kline_row

MINUTE_MS = 60_000
WEIGHT_PER_MINUTE = 6_000
DEFAULT_LIMIT, MAX_LIMIT = 500, 1_000
WEIGHTS = {"/api/v3/ping": 1, "/api/v3/time": 1, "/api/v3/exchangeInfo": 20, "/api/v3/klines": 2}

Asked = Request[Any, Any, Any]


class Running(Protocol):
    """What the app needs of the exchange behind it."""

    tape: Tape
    board: FaultBoard
    access_log: AccessLog

    def now_ms(self) -> int: ...
    def state(self) -> Json: ...
    def fault(self, name: str | bytes, **params: Any) -> Json: ...


class WeightMeter:
    """Request weight used in the last minute of virtual time."""

    def __init__(self) -> None:
        self._spent: deque[tuple[int, int]] = deque()

    def spend(self, weight: int, now_ms: int) -> int:
        self._spent.append((now_ms, weight))
        return self.used(now_ms)

    def used(self, now_ms: int) -> int:
        while self._spent and self._spent[0][0] <= now_ms - MINUTE_MS:
            self._spent.popleft()
        return sum(weight for _, weight in self._spent)


class _Refused(Exception):  # noqa: N818 - not an error of ours but an answer of the exchange
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def rest_app(exchange: Running, meter: WeightMeter) -> Litestar:
    async def before(request: Asked) -> Response[Any] | None:
        path = request.url.path
        weight = WEIGHTS.get(path, 1)
        meter.spend(weight, exchange.now_ms())
        exchange.access_log.add("request", None, path, params=dict(request.query_params), weight=weight)
        failure = exchange.board.rest_answer(path)
        if failure is None:
            return None
        headers = {} if failure.retry_after is None else {"Retry-After": str(failure.retry_after)}
        if failure.status == 403:  # a firewall in front of the exchange answers, in its own language
            body, media = "<html><body><h1>403 Forbidden</h1></body></html>", MediaType.HTML
            return Response(body, status_code=403, headers=headers, media_type=media)
        return _json({"code": _code_of(failure.status), "msg": "scripted failure"}, failure.status, headers)

    async def after(response: Response[Any]) -> Response[Any]:
        response.headers["X-MBX-USED-WEIGHT-1M"] = str(meter.used(exchange.now_ms()))
        return response

    @get("/ping")
    async def ping() -> Response[bytes]:
        return _json({})

    @get("/time")
    async def time(request: Asked) -> Response[bytes]:
        now_ms = exchange.now_ms()
        return _json({"serverTime": now_ms * 1_000 if _wants_microseconds(request) else now_ms})

    @get("/exchangeInfo")
    async def exchange_info(request: Asked) -> Response[bytes]:
        query = request.query_params
        try:
            symbols = _asked_symbols(query.get("symbol"), query.get("symbols"), exchange.tape)
        except _Refused as refused:
            return _refusal(refused)
        return _json(
            {
                "timezone": "UTC",
                "serverTime": exchange.now_ms(),
                "rateLimits": [
                    _rate_limit("REQUEST_WEIGHT", 1, WEIGHT_PER_MINUTE),
                    _rate_limit("RAW_REQUESTS", 5, 300_000),
                ],
                "exchangeFilters": [],
                "symbols": [_symbol_info(symbol) for symbol in symbols],
            }
        )

    @get("/klines")
    async def klines(request: Asked) -> Response[bytes]:
        try:
            return _json(_klines(request, exchange.tape, exchange.now_ms()))
        except _Refused as refused:
            return _refusal(refused)

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
        "/api/v3", route_handlers=[ping, time, exchange_info, klines], before_request=before, after_request=after
    )
    control = Router("/control", route_handlers=[fault, state, log])
    return Litestar([api, control], openapi_config=None, logging_config=None)


def _klines(request: Asked, tape: Tape, now_ms: int) -> list[list[int | str]]:
    query = request.query_params
    symbol, interval = _mandatory(query.get("symbol"), "symbol"), _mandatory(query.get("interval"), "interval")
    if symbol not in tape.symbols:
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
    closed, forming = tape.visible(
        symbol,
        now_ms,
        None if start is None else to_ms(start),
        None if end is None else to_ms(end),
        min(limit, MAX_LIMIT),
    )
    candles = closed if forming is None else [*closed, forming]
    microseconds = _wants_microseconds(request)
    return [kline_row(candle, microseconds) for candle in candles]


def _asked_symbols(symbol: str | None, symbols: str | None, tape: Tape) -> list[str]:
    if symbol is not None and symbols is not None:
        raise _Refused(-1128, "Combination of optional parameters invalid.")
    if symbol is None and symbols is None:
        return list(tape.symbols)
    try:
        asked = [symbol] if symbol is not None else msgspec.json.decode(symbols or "", type=list[str])
    except msgspec.DecodeError:
        raise _Refused(-1100, "Illegal characters found in parameter 'symbols'.") from None
    if not set(asked) <= set(tape.symbols):
        raise _Refused(-1121, "Invalid symbol.")  # one unknown name fails the whole call
    return asked


def _symbol_info(symbol: str) -> Json:
    quote = next((q for q in ("USDT", "USDC", "BTC", "EUR") if symbol.endswith(q)), "")
    return {
        "symbol": symbol,
        "status": "TRADING",
        "baseAsset": symbol.removesuffix(quote),
        "quoteAsset": quote,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "isSpotTradingAllowed": True,
        "filters": [],
        "permissions": [],
    }


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
