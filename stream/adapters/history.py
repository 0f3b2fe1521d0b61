"""REST, the truth: closed candles, server time and symbols from Binance's public API, over httpx.

A refusal with Retry-After binds every later request of this client. Before candles are asked for, the server is
asked for its time, so a row that was still forming then is never taken for closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

import httpx

from stream.core import binance
from stream.core.binance import ExchangeInfo, WireError
from stream.core.candle import HOUR_MS, Candle
from stream.ports import Answer, Clock, FrameRejected, Observer, UnreachableError, WeightUsed

_TIMEOUT_S = 10.0
#: Where a 429 or 418 does not say how long.
_DEFAULT_RETRY_AFTER_S = 30.0
#: The longest the exchange bans anybody: three days.
_LONGEST_BAN_S = 259_200.0
#: The exchange's limit until exchangeInfo has told ours.
_WEIGHT_PER_MINUTE = 6_000


class BinanceHistory:
    """`stream.ports.History` against `base_url`. One connection pool; used from one event loop."""

    def __init__(
        self,
        base_url: str,
        *,
        clock: Clock,
        observe: Observer = lambda fact: None,
        told_time: Callable[[int], None] = lambda server_ms: None,
    ) -> None:
        """`told_time` hears every server time, as it arrives."""
        loopback = httpx.URL(base_url).host in ("127.0.0.1", "localhost", "::1")
        self._client = httpx.AsyncClient(base_url=base_url, timeout=_TIMEOUT_S, trust_env=not loopback)
        self._clock = clock
        self._observe = observe
        self._told_time = told_time
        self._not_before_s = 0.0
        self._weight_limit = _WEIGHT_PER_MINUTE

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def server_time_ms(self) -> int:
        try:
            server_ms = binance.decode_time(await self._get("/api/v3/time", {}))
        except WireError as error:
            raise UnreachableError(str(error)) from None
        self._told_time(server_ms)
        return server_ms

    async def exchange_info(self, symbol: str) -> ExchangeInfo:
        try:
            info = binance.decode_exchange_info(await self._get("/api/v3/exchangeInfo", {"symbol": symbol}))
        except WireError as error:
            raise UnreachableError(str(error)) from None
        if info.weight_per_minute:
            self._weight_limit = info.weight_per_minute
        return info

    async def candles(self, symbol: str, from_open_time: int, to_open_time: int | None = None) -> Answer:
        found: list[Candle] = []
        start, server_ms = from_open_time, await self.server_time_ms()
        while to_open_time is None or start <= to_open_time:
            body = await self._get("/api/v3/klines", binance.klines_params(symbol, start, to_open_time))
            try:
                page = binance.decode_klines(body, symbol, server_ms)
            except WireError as error:
                raise UnreachableError(str(error)) from None
            for reason in page.rejected:
                self._observe(FrameRejected(reason, f"a row of {symbol}'s history"))
            found += [c for c in page.candles if c.open_time >= start]
            if page.rows < binance.KLINES_PAGE or page.forming:
                break
            # A full page without one usable row must still move on.
            last = page.candles[-1].open_time if page.candles else start + (binance.KLINES_PAGE - 1) * HOUR_MS
            start = max(start, last) + HOUR_MS
        return Answer(found, server_ms)

    async def _get(self, path: str, params: dict[str, str]) -> bytes:
        wait_s = self._not_before_s - self._clock.monotonic_s()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        try:
            answer = await self._client.get(path, params=params)
        except httpx.HTTPError as error:
            raise UnreachableError(f"{self._client.base_url}: {type(error).__name__} {error}".strip()) from None
        used = answer.headers.get("x-mbx-used-weight-1m", "")
        if _is_count(used):
            self._observe(WeightUsed(int(used) / self._weight_limit))
        if answer.status_code == 200:
            return answer.content
        if answer.status_code in (418, 429):
            asked = answer.headers.get("retry-after", "")
            wait_s = min(float(asked), _LONGEST_BAN_S) if _is_count(asked) else _DEFAULT_RETRY_AFTER_S
            self._not_before_s = self._clock.monotonic_s() + wait_s
            raise UnreachableError(f"HTTP {answer.status_code}: the exchange wants silence for {wait_s:g} s")
        if answer.status_code == 400:
            try:
                binance.raise_refusal(answer.status_code, answer.content)
            except WireError as error:
                raise UnreachableError(str(error)) from None
        raise UnreachableError(f"HTTP {answer.status_code} from {path}")


def _is_count(text: str) -> bool:
    # isdigit alone takes "²", which int does not.
    return text.isascii() and text.isdigit()
