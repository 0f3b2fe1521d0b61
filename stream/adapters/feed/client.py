"""The exchange's websocket: Binance's combined kline stream over `websockets`.

Rules of this module:
- It reconnects for ever, with its own backoff: the library's starts over at each handshake, so a server that accepts
  and closes would be hammered, and it treats most HTTP refusals as final.
- A connection is judged by its data, and REST decides: a peer that answers pings and sends no data is dead where
  something was traded, and quiet where nothing was.
- A connection that is about to end is relieved: its successor receives data before it is closed. The sequencer
  recognizes a candle that both deliver.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from stream.adapters.backoff import ADDRESS_RACE_S, Backoff, ConnectBudget
from stream.adapters.feed.control_frames import ControlFrames
from stream.adapters.feed.silence import Silence
from stream.adapters.feed.sockets import Connect, Link, Socket, proxy_and_tls
from stream.adapters.outbound import Way, way_to
from stream.clock import Clock
from stream.core.market import binance
from stream.core.market.binance import KlineUpdate, Reply, UnknownSymbolError, WireError
from stream.core.market.candle import Candle
from stream.errors import UnreachableError
from stream.ports import FeedListener
from stream.telemetry import FeedConnected, FeedDisconnected, FeedQuiet, FrameReceived, FrameRejected, Observer

log = logging.getLogger(__name__)

_OPEN_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 1.0
_SUBSCRIBE_BATCH = 100
#: Least delay after a refusal that means "too often", "not you" or "not here".
_REFUSED_DELAY_S = 30.0
_REFUSALS = (301, 302, 307, 308, 403, 404, 418, 429, 451)
#: The exchange ends a connection after 24 hours; it is relieved at a random age in this range.
ROTATE_AFTER_S = (79_200.0, 84_600.0)
#: Time between two checks of a connection.
_CHECK_S = 1.0
#: A check that is late by more than this was held up, and so was the reader: the silence is not the exchange's.
_HELD_UP_S = 5.0
#: How long REST may take to tell whether a silent stream is dead, and the stream after that to prove that it is not.
_ARBITER_S = 10.0
_PROOF_S = 5.0
#: How many streams REST is asked about in one check.
_ASKED_AT_ONCE = 3
#: A successor of this age that has delivered any data takes over, even if some of its symbols are quiet.
_OVERLAP_S = 15.0

#: Counted separately in metrics; all others share a label, which may not take any value that a server sends.
_STATUSES = (*_REFUSALS, 500, 502, 503)
_CLOSE_CODES = (1000, 1001, 1006, 1008, 1011, 1012)

#: What observers get for each of the many frames that carry a candle.
_FORMING = FrameReceived("kline")
_CLOSING = FrameReceived("kline_closed")

#: Returns REST's newest candle of a symbol, closed or forming. Raises `UnreachableError` where REST does not answer.
Newest = Callable[[str], Awaitable[Candle | None]]


class BinanceFeed:
    """Implements `stream.ports.Feed` with one connection for all symbols, two while one relieves the other."""

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
        budget: ConnectBudget | None = None,
        newest: Newest | None = None,
        until_calm_s: Callable[[], float] = lambda: 0.0,
        rotate_after_s: tuple[float, float] = ROTATE_AFTER_S,
        way: Way | None = None,
    ) -> None:
        """After `stall_after_s` real seconds of silence REST (`newest`) is asked whether there was any data; without
        `newest` a silent connection counts as dead. At an age of `healthy_after_s` a connection that delivers data
        resets the backoff. `until_calm_s` returns the seconds until a moment that is far from a close; only then is a
        connection relieved for its age."""
        self._base_url = base_url
        self._way = way or way_to(base_url)
        self._symbols = tuple(symbols)
        self._clock = clock
        self._observe = observe
        self._rng = rng
        self._stall_after_s = stall_after_s
        self._healthy_after_s = healthy_after_s
        self._backoff = backoff or Backoff(rng)
        self._budget = budget or ConnectBudget(clock.monotonic_s)
        self._newest = newest
        self._until_calm_s = until_calm_s
        self._rotate_after_s = rotate_after_s
        self._known: dict[str, Candle] = {}
        self._open = 0
        self._quiet = False
        self._complained = ""

    async def run(self, listener: FeedListener) -> None:
        links: list[Link] = []
        try:
            while True:
                if not links:
                    links.append(await self._start(listener))
                leader = links[0]
                assert leader.task is not None
                await _first(leader.task, leader.relieve.wait())
                if not leader.task.done():
                    await self._relieve(links, listener)
                    continue
                links.remove(leader)
                _, least_delay_s = leader.task.result()
                await self._clock.sleep(max(least_delay_s, self._backoff.next_s()))
        finally:
            tasks = [link.task for link in links if link.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _start(self, listener: FeedListener) -> Link:
        while (wait_s := self._budget.wait_s()) > 0:
            log.log(logging.WARNING if wait_s >= 1 else logging.DEBUG, "the stream: reconnecting in %.0f s", wait_s)
            await self._clock.sleep(wait_s)
        self._budget.spend()
        link = Link()
        link.task = asyncio.create_task(self._connection(link, listener), name="feed connection")
        return link

    async def _relieve(self, links: list[Link], listener: FeedListener) -> None:
        """Opens successors until one receives data or the leader has ended; `links` then holds those that remain."""
        leader = links[0]
        assert leader.task is not None
        while not leader.task.done():
            successor = await self._start(listener)
            assert successor.task is not None
            links.append(successor)
            await _first(leader.task, successor.task, successor.receiving.wait())
            if successor.receiving.is_set() and not successor.task.done():
                await leader.end("rotated")
                await asyncio.wait([leader.task])
            elif not successor.task.done():
                break
            else:
                links.remove(successor)
                delay_s = max(successor.task.result()[1], self._backoff.next_s())
                await _first(leader.task, self._clock.sleep(delay_s))
        links.remove(leader)

    async def _connection(self, link: Link, listener: FeedListener) -> tuple[str, float]:
        """Runs one connection from handshake to end. Returns why it ended, and the least delay before the next in s."""
        connected = False
        reason, delay_s = "cancelled", 0.0
        try:
            async with self._connect() as socket:
                link.socket, connected = socket, True
                self._observe(FeedConnected())
                self._open += 1
                if self._open == 1:
                    listener.connected()
                await self._listen(link, socket, listener)
        except InvalidStatus as error:
            status = error.response.status_code
            reason = f"http_{status if status in _STATUSES else 'other'}"
            delay_s = _REFUSED_DELAY_S if status in _REFUSALS else 0.0
            place = error.response.headers.get("Location")
            moved = f" and names {place[:200]}: if that is the exchange's word, set --ws-url" if place else ""
            self._complain(reason, f"the exchange refused the stream: HTTP {status}{moved}")
        except ConnectionClosed as error:
            code = error.rcvd.code if error.rcvd else None
            if link.ending:
                reason = link.ending
            elif code is None:
                reason = "connection_lost"
            else:
                reason = f"closed_{code if code in _CLOSE_CODES else 'other'}"
            if link.ending == "rotated":
                log.info("the stream goes on over its next connection")
            elif link.ending == "stall":
                self._complain(reason, f"no data for {self._stall_after_s:g} s on an open stream: reconnecting")
            else:
                self._complain(reason, f"the exchange closed the stream, reconnecting: {error}")
        except (OSError, TimeoutError, WebSocketException, UnicodeError) as error:
            reason = "unreachable"
            self._complain(reason, f"no connection to the stream, reconnecting: {type(error).__name__} {error}")
        finally:
            if connected:
                self._open -= 1
            if reason != "cancelled":
                self._report_quiet(quiet=False)
                self._observe(FeedDisconnected(reason, still_open=self._open > 0))
                if not self._open:
                    listener.disconnected(reason)
        return reason, delay_s

    def _connect(self) -> Connect:
        return Connect(
            binance.stream_url(self._base_url, self._symbols),
            **proxy_and_tls(self._way),
            compression=None,
            open_timeout=_OPEN_TIMEOUT_S,
            close_timeout=_CLOSE_TIMEOUT_S,
            # Our own pings would count as control frames, and their pongs would prove nothing.
            ping_interval=None,
            max_queue=64,
            create_connection=Socket,
            happy_eyeballs_delay=ADDRESS_RACE_S,
        )

    def _complain(self, reason: str, text: str) -> None:
        """Logs a warning; repetitions of the same reason are logged at DEBUG until the stream was healthy again."""
        log.log(logging.DEBUG if reason == self._complained else logging.WARNING, "%s", text)
        self._complained = reason

    async def _listen(self, link: Link, socket: ClientConnection, listener: FeedListener) -> None:
        """Delivers frames until the connection ends, which raises `ConnectionClosed`."""
        opened_at_s = self._clock.monotonic_s()
        frames = ControlFrames(self._clock.monotonic_s)
        if isinstance(socket, Socket):
            socket.frames = frames
        silence = Silence(self._symbols, self._known, opened_at_s, self._stall_after_s)
        tasks = [
            asyncio.create_task(self._subscribe(link, frames, self._symbols[binance.STREAMS_PER_URL :])),
            asyncio.create_task(self._look_after(link, silence, frames, opened_at_s)),
        ]
        try:
            while True:
                data = await socket.recv(decode=False)
                received_at_s = self._clock.monotonic_s()
                update = self._update(link, data)
                if update is None:
                    continue
                if update.closed:
                    self._observe(_CLOSING)
                    link.delivering = True
                    await listener.closed(update, received_at_s)
                    link.delivering = False
                else:
                    self._observe(_FORMING)
                    listener.forming(update, received_at_s)
                # Counted from now: the time that delivery took is not silence of the exchange.
                silence.received(update.candle, self._clock.monotonic_s())
                if self._quiet:
                    self._report_quiet(quiet=False)
                if len(silence.received_from) == len(self._symbols):
                    link.receiving.set()
                if received_at_s - opened_at_s >= self._healthy_after_s:
                    self._backoff.healthy()
                    self._complained = ""
        finally:
            # A failure in them is a consequence of the connection's end, which is reported elsewhere.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _update(self, link: Link, data: bytes) -> KlineUpdate | None:
        """Decodes one frame. Returns it where it carries data, which ends a silence; else acts on it and returns
        None."""
        try:
            frame = binance.decode_frame(data)
        except WireError as error:
            self._observe(FrameRejected(error.reason, str(error)))
            return None
        if isinstance(frame, KlineUpdate):
            return frame
        if isinstance(frame, Reply):
            self._observe(FrameReceived("reply"))
            if frame.error:
                log.warning("the exchange refused a control frame: %s", frame.error)
            return None
        self._observe(FrameReceived("server_shutdown"))
        log.info("the exchange announces that it will close this connection: opening the next one")
        link.relieve.set()
        return None

    # --- looking after a connection ----------------------------------------------------------------------------

    async def _look_after(self, link: Link, silence: Silence, frames: ControlFrames, opened_at_s: float) -> None:
        rotate_at_s = opened_at_s + self._rng.uniform(*self._rotate_after_s)
        period_s = min(_CHECK_S, self._stall_after_s / 4)
        while True:
            asked_s = self._clock.monotonic_s()
            await self._clock.sleep(period_s)
            now_s = self._clock.monotonic_s()
            if now_s >= rotate_at_s and not link.relieve.is_set() and self._until_calm_s() <= 0:
                log.info("this connection is %.0f h old: opening the next one", (now_s - opened_at_s) / 3_600)
                link.relieve.set()
            if link.delivering or now_s - asked_s > period_s + _HELD_UP_S:
                silence.excuse(now_s)
                continue
            if silence.received_from and now_s - opened_at_s >= _OVERLAP_S:
                link.receiving.set()
            if silence.suspects(now_s) and await self._judge(link, silence, frames):
                await link.end("stall")
                return

    async def _judge(self, link: Link, silence: Silence, frames: ControlFrames) -> bool:
        """Asks REST about the silent streams and tries to revive dead ones. Returns whether the connection is dead."""
        now_s = self._clock.monotonic_s()
        asked = silence.suspects(now_s)[:_ASKED_AT_ONCE]
        if silence.total(now_s):
            if self._newest is None:
                return True
            verdicts = [await self._has_news(silence, symbol) for symbol in asked]
            if not all(v is False for v in verdicts):
                # REST may be a moment ahead of a healthy stream.
                await self._clock.sleep(min(_PROOF_S, self._stall_after_s / 4))
                return silence.total(self._clock.monotonic_s())
            self._report_quiet(quiet=True)
            silence.excuse(self._clock.monotonic_s())
            return False
        for symbol in asked:
            verdict = await self._has_news(silence, symbol) if self._newest is not None else True
            now_s = self._clock.monotonic_s()
            if symbol not in silence.suspects(now_s):
                continue
            if verdict is not True:
                silence.cleared(symbol, now_s)
                continue
            attempt = silence.woken(symbol, now_s)
            if attempt == 1:
                log.warning(
                    "%s: no data on the stream while other symbols have some: resubscribing",
                    symbol,
                    extra={"symbol": symbol},
                )
                await self._send_control(link, frames, "UNSUBSCRIBE", [symbol])
                await self._send_control(link, frames, "SUBSCRIBE", [symbol])
            elif not link.relieve.is_set():
                log.warning(
                    "%s: still no data on the stream: opening the next connection; REST brings its candles",
                    symbol,
                    extra={"symbol": symbol},
                )
                link.relieve.set()
        return False

    async def _has_news(self, silence: Silence, symbol: str) -> bool | None:
        """Returns whether the exchange has data that the stream did not deliver; None where that is unknown."""
        assert self._newest is not None
        try:
            async with asyncio.timeout(_ARBITER_S):
                return silence.has_news(symbol, await self._newest(symbol))
        except (UnreachableError, UnknownSymbolError, TimeoutError):
            return None

    def _report_quiet(self, *, quiet: bool) -> None:
        if quiet != self._quiet:
            self._quiet = quiet
            log.info("the stream is %s", "quiet: REST has no news either" if quiet else "not quiet any more")
            self._observe(FeedQuiet(quiet))

    # --- sending -----------------------------------------------------------------------------------------------

    async def _subscribe(self, link: Link, frames: ControlFrames, symbols: Sequence[str]) -> None:
        for i in range(0, len(symbols), _SUBSCRIBE_BATCH):
            await self._send_control(link, frames, "SUBSCRIBE", symbols[i : i + _SUBSCRIBE_BATCH])

    async def _send_control(
        self, link: Link, frames: ControlFrames, method: Literal["SUBSCRIBE", "UNSUBSCRIBE"], symbols: Sequence[str]
    ) -> None:
        while (wait_s := frames.wait_s()) > 0:
            await self._clock.sleep(wait_s)
        frames.json_sent()
        link.request_id += 1
        assert link.socket is not None
        await link.socket.send(binance.control(method, symbols, link.request_id), text=True)


async def _first(*waited_for: Any) -> None:
    """Returns when the first of `waited_for` is done. Those that are tasks go on; the others are cancelled."""
    own = [asyncio.ensure_future(w) for w in waited_for if not isinstance(w, asyncio.Task)]
    others = [w for w in waited_for if isinstance(w, asyncio.Task)]
    try:
        await asyncio.wait([*own, *others], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in own:
            task.cancel()
        await asyncio.gather(*own, return_exceptions=True)
