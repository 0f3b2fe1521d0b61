"""The socket, the news: Binance's combined kline stream over `websockets`.

It reconnects for ever, and by its own rules: the library's backoff starts over at each handshake, so a server
that accepts and closes would be hammered, and it takes most HTTP refusals for final. Watching is done on data:
a peer that pongs and sends nothing is as good as dead.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Literal
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from stream.adapters.backoff import Backoff
from stream.core import binance
from stream.core.binance import KlineUpdate, Reply, WireError
from stream.ports import (
    Clock,
    FeedConnected,
    FeedDisconnected,
    FeedListener,
    FrameReceived,
    FrameRejected,
    Observer,
)

log = logging.getLogger(__name__)

_OPEN_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 1.0
#: The exchange counts control frames in a rolling second and closes at the sixth: one in 250 ms always works.
_CONTROL_SPACING_S = 0.25
_SUBSCRIBE_BATCH = 100
#: A refusal that says "you ask too often" or "not you" is not asked again sooner.
_REFUSED_DELAY_S = 30.0


#: Told apart in counters; a label may not take as many values as a server likes to send.
_STATUSES = (403, 418, 429, 451, 500, 502, 503)
_CLOSE_CODES = (1000, 1001, 1006, 1008, 1011, 1012)


def proxy_for(url: str) -> Literal[True] | None:
    """Whether the environment's proxy applies: to everything but this machine."""
    return None if urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1") else True


class BinanceFeed:
    """`stream.ports.Feed`: one connection for all symbols."""

    def __init__(
        self,
        base_url: str,
        symbols: Sequence[str],
        *,
        clock: Clock,
        observe: Observer,
        rng: random.Random,
        stall_after_s: float = 60.0,
        healthy_after_s: float = 10.0,
        backoff: Backoff | None = None,
    ) -> None:
        """`stall_after_s`: real seconds without any data frame after which the connection is given up.
        `healthy_after_s`: age at which a connection that delivers data forgives earlier failures."""
        self._base_url = base_url
        self._symbols = tuple(symbols)
        self._clock = clock
        self._observe = observe
        self._stall_after_s = stall_after_s
        self._healthy_after_s = healthy_after_s
        self._backoff = backoff or Backoff(rng)

    async def run(self, listener: FeedListener) -> None:
        while True:
            reason, least_delay_s = await self._connection(listener)
            self._observe(FeedDisconnected(reason))
            listener.disconnected(reason)
            await asyncio.sleep(max(least_delay_s, self._backoff.next_s()))

    async def _connection(self, listener: FeedListener) -> tuple[str, float]:
        """One connection from handshake to end: why it ended, and how long to wait at least."""
        url = binance.stream_url(self._base_url, self._symbols)
        try:
            async with connect(
                url,
                proxy=proxy_for(url),
                compression=None,
                open_timeout=_OPEN_TIMEOUT_S,
                close_timeout=_CLOSE_TIMEOUT_S,
                max_queue=64,
            ) as socket:
                return await self._listen(socket, listener)
        except InvalidStatus as error:
            status = error.response.status_code
            log.warning("the exchange refused the stream: HTTP %d", status)
            reason = f"http_{status if status in _STATUSES else 'other'}"
            return reason, _REFUSED_DELAY_S if status in (403, 418, 429, 451) else 0.0
        except ConnectionClosed as error:
            code = error.rcvd.code if error.rcvd else None
            log.warning("the stream was closed by the exchange: %s", error)
            if code is None:
                return "connection_lost", 0.0
            return f"closed_{code if code in _CLOSE_CODES else 'other'}", 0.0
        except (OSError, TimeoutError, InvalidHandshake, InvalidURI, UnicodeError) as error:
            log.warning("no stream: %s %s", type(error).__name__, error)
            return "unreachable", 0.0

    async def _listen(self, socket: ClientConnection, listener: FeedListener) -> tuple[str, float]:
        self._observe(FeedConnected())
        listener.connected()
        opened_at_s = self._clock.monotonic_s()
        rest = self._symbols[binance.STREAMS_PER_URL :]
        subscribing = asyncio.create_task(self._subscribe(socket, rest))
        try:
            async with asyncio.timeout(self._stall_after_s) as watchdog:
                while True:
                    data = await socket.recv(decode=False)
                    received_at_s = self._clock.monotonic_s()
                    if not await self._frame(data, received_at_s, listener):
                        continue
                    # Counted from now: the time that delivery took is ours, not the exchange's silence.
                    watchdog.reschedule(asyncio.get_running_loop().time() + self._stall_after_s)
                    if received_at_s - opened_at_s >= self._healthy_after_s:
                        self._backoff.healthy()
        except TimeoutError:
            log.warning("no data for %g s on an open stream: reconnecting", self._stall_after_s)
            return "stall", 0.0
        finally:
            # A subscription that failed did so because the connection ended, which is said above.
            subscribing.cancel()
            await asyncio.gather(subscribing, return_exceptions=True)

    async def _subscribe(self, socket: ClientConnection, symbols: Sequence[str]) -> None:
        for i in range(0, len(symbols), _SUBSCRIBE_BATCH):
            await asyncio.sleep(_CONTROL_SPACING_S)
            batch = symbols[i : i + _SUBSCRIBE_BATCH]
            await socket.send(binance.control("SUBSCRIBE", batch, i // _SUBSCRIBE_BATCH + 1), text=True)

    async def _frame(self, data: bytes, received_at_s: float, listener: FeedListener) -> bool:
        """Delivers one frame; whether it was data (which is what the watchdog waits for)."""
        try:
            frame = binance.decode_frame(data)
        except WireError as error:
            self._observe(FrameRejected(error.reason, str(error)))
            return False
        if isinstance(frame, KlineUpdate):
            self._observe(FrameReceived("kline_closed" if frame.closed else "kline"))
            if frame.closed:
                await listener.closed(frame, received_at_s)
            else:
                listener.forming(frame, received_at_s)
            return True
        if isinstance(frame, Reply):
            self._observe(FrameReceived("reply"))
            if frame.error:
                log.warning("the exchange refused a control frame: %s", frame.error)
            return False
        self._observe(FrameReceived("server_shutdown"))
        log.info("the exchange announces that it will close this connection")
        return False
