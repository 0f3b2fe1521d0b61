"""GET over httpx, bounded in time and in size, for REST and the archive.

Rules of this module:
- A request returns a complete answer or raises `UnreachableError`; nothing is retried, and no redirect is followed.
- A refusal with Retry-After (429, 418) binds every later request of this client: none is sent until it is over.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx

from stream.adapters.outbound import Way, way_to
from stream.clock import Clock
from stream.errors import UnreachableError
from stream.urls import mask

_TIMEOUT_S = 10.0
#: Where a 429 or 418 does not say how long.
_DEFAULT_RETRY_AFTER_S = 30.0
_REQUEST_S = 20.0
#: Requests at a time, as many as the client keeps connections for; the others wait in order.
AT_ONCE = 20
#: The longest the exchange bans anybody (418): three days; and the longest pause (429) that makes sense.
_LONGEST_BAN_S = 259_200.0
_LONGEST_PAUSE_S = 600.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer, whatever its status."""

    status: int
    headers: httpx.Headers
    body: bytes

    def count(self, header: str) -> int | None:
        """Returns the number in a header; None where there is none."""
        return _count(self.headers.get(header, ""))


class HttpGet:
    """One connection pool to `base_url`; used from one event loop."""

    def __init__(
        self,
        base_url: str,
        *,
        clock: Clock,
        headers: dict[str, str] | None = None,
        patience_s: float = float("inf"),
        way: Way | None = None,
    ) -> None:
        """A pause that the server asks for is waited for where it ends within `patience_s`; else requests raise
        `UnreachableError`. `way` is an earlier result of `way_to`; without it the environment is read, and
        `RefusedError` raised where its proxy or authorities cannot be used."""
        way = way or way_to(base_url)
        self._name = mask(base_url) + (f" through {mask(way.proxy)}" if way.proxy else "")
        self._client = httpx.AsyncClient(
            base_url=base_url,
            timeout=_TIMEOUT_S,
            trust_env=False,
            proxy=httpx.Proxy(way.proxy, ssl_context=way.proxy_tls) if way.proxy else None,
            verify=way.tls or False,
            headers=headers,
        )
        self._clock = clock
        self._patience_s = patience_s
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._not_before_s = 0.0
        self._banned_until_s = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    @property
    def silent_for_s(self) -> float:
        """Seconds that the next request would wait."""
        return max(0.0, self._not_before_s - self._clock.monotonic_s())

    def keep_silent(self, seconds: float) -> None:
        self._not_before_s = max(self._not_before_s, self._clock.monotonic_s() + seconds)

    async def get(self, path: str, params: dict[str, str] | None = None, *, max_bytes: int) -> Reply:
        """Returns the answer, whatever its status, once any pause is over.

        Raises `UnreachableError` where a ban exceeds `patience_s`, the server cannot be reached, or the answer does not
        end in time or is longer than `max_bytes`.
        """
        # Many symbols ask at once after a start: in the client's own queue their requests would run out of time.
        async with self._slots:
            await self._wait_out_silence()
            try:
                # The client's own timeout is per read: an answer that drips would never end.
                async with asyncio.timeout(_REQUEST_S), self._client.stream("GET", path, params=params) as answer:
                    body = bytearray()
                    async for chunk in answer.aiter_bytes():
                        body += chunk
                        if len(body) > max_bytes:
                            raise UnreachableError(f"{self._name}: an answer of over {max_bytes} bytes")
            except TimeoutError:
                raise UnreachableError(f"{self._name}: no whole answer in {_REQUEST_S:g} s") from None
            except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
                raise UnreachableError(f"{self._name}: {type(error).__name__} {error}".strip()) from None
            return Reply(answer.status_code, answer.headers, bytes(body))

    async def _wait_out_silence(self) -> None:
        while (wait_s := self.silent_for_s) > 0:
            banned_for_s = self._banned_until_s - self._clock.monotonic_s()
            if banned_for_s > self._patience_s:
                raise UnreachableError(f"the exchange wants silence for {banned_for_s:.0f} s more")
            await self._clock.sleep(wait_s)

    def obey(self, reply: Reply) -> None:
        """Raises `UnreachableError` where the answer asks for a pause (418, 429), which later requests wait for."""
        if reply.status not in (418, 429):
            return
        asked_s = reply.count("retry-after")
        longest_s = _LONGEST_BAN_S if reply.status == 418 else _LONGEST_PAUSE_S
        wait_s = _DEFAULT_RETRY_AFTER_S if asked_s is None else min(float(asked_s), longest_s)
        self.keep_silent(wait_s)
        self._banned_until_s = self._not_before_s
        raise UnreachableError(f"HTTP {reply.status}: the exchange wants silence for {wait_s:g} s")


def _count(text: str) -> int | None:
    # isdigit alone accepts "²", which int does not; and a number of more digits than this is no count.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None
