"""GET over httpx, bounded in time and in size, for REST and the archive.

A request returns a complete answer or raises `UnreachableError`; nothing is retried, and no redirect is followed.
When a request may leave is decided before, in `stream.adapters.rest.request_queue`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx

from stream.adapters.outbound import Way, way_to
from stream.errors import UnreachableError
from stream.urls import mask

_TIMEOUT_S = 10.0
_REQUEST_S = 20.0
#: The most requests at a time: as many as the client keeps connections for.
AT_ONCE = 20


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

    def __init__(self, base_url: str, *, headers: dict[str, str] | None = None, way: Way | None = None) -> None:
        """`way` is an earlier result of `way_to`; without it the environment is read, and `RefusedError` raised where
        its proxy or authorities cannot be used."""
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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def get(self, path: str, params: dict[str, str] | None = None, *, max_bytes: int) -> Reply:
        """Returns the answer, whatever its status. Raises `UnreachableError` where the server cannot be reached, or the
        answer does not end in time or is longer than `max_bytes`."""
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


def _count(text: str) -> int | None:
    # isdigit alone accepts "²", which int does not; and a number of more digits than this is no count.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None
