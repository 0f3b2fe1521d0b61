"""A spot exchange on loopback: real servers in Binance's dialect, a tape for a market, faults on request.

It plays the tape on a virtual clock that stands still until a client has asked for the time or has
subscribed. From then on it runs at its speed, which clients rely on; candles that close while no client
is subscribed are available from REST. Every close is sent, or withheld by a fault, and never lost to
haste: sends wait for the slowest client. At speed None time jumps from close to close, with a ping after
each, whose pongs are waited for; while no client is subscribed it waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import itertools
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import msgspec
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from stream import web
from stream.core.market.candle import HOUR_MS, Candle, grid_floor
from stream.testing.access_log import AccessLog, LogEntry
from stream.testing.fault_board import FaultBoard
from stream.testing.faults import (
    DelayClose,
    Drop,
    EarlyClose,
    End,
    Fault,
    FaultError,
    Microseconds,
    Revise,
    Shutdown,
    WrongClose,
    parse_fault,
)
from stream.testing.junk import JUNK
from stream.testing.limits import CONNECTS_PER_5_MIN, Rolling, SocketLimits
from stream.testing.rest_api import WEIGHT_PER_MINUTE, WeightMeter, rest_app
from stream.testing.tape import Tape, forming, with_close
from stream.testing.virtual_clock import VirtualClock
from stream.testing.wire import Json
from stream.testing.ws_api import Connection, Hub, Listener, Update, parse_path

#: How many ms after its end a candle's close is announced, at least and at most; observed for BTCUSDT on the real
#: exchange.
CLOSING_DELAY_MS = (70, 120)
#: A forming candle is pushed every 2 s of the exchange's time, but not more often than this in real time.
FORMING_PERIOD_MS = 2_000
FORMING_PERIOD_REAL_S = 0.2
#: How long after a close `replaying` starts: the close itself has then surely been announced.
START_AFTER_CLOSE_MS = 200
#: A client that leaves a ping unanswered for this long is disconnected, as the real exchange does.
PONG_TIMEOUT_S = 60.0

logger = logging.getLogger(__name__)


class Exchange:
    """Serves within `async with Exchange(tape, start_ms, end_ms, speed) as ex:`.

    Candles whose hour is over at `start_ms` are history, served by REST; the others are played, up to
    those whose hour is over at `end_ms` (None: the end of the tape). `speed` is virtual seconds per
    real one; None is as fast as the clients read.
    """

    def __init__(
        self,
        tape: Mapping[str, Iterable[Candle]],
        start_ms: int,
        end_ms: int | None = None,
        speed: float | None = None,
        *,
        host: str = "127.0.0.1",
        ws_port: int = 0,
        rest_port: int = 0,
        seed: int = 0,
        ping_interval_s: float = 20.0,
        weight_per_minute: int = WEIGHT_PER_MINUTE,
        connects_per_5_min: int = CONNECTS_PER_5_MIN,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tape = Tape(tape)
        self.start_ms = start_ms
        self.end_ms = max(start_ms, self.tape.end_ms if end_ms is None else end_ms)
        self.finished = asyncio.Event()
        self.board = FaultBoard()
        self._clock = VirtualClock(start_ms, speed, monotonic)
        self.access_log = AccessLog(self._clock.now_ms, monotonic)
        self._hub = Hub(on_listening=self._clock.start)
        self._meter = WeightMeter(weight_per_minute, monotonic)
        self._address = (host, ws_port, rest_port)
        self._seed = seed
        self._ping_interval_s = ping_interval_s
        self._numbers = itertools.count(1)
        self._outage_closes = 0
        self._monotonic = monotonic
        self._limits = SocketLimits(connects_per_5_min, monotonic)
        #: Closes to be sent late: after the next update, or after the next close.
        self._delayed: dict[str, list[Update]] = {"update": [], "close": []}
        #: Connections to be closed, and after how many closes.
        self._ending: list[tuple[list[Connection], int]] = []
        self._acts: set[asyncio.Task[None]] = set()
        self._cleanup = AsyncExitStack()
        self.ws_url = ""
        self.rest_url = ""

    @classmethod
    def replaying(
        cls, tape: Mapping[str, Iterable[Candle]], from_ms: int, hours: int, speed: float | None, **options: Any
    ) -> Self:
        """Returns the exchange of `--from F --hours N`: at connect, candle F is the newest closed one, and
        the closes of the N - 1 hours after it are played."""
        first = grid_floor(from_ms)
        start_ms = first + HOUR_MS + START_AFTER_CLOSE_MS
        return cls(tape, start_ms, first + hours * HOUR_MS, speed, **options)

    def now_ms(self) -> int:
        """Returns the virtual time."""
        return self._clock.now_ms()

    def server_time(self) -> int:
        """Returns the virtual time to a client, which will extrapolate from it at the speed that it knows.

        So it starts the clock. At max speed no client can extrapolate, and time waits for subscribers.
        """
        if self._clock.speed is not None:
            self._clock.start()
        return self.now_ms()

    @property
    def log(self) -> list[LogEntry]:
        """What clients have done so far, in order of arrival."""
        return self.access_log.entries()

    def state(self) -> Json:
        return {
            "now_ms": self.now_ms(),
            "start_ms": self.start_ms,
            "end_ms": self.end_ms,
            "speed": self._clock.speed if self._clock.speed is not None else "max",
            "started": self._clock.started,
            "finished": self.finished.is_set(),
            "symbols": list(self.tape.symbols),
            "connections": self._hub.describe(),
            "faults": self.board.describe(),
            "outage_closes": self._outage_closes,
            "used_weight": self._meter.used(self.now_ms()),
            "limits": self.limits(),
        }

    def limits(self) -> Json:
        """Returns the most that clients have done within the exchange's windows, and how often they broke a limit."""
        return {
            **self._limits.describe(),
            "used_weight_in_1_min": self._meter.most,
            "weight_per_minute": self._meter.limit,
            "broken": self._limits.broken + self._meter.refused,
        }

    def fault(self, name: str | bytes, **params: Any) -> Json:
        """Applies a fault by name and parameters (or by the JSON body of POST /control/fault): now, or
        before the close of the candle that opens at `at`. Raises `FaultError` if there is no such fault."""
        fault = parse_fault(name if isinstance(name, bytes) else {"fault": name, **params})
        if fault.at is not None:
            self.board.schedule(fault)
            return {"scheduled": fault.at}
        return self._enact(fault)

    def _enact(self, fault: Fault) -> Json:
        self.access_log.add("fault", None, str(fault.__struct_config__.tag))
        if isinstance(fault, Drop):
            self._outage_closes = max(self._outage_closes, fault.outage_hours)
            return {"dropped": self._hub.cut(fault.connection)}
        if isinstance(fault, Shutdown):
            self._act(self._shut_down(fault))
            return {"closing": sorted(self._hub.numbers)}
        if isinstance(fault, Revise):
            return {"revised": self._revise(fault)}
        if isinstance(fault, End):
            self.end_ms = min(self.end_ms, grid_floor(self.now_ms()) + HOUR_MS * fault.hours)
            return {"end_ms": self.end_ms}
        self.board.arm(fault, self.now_ms(), self._hub.numbers)
        return {"armed": str(fault.__struct_config__.tag)}

    def _act(self, act: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(act)
        self._acts.add(task)
        task.add_done_callback(self._acts.discard)

    async def _shut_down(self, fault: Shutdown) -> None:
        chosen = self._hub.all()
        if fault.announce:
            payload = msgspec.json.encode({"e": "serverShutdown", "E": self.now_ms()})
            await self._hub.announce(payload, fault.framing)
        if fault.hours:
            self._ending.append((chosen, fault.hours))
        else:
            await self._end(chosen)

    async def _end(self, chosen: list[Connection]) -> None:
        for connection in chosen:
            self._hub.remove(connection.number)
            await connection.close(1001, "going away")

    def _revise(self, fault: Revise) -> int:
        open_time = grid_floor(self.now_ms()) - HOUR_MS * fault.hours_ago
        candle = self.tape.at(fault.symbol, open_time)
        if candle is None:
            raise FaultError(f"{fault.symbol} has no candle that opens at {open_time}")
        self.tape.replace(with_close(candle, fault.factor))
        return open_time

    async def __aenter__(self) -> Self:
        host, ws_port, rest_port = self._address
        async with AsyncExitStack() as stack:
            ws_socket = stack.enter_context(contextlib.closing(web.bind(host, ws_port)))
            rest_socket = stack.enter_context(contextlib.closing(web.bind(host, rest_port)))
            self.rest_url = await stack.enter_async_context(web.serve(rest_app(self, self._meter), rest_socket))
            self.ws_url = f"ws://{web.bound_address(ws_socket)}"
            await stack.enter_async_context(
                serve(
                    self._converse,
                    sock=ws_socket,
                    process_request=self._admit,
                    create_connection=Listener,
                    compression=None,
                    ping_interval=self._ping_interval_s,
                    ping_timeout=PONG_TIMEOUT_S,
                    close_timeout=1.0,
                )
            )
            playing = asyncio.create_task(self._play(), name="exchange tape")
            stack.push_async_callback(self._stop, playing)
            stack.callback(lambda: [task.cancel() for task in self._acts])
            self._cleanup = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._cleanup.aclose()

    async def _stop(self, playing: asyncio.Task[None]) -> None:
        playing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await playing

    def _admit(self, socket: ServerConnection, request: Request) -> Response | None:
        """Returns the answer to an upgrade that is refused; None admits it."""
        if not self._limits.connect(self.now_ms()):
            self.access_log.add("limit", None, "connects")
            return socket.respond(http.HTTPStatus.TOO_MANY_REQUESTS, "too many attempts\n")
        refuse = self.board.refusal()
        status = 503 if self._outage_closes else 0
        if refuse is not None:
            status = refuse.status
        try:
            parse_path(request.path)
        except ValueError:
            status = status or 404
        if not status:
            return None
        self.access_log.add("refused", None, request.path, status=status)
        response = socket.respond(http.HTTPStatus(status), "refused\n")
        if refuse is not None and refuse.retry_after is not None:
            response.headers["Retry-After"] = str(refuse.retry_after)
        if refuse is not None and refuse.location is not None:
            response.headers["Location"] = refuse.location
        return response

    async def _converse(self, socket: ServerConnection) -> None:
        number = next(self._numbers)
        path = socket.request.path if socket.request is not None else "/ws"
        if self.board.flaps():
            self.access_log.add("flapped", number, path)
            await socket.close(1001)
            return
        self.access_log.add("connect", number, path)
        connection = Connection(number, socket, path)
        control_frames = Rolling(1.0, self._monotonic)
        if isinstance(socket, Listener):

            def on_control(kind: str) -> None:
                self.access_log.add("ping" if kind == "ping" else "pong", number)
                self._allow(control_frames, connection)

            socket.on_control = on_control
        self._hub.add(connection)
        with contextlib.suppress(ConnectionClosed):
            async for message in socket:
                method, params, reply = connection.answer(message)
                self.access_log.add("frame", number, method, params=params)
                if not self._allow(control_frames, connection):
                    continue
                await socket.send(reply, text=True)
                self._hub.review()
        self._hub.remove(number)
        self.access_log.add("disconnect", number, "", code=socket.close_code)

    def _allow(self, control_frames: Rolling, connection: Connection) -> bool:
        """Counts a control frame; one too many ends the connection."""
        if self._limits.control_frame(control_frames, self.now_ms()):
            return True
        self.access_log.add("limit", connection.number, "control frames")
        self._act(connection.close(1008, "Too many requests"))
        return False

    async def _play(self) -> None:
        try:
            await self._clock.running.wait()
            for open_time in range(grid_floor(self.start_ms), self.end_ms, HOUR_MS):
                if open_time + HOUR_MS <= self.end_ms:
                    await self._play_hour(open_time)
            await self._clock.until(self.end_ms)
        except Exception:
            logger.exception("the exchange stopped playing its tape")
            raise
        finally:
            # Also when playing failed: a caller that waits for the end must not wait for ever.
            self.finished.set()

    async def _play_hour(self, open_time: int) -> None:
        await self._await_listener()
        low_ms, high_ms = CLOSING_DELAY_MS
        delay_ms = random.Random(f"{self._seed}:{open_time}").randint(low_ms, high_ms)
        closing_ms = open_time + HOUR_MS - 1 + delay_ms
        await self._play_forming(open_time, closing_ms)
        await self._await_listener()
        await self._clock.until(closing_ms)
        for fault in self.board.due(open_time):
            self._enact(fault)
        candles = self._candles(open_time)
        if candles and (kinds := self.board.junk()):
            await self._hub.send_junk([JUNK[kind](candles[0], closing_ms) for kind in kinds])
        if times := self.board.burst():
            await self._deliver([Update(forming(c, 0.9), closing_ms - 1_000, False) for c in candles] * times)
        early = [c for c in self._candles(open_time + HOUR_MS) if self.board.change_of_close(c.symbol, EarlyClose)]
        late, self._delayed["close"] = self._delayed["close"], []
        await self._deliver([update for candle in candles for update in self._closes(candle, closing_ms)])
        await self._deliver(late)
        await self._deliver([Update(forming(c, 0.5), c.close_time + 80, True) for c in early])
        if self._clock.speed is None:
            await self._hub.settle()
        self._outage_closes = max(0, self._outage_closes - 1)
        ending, self._ending = self._ending, []
        for chosen, hours in ending:
            if hours > 1:
                self._ending.append((chosen, hours - 1))
            else:
                await self._end(chosen)

    def _closes(self, candle: Candle, closing_ms: int) -> list[Update]:
        """Returns the closing frames of a candle to send now; late ones are put aside."""
        board, symbol = self.board, candle.symbol
        if (wrong := board.change_of_close(symbol, WrongClose)) is not None:
            candle = with_close(candle, wrong.factor)
        in_microseconds = board.change_of_close(symbol, Microseconds) is not None
        updates = [Update(candle, closing_ms, True, in_microseconds)] * board.copies_of_close(symbol)
        if (delay := board.change_of_close(symbol, DelayClose)) is not None:
            self._delayed[delay.until] += updates
            return []
        return updates

    async def _await_listener(self) -> None:
        # Between two connection attempts of a client, a tape at max speed would run to its end.
        if self._clock.speed is None and not self._outage_closes:
            await self._hub.listening.wait()

    async def _play_forming(self, open_time: int, closing_ms: int) -> None:
        """Sends the updates between the last close and this one; at max speed a single one in mid-hour."""
        speed = self._clock.speed
        period_ms = HOUR_MS // 2 if speed is None else max(FORMING_PERIOD_MS, int(FORMING_PERIOD_REAL_S * 1e3 * speed))
        event_ms = max(open_time, self._clock.now_ms()) + period_ms
        while event_ms < min(closing_ms, open_time + HOUR_MS):
            await self._clock.until(event_ms)
            fraction = (event_ms - open_time) / HOUR_MS
            late, self._delayed["update"] = self._delayed["update"], []
            await self._deliver([Update(forming(c, fraction), event_ms, False) for c in self._candles(open_time)])
            await self._deliver(late)
            # Updates that are late are left out, so that a slow machine still gets its closes in time.
            event_ms = period_ms + (event_ms if speed is None else max(event_ms, self._clock.elapsed_to_ms()))

    def _candles(self, open_time: int) -> list[Candle]:
        found = (self.tape.at(symbol, open_time) for symbol in self.tape.symbols)
        return [c for c in found if c is not None and self.board.status(c.symbol) != "DELISTED"]

    async def _deliver(self, updates: list[Update]) -> None:
        if updates:
            now_ms = self.now_ms()
            await self._hub.deliver(updates, lambda number, symbol: self.board.is_muted(number, symbol, now_ms))
