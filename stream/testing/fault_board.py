"""The faults in force and those to come: the exchange asks this board before each thing that it does.

Asking about a counted fault uses it up. Nothing here sends, closes or waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from stream.testing.faults import (
    PER_SYMBOL,
    Burst,
    Drop,
    DuplicateClose,
    Fault,
    FaultError,
    Flap,
    HeaderRow,
    Malformed,
    MendArchive,
    MendRest,
    MissingRows,
    Mute,
    Refuse,
    RestBody,
    RestCache,
    RestCap,
    RestLag,
    RestStatus,
    Revise,
    RevisedArchive,
    Shutdown,
    SlowRest,
    SpoiltAnswer,
    SpoiltContent,
    Status,
    Unmute,
    WithholdClose,
    WrongTime,
)
from stream.testing.junk import JUNK


class _Muting(msgspec.Struct):
    connections: frozenset[int] | None
    symbol: str | None
    until_ms: float


class _Counted(msgspec.Struct):
    fault: Any
    left: dict[str, int]

    @property
    def is_used_up(self) -> bool:
        # One that concerns each symbol never is: another symbol may yet be asked about for the first time.
        each_symbol = isinstance(self.fault, PER_SYMBOL) and self.fault.symbol is None
        return bool(self.left) and not each_symbol and not any(self.left.values())


class FaultBoard:
    """Remembers each fault until it is used up or ended."""

    def __init__(self) -> None:
        self._scheduled: list[Fault] = []
        self._mutings: list[_Muting] = []
        self._counted: list[_Counted] = []
        self._contents: list[SpoiltContent] = []
        self._statuses: dict[str, str] = {}
        #: How REST answers from now on; None as usual.
        self.lag: RestLag | None = None
        self.cache: RestCache | None = None
        self.cap: RestCap | None = None

    def schedule(self, fault: Fault) -> None:
        self._scheduled.append(fault)

    def due(self, open_time: int) -> list[Fault]:
        """Removes and returns the scheduled faults whose candle has come, in the order in which they were given."""
        ready = [f for f in self._scheduled if f.at is not None and f.at <= open_time]
        self._scheduled = [f for f in self._scheduled if f not in ready]
        return ready

    def arm(self, fault: Fault, now_ms: int, open_connections: frozenset[int]) -> None:
        """Puts a fault in force. Raises `FaultError` for `Drop`, `Shutdown` and `Revise`, which the caller performs."""
        match fault:
            case Mute():
                chosen = open_connections if fault.connection is None else frozenset({fault.connection})
                until_ms = float("inf") if fault.seconds is None else now_ms + fault.seconds * 1_000
                self._mutings.append(_Muting(None if fault.also_new else chosen, fault.symbol, until_ms))
            case Unmute():
                self._mutings.clear()
            case Status():
                self._statuses[fault.symbol] = fault.status
            case HeaderRow() | MissingRows() | RevisedArchive():
                self._contents.append(fault)
            case RestLag():
                self.lag = fault
            case RestCache():
                self.cache = fault
            case RestCap():
                self.cap = fault
            case MendRest():
                self.lag = self.cache = self.cap = None
            case MendArchive():
                self._counted = [c for c in self._counted if not isinstance(c.fault, SpoiltAnswer)]
                self._contents.clear()
            case Drop() | Shutdown() | Revise():
                raise FaultError("an act cannot be armed")
            case _:
                self._counted.append(_Counted(fault, {}))

    def is_muted(self, connection: int, symbol: str, now_ms: int) -> bool:
        self._mutings = [m for m in self._mutings if now_ms < m.until_ms]
        return any(
            (m.connections is None or connection in m.connections) and m.symbol in (None, symbol) for m in self._mutings
        )

    def copies_of_close(self, symbol: str) -> int:
        """Returns how often this close is to be sent: 0, 1 or 2."""
        for kind, copies in ((WithholdClose, 0), (DuplicateClose, 2)):
            if self._take(kind, symbol, lambda f: f.symbol in (None, symbol)):
                return copies
        return 1

    def change_of_close(self, symbol: str, kind: type[Any]) -> Any:
        """Returns the fault of that kind (such as `DelayClose`) that applies to this close, or None."""
        return self._take(kind, symbol, lambda f: f.symbol in (None, symbol))

    def junk(self) -> tuple[str, ...]:
        """Returns the kinds of unusable frames to send before this round of closes."""
        taken = self._take(Malformed)
        if not isinstance(taken, Malformed):
            return ()
        return taken.kinds or tuple(kind for kind in JUNK if kind != "oversize")

    def burst(self) -> int:
        """Returns how often each symbol's update is to be sent before this round of closes."""
        found = next((c for c in self._counted if isinstance(c.fault, Burst)), None)
        if found is None:
            return 0
        self._counted.remove(found)
        return int(found.fault.n)

    def status(self, symbol: str) -> str:
        return self._statuses.get(symbol, "TRADING")

    def delay_s(self, path: str) -> float:
        """Returns how late this REST answer is to come."""
        taken = self._take(SlowRest, "", lambda f: _is_on(f.path, path))
        return taken.seconds if isinstance(taken, SlowRest) else 0.0

    def spoilt_rows(self) -> str | None:
        """Returns what is wrong with this answer about candles, if anything."""
        taken = self._take(RestBody)
        return taken.kind if isinstance(taken, RestBody) else None

    def time_error_ms(self) -> int:
        """Returns by how much this answer about the server's time is wrong."""
        taken = self._take(WrongTime)
        return round(taken.seconds * 1_000) if isinstance(taken, WrongTime) else 0

    def refusal(self) -> Refuse | None:
        """Returns how this WebSocket upgrade is to be refused, if it is."""
        taken = self._take(Refuse)
        return taken if isinstance(taken, Refuse) else None

    def flaps(self) -> bool:
        """Returns whether this new connection is to be closed at once."""
        return self._take(Flap) is not None

    def rest_answer(self, path: str) -> RestStatus | None:
        """Returns the failure with which this REST request is to be answered, if any."""
        taken = self._take(RestStatus, "", lambda f: _is_on(f.path, path))
        return taken if isinstance(taken, RestStatus) else None

    def spoils(self, kind: type[SpoiltAnswer], symbol: str, part: str) -> bool:
        """Returns whether this answer of the archive is to have a fault of that kind."""
        return self._take(kind, "", lambda f: f.concerns(symbol, part)) is not None

    def contents(self, symbol: str, part: str) -> list[SpoiltContent]:
        """Returns what is wrong with this part of the archive from now on, in the order in which it was given."""
        return [fault for fault in self._contents if fault.concerns(symbol, part)]

    def describe(self) -> list[dict[str, Any]]:
        """Returns everything in force or to come, for people and tests."""
        mutings = [{"fault": "mute", **msgspec.to_builtins(m)} for m in self._mutings]
        counted = [{**msgspec.to_builtins(c.fault), "left": c.left} for c in self._counted if not c.is_used_up]
        rest = [f for f in (self.lag, self.cache, self.cap) if f is not None]
        held = [msgspec.to_builtins(f) for f in (*self._scheduled, *self._contents, *rest)]
        statuses = [{"fault": "status", "symbol": s, "status": v} for s, v in self._statuses.items() if v != "TRADING"]
        return [*held, *statuses, *mutings, *counted]

    def _take(self, kind: type[Any], key: str = "", applies: Callable[[Any], bool] = lambda fault: True) -> Any:
        """Uses the oldest fault of a kind that still applies once, and returns it; None where there is none.

        Uses are counted by `key`, the symbol for the faults that concern "each symbol".
        """
        for entry in self._counted:
            if not isinstance(entry.fault, kind) or not applies(entry.fault):
                continue
            left = entry.left.get(key, entry.fault.n)
            if left is None or left > 0:
                if left is not None:
                    entry.left[key] = left - 1
                return entry.fault
        return None


def _is_on(wanted: str | None, path: str) -> bool:
    return wanted in (None, path) or (wanted is not None and wanted.endswith("/") and path.startswith(wanted))
