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
_REQUEST_S = 20.0
_MAX_BODY_BYTES = 4 * 1024 * 1024
#: The longest the exchange bans anybody (418): three days; and the longest pause (429) that makes sense.
_LONGEST_BAN_S = 259_200.0
_LONGEST_PAUSE_S = 600.0
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
            if not page.candles or page.candles[-1].open_time < start:
                raise UnreachableError(f"a full page of {symbol} without a candle from {start} on")
            start = page.candles[-1].open_time + HOUR_MS
        return Answer(found, server_ms)

    async def _get(self, path: str, params: dict[str, str]) -> bytes:
        wait_s = self._not_before_s - self._clock.monotonic_s()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        try:
            # The client's own timeout is per read: an answer that drips would never end.
            async with asyncio.timeout(_REQUEST_S), self._client.stream("GET", path, params=params) as answer:
                body = await self._body(answer)
        except TimeoutError:
            raise UnreachableError(f"{self._client.base_url}: no whole answer in {_REQUEST_S:g} s") from None
        except httpx.HTTPError as error:
            raise UnreachableError(f"{self._client.base_url}: {type(error).__name__} {error}".strip()) from None
        used = answer.headers.get("x-mbx-used-weight-1m", "")
        if _is_count(used):
            self._observe(WeightUsed(int(used) / self._weight_limit))
        if answer.status_code == 200:
            return body
        if answer.status_code in (418, 429):
            asked = answer.headers.get("retry-after", "")
            longest_s = _LONGEST_BAN_S if answer.status_code == 418 else _LONGEST_PAUSE_S
            wait_s = min(float(asked), longest_s) if _is_count(asked) else _DEFAULT_RETRY_AFTER_S
            self._not_before_s = self._clock.monotonic_s() + wait_s
            raise UnreachableError(f"HTTP {answer.status_code}: the exchange wants silence for {wait_s:g} s")
        if answer.status_code == 400:
            try:
                binance.raise_refusal(answer.status_code, body)
            except WireError as error:
                raise UnreachableError(str(error)) from None
        raise UnreachableError(f"HTTP {answer.status_code} from {path}")

    async def _body(self, answer: httpx.Response) -> bytes:
        body = bytearray()
        async for chunk in answer.aiter_bytes():
            body += chunk
            if len(body) > _MAX_BODY_BYTES:
                raise UnreachableError(f"{self._client.base_url}: an answer of over {_MAX_BODY_BYTES} bytes")
        return bytes(body)


def _is_count(text: str) -> bool:
    # isdigit alone takes "²", which int does not; and a count of more digits than this is none.
    return text.isascii() and text.isdigit() and len(text) <= 9
