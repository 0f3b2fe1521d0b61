"""The exchange's REST API: closed candles, server time and symbols from Binance's public endpoints.

Rules of this module:
- Before candles are asked for, the server is asked for its time, so a row that was still forming then is never taken
  for closed.
- A range is requested page by page to its end: the length of a page proves nothing. Each request begins with the last
  candle of the answer before it, which must come back unchanged, so an empty page, another symbol's rows or a server
  that ignores where to start are noticed. Only an answer that has that candle and nothing after it is the end.
- No cache may answer: each request says so, and differs a little from the one before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import TracebackType
from typing import Self

from stream.adapters.outbound import Way
from stream.adapters.rest.http_get import HttpGet
from stream.clock import Clock
from stream.core.market import binance
from stream.core.market.binance import ExchangeInfo, KlinesPage, WireError
from stream.core.market.candle import HOUR_MS, INTERVAL, LATEST_MS, Candle
from stream.core.market.due_candles import lacking
from stream.core.market.rest_answer import Answer
from stream.errors import UnreachableError
from stream.telemetry import FrameRejected, Observer, WeightUsed

_MAX_BODY_BYTES = 4 * 1024 * 1024
#: The exchange's usual limit, until exchangeInfo has reported the present one.
_WEIGHT_PER_MINUTE = 6_000
_WEIGHT_WINDOW_S = 60.0
#: A page costs the same whatever its length; the first rows may be candles off the hour.
_FIRST_ROWS = 100
#: So many requests in a row for the same range differ from each other.
_WORDINGS = 16
_NO_CACHE = {"Cache-Control": "no-cache"}


class BinanceHistory:
    """Implements `stream.ports.History` with the API at `base_url`. One connection pool; used from one event loop."""

    def __init__(
        self,
        base_url: str,
        *,
        clock: Clock,
        observe: Observer = lambda fact: None,
        reported_time: Callable[[int, float], None] = lambda server_ms, asked_s: None,
        weight_share: float | None = None,
        patience_s: float = float("inf"),
        way: Way | None = None,
    ) -> None:
        """`reported_time` is called with every server time as it arrives, and the monotonic time of its request. With
        `weight_share`, a minute without requests follows each answer which reports that this share of the weight of a
        minute, which all clients of an address have in common, is used up. A ban that lasts longer than `patience_s`
        raises `UnreachableError` at once instead of being waited for. `way` is as for `HttpGet`."""
        self._http = HttpGet(base_url, clock=clock, headers=_NO_CACHE, patience_s=patience_s, way=way)
        self._clock = clock
        self._wordings = itertools.count()
        self._observe = observe
        self._reported_time = reported_time
        self._weight_share = weight_share
        self._weight_limit = _WEIGHT_PER_MINUTE

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    @property
    def silent_for_s(self) -> float:
        """Seconds that the next request would wait, because of what the exchange answered."""
        return self._http.silent_for_s

    async def server_time_ms(self) -> int:
        asked_s = self._clock.monotonic_s()
        try:
            server_ms = binance.decode_time(await self._get("/api/v3/time", {}))
        except WireError as error:
            raise UnreachableError(str(error)) from None
        self._reported_time(server_ms, asked_s)
        return server_ms

    async def exchange_info(self, symbol: str) -> ExchangeInfo:
        try:
            info = binance.decode_exchange_info(await self._get("/api/v3/exchangeInfo", {"symbol": symbol}))
        except WireError as error:
            raise UnreachableError(str(error)) from None
        if info.weight_per_minute:
            self._weight_limit = info.weight_per_minute
        return info

    async def first_open_time(self, symbol: str, from_open_time: int) -> int | None:
        """Returns when the first candle at or after that time opens, closed or not; None where there is none."""
        body = await self._get("/api/v3/klines", binance.klines_params(symbol, from_open_time, limit=_FIRST_ROWS))
        try:
            page = binance.decode_klines(body, symbol, LATEST_MS)
        except WireError as error:
            raise UnreachableError(str(error)) from None
        if page.candles:
            return page.candles[0].open_time
        return from_open_time if page.rows else None

    async def newest(self, symbol: str) -> Candle | None:
        """Returns the newest candle, which may be forming; None where there is none."""
        params = {"symbol": symbol, "interval": INTERVAL, "limit": "1"}
        body = await self._get("/api/v3/klines", params)
        try:
            page = binance.decode_klines(body, symbol, LATEST_MS)
        except WireError as error:
            raise UnreachableError(str(error)) from None
        return page.candles[-1] if page.candles else None

    async def candles(self, symbol: str, from_open_time: int, to_open_time: int | None = None) -> Answer:
        server_ms = await self.server_time_ms()
        found: list[Candle] = []
        newest: int | None = None
        beyond = LATEST_MS if to_open_time is None else to_open_time
        start = from_open_time
        while newest is None or newest <= beyond:
            page = await self._page(symbol, start, to_open_time, server_ms)
            rows = [c for c in page.candles if c.open_time >= start]
            if page.candles and not rows and not page.forming:
                raise UnreachableError(f"{symbol}: an answer of {page.rows} rows without a candle from {start} on")
            if found:
                if not rows or rows[0] != found[-1]:
                    raise UnreachableError(
                        f"{symbol}: asked from {found[-1].open_time} on, the exchange does not repeat that candle"
                    )
                rows = rows[1:]
            found += rows
            newest = page.newest_open_time if newest is None else max(newest, page.newest_open_time or newest)
            if page.forming or not rows:
                break
            start = rows[-1].open_time
        times = [c.open_time for c in found]
        if newest is not None and times and newest > times[-1]:
            times.append(newest)
        absent = tuple(hour for hour in lacking(times) if hour <= beyond)
        return Answer([c for c in found if c.open_time <= beyond], server_ms, newest, absent)

    async def _page(self, symbol: str, start_ms: int, last_ms: int | None, server_ms: int) -> KlinesPage:
        # A few rows more or less make each request a new one to a cache.
        wording = next(self._wordings) % _WORDINGS
        limit = binance.KLINES_PAGE - wording
        if last_ms is not None:
            # As many as there can be, and one after the last, which proves that the last is final.
            limit = min(limit, (last_ms - start_ms) // HOUR_MS + 2 + wording)
        body = await self._get("/api/v3/klines", binance.klines_params(symbol, start_ms, limit=limit))
        try:
            page = binance.decode_klines(body, symbol, server_ms)
        except WireError as error:
            raise UnreachableError(str(error)) from None
        for reason in page.rejected:
            self._observe(FrameRejected(reason, f"a row of {symbol}'s history"))
        return page

    async def _get(self, path: str, params: dict[str, str]) -> bytes:
        reply = await self._http.get(path, params, max_bytes=_MAX_BODY_BYTES)
        used = reply.count("x-mbx-used-weight-1m")
        if used is not None:
            self._observe(WeightUsed(used / self._weight_limit))
            if self._weight_share is not None and used >= self._weight_share * self._weight_limit:
                self._http.keep_silent(_WEIGHT_WINDOW_S)
        if reply.status == 200:
            return reply.body
        self._http.obey(reply)
        if reply.status == 400:
            try:
                binance.raise_refusal(reply.status, reply.body)
            except WireError as error:
                raise UnreachableError(str(error)) from None
        raise UnreachableError(f"HTTP {reply.status} from {path}")
