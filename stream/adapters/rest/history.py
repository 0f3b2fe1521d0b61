"""The exchange's REST API: closed candles, server time and symbols from Binance's public endpoints.

Rules of this module:
- Before candles are asked for, the server has told its time, so a row that was still forming then is never taken for
  closed. One reading serves all who ask for it at once, and all questions of a moment (`time_serves_s`): an earlier
  time can only make a closed row wait.
- Every request waits for its turn in one queue, whose order is the urgency and whose measure the exchange's weight.
- A range is requested page by page to its end: the length of a page proves nothing. Each request begins with the last
  candle of the answer before it, which must come back unchanged, so an empty page, another symbol's rows or a server
  that ignores where to start are noticed. Only an answer that has that candle and nothing after it is the end.
- No cache may answer: each request says so, and differs a little from the one before.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from stream.adapters.outbound import Way
from stream.adapters.rest.http_get import AT_ONCE, HttpGet
from stream.adapters.rest.request_queue import Place, RequestQueue
from stream.adapters.rest.weight import MINUTE_S, WEIGHT_PER_MINUTE, WeightBudget
from stream.clock import Clock
from stream.core.market import binance
from stream.core.market.binance import ExchangeInfo, KlinesPage, UnknownSymbolError, WireError
from stream.core.market.candle import HOUR_MS, INTERVAL, LATEST_MS, Candle
from stream.core.market.due_candles import lacking
from stream.core.market.rest_answer import Answer
from stream.errors import UnreachableError
from stream.ports import Urgency
from stream.telemetry import FrameRejected, Observer, WeightUsed

_MAX_BODY_BYTES = 4 * 1024 * 1024
#: What a request weighs, by its path.
_WEIGHTS = {"/api/v3/time": 1, "/api/v3/exchangeInfo": 20, "/api/v3/klines": 2}
#: How much of its share of the weight a question may use: the rest is left to what is more urgent.
_OF_THE_SHARE = {Urgency.NOW: 1.0, Urgency.REPAIR: 0.98, Urgency.HISTORY: 0.95, Urgency.AUDIT: 0.8}
#: Symbols in one question for what the exchange says about them: the URL stays well under what it accepts.
_SYMBOLS_AT_ONCE = 100
#: A page costs the same whatever its length; the first rows may be candles off the hour.
_FIRST_ROWS = 100
#: So many requests in a row for the same range differ from each other.
_WORDINGS = 16
_NO_CACHE = {"Cache-Control": "no-cache"}


@dataclass(slots=True)
class _Shared:
    """A question that is asked once for all who wait for its answer."""

    question: asyncio.Task[int]
    waiting: int = 0


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
        minute_s: float | None = MINUTE_S,
        time_serves_s: float = 0.0,
        patience_s: float = float("inf"),
        way: Way | None = None,
    ) -> None:
        """`reported_time` is called with every server time as it arrives, and the monotonic time of its request. With
        `weight_share`, no request leaves that would use more than this share of the weight of a minute, which all
        clients of an address have in common; what is less urgent leaves some of it to what is more. `minute_s` is as
        for `WeightBudget`. A server time that was asked for less than `time_serves_s` ago serves a further question
        for candles. A ban that lasts longer than `patience_s` raises `UnreachableError` at once instead of being
        waited for. `way` is as for `HttpGet`."""
        self._http = HttpGet(base_url, headers=_NO_CACHE, way=way)
        self._budget = WeightBudget(WEIGHT_PER_MINUTE, minute_s)
        self._queue = RequestQueue(
            clock=clock,
            at_once=AT_ONCE,
            patience_s=patience_s,
            budget=self._budget,
            shares=None if weight_share is None else {u: part * weight_share for u, part in _OF_THE_SHARE.items()},
        )
        self._clock = clock
        self._wordings = itertools.count()
        self._observe = observe
        self._reported_time = reported_time
        self._time_serves_s = time_serves_s
        #: The newest server time, and when it was asked for (monotonic).
        self._reported: tuple[int, float] | None = None
        #: By urgency: the question for the time that is under way.
        self._asking: dict[Urgency, _Shared] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._queue.aclose()
        await self._http.__aexit__(kind, error, trace)

    @property
    def silent_for_s(self) -> float:
        """Seconds that the next request would wait, because of what the exchange answered."""
        return self._queue.silent_for_s

    async def server_time_ms(self) -> int:
        return await self._time(Urgency.NOW)

    async def _time(self, urgency: Urgency) -> int:
        """Asks for the server's time, unless somebody is asking already: then that answer serves."""
        shared = self._asking.get(urgency)
        if shared is None or shared.question.done():
            shared = self._asking[urgency] = _Shared(asyncio.create_task(self._ask_time(urgency), name="server time"))
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.question)
        finally:
            shared.waiting -= 1
            if not shared.waiting:
                # It is done, or nobody wants to know any more; who asks next must not meet its cancellation.
                shared.question.cancel()
                if self._asking.get(urgency) is shared:
                    del self._asking[urgency]

    async def _ask_time(self, urgency: Urgency) -> int:
        asked_s = self._clock.monotonic_s()
        try:
            server_ms = binance.decode_time(await self._get("/api/v3/time", {}, self._queue.place(urgency)))
        except WireError as error:
            raise UnreachableError(str(error)) from None
        self._reported = server_ms, asked_s
        self._reported_time(server_ms, asked_s)
        return server_ms

    async def exchange_info(self, symbol: str) -> ExchangeInfo:
        return await self._exchange_info({"symbol": symbol})

    async def unlisted(self, symbols: Sequence[str]) -> list[str]:
        """Returns those of the symbols that the exchange does not list. One question serves many symbols; one unknown
        name fails it, and the question is then asked about each half."""
        found: list[str] = []
        batches = [symbols[first : first + _SYMBOLS_AT_ONCE] for first in range(0, len(symbols), _SYMBOLS_AT_ONCE)]
        while batches:
            batch = batches.pop(0)
            try:
                if len(batch) == 1:
                    await self.exchange_info(batch[0])
                else:
                    await self._exchange_info({"symbols": binance.symbols_param(batch)})
            except UnknownSymbolError:
                if len(batch) == 1:
                    found.append(batch[0])
                else:
                    half = len(batch) // 2
                    batches[:0] = [batch[:half], batch[half:]]
        return found

    async def _exchange_info(self, params: dict[str, str]) -> ExchangeInfo:
        place = self._queue.place(Urgency.NOW)
        try:
            info = binance.decode_exchange_info(await self._get("/api/v3/exchangeInfo", params, place))
        except WireError as error:
            raise UnreachableError(str(error)) from None
        if info.weight_per_minute:
            self._budget.limit = info.weight_per_minute
        return info

    async def first_open_time(self, symbol: str, from_open_time: int) -> int | None:
        """Returns when the first candle at or after that time opens, closed or not; None where there is none."""
        params = binance.klines_params(symbol, from_open_time, limit=_FIRST_ROWS)
        body = await self._get("/api/v3/klines", params, self._queue.place(Urgency.HISTORY))
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
        body = await self._get("/api/v3/klines", params, self._queue.place(Urgency.NOW))
        try:
            page = binance.decode_klines(body, symbol, LATEST_MS)
        except WireError as error:
            raise UnreachableError(str(error)) from None
        return page.candles[-1] if page.candles else None

    async def candles(
        self, symbol: str, from_open_time: int, to_open_time: int | None = None, *, urgency: Urgency = Urgency.NOW
    ) -> Answer:
        server_ms = await self._recent_time(urgency)
        place = self._queue.place(urgency)
        found: list[Candle] = []
        newest: int | None = None
        beyond = LATEST_MS if to_open_time is None else to_open_time
        start = from_open_time
        while newest is None or newest <= beyond:
            page = await self._page(symbol, start, to_open_time, server_ms, place)
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

    async def _recent_time(self, urgency: Urgency) -> int:
        if self._reported is not None and self._clock.monotonic_s() - self._reported[1] < self._time_serves_s:
            return self._reported[0]
        return await self._time(urgency)

    async def _page(self, symbol: str, start_ms: int, last_ms: int | None, server_ms: int, place: Place) -> KlinesPage:
        # A few rows more or less make each request a new one to a cache.
        wording = next(self._wordings) % _WORDINGS
        limit = binance.KLINES_PAGE - wording
        if last_ms is not None:
            # As many as there can be, and one after the last, which proves that the last is final.
            limit = min(limit, (last_ms - start_ms) // HOUR_MS + 2 + wording)
        body = await self._get("/api/v3/klines", binance.klines_params(symbol, start_ms, limit=limit), place)
        try:
            page = binance.decode_klines(body, symbol, server_ms)
        except WireError as error:
            raise UnreachableError(str(error)) from None
        for reason in page.rejected:
            self._observe(FrameRejected(reason, f"a row of {symbol}'s history"))
        return page

    async def _get(self, path: str, params: dict[str, str], place: Place) -> bytes:
        async with self._queue.turn(place, _WEIGHTS[path]) as turn:
            reply = await self._http.get(path, params, max_bytes=_MAX_BODY_BYTES)
            turn.reported = reply.count("x-mbx-used-weight-1m")
        if turn.reported is not None:
            self._observe(WeightUsed(turn.reported / self._budget.limit))
        if reply.status == 200:
            return reply.body
        self._queue.obey(reply.status, reply.count("retry-after"))
        if reply.status == 400:
            try:
                binance.raise_refusal(reply.status, reply.body)
            except WireError as error:
                raise UnreachableError(str(error)) from None
        raise UnreachableError(f"HTTP {reply.status} from {path}")
