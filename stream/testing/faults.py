"""What can go wrong, as data: one struct a fault, and the board that remembers which are in force.

To add a fault: write its struct, name it in `Fault`, and give the board the question that the server
has to ask. Nothing here sends, closes or waits; the exchange does what the board says. Every fault
takes `at`, the open time of a candle: it then strikes just before that candle's close would be sent,
so that a script says the same at any speed.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import msgspec


class _Scheduled(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="fault"):
    at: int | None = None


class Drop(_Scheduled, tag="drop", frozen=True, kw_only=True):
    """Cuts the TCP connection, of one client or of all. Until `outage_hours` more closes have passed
    every upgrade is refused with 503 (a scheduled drop counts the close that it strikes at)."""

    connection: int | None = None
    outage_hours: int = 0


class DuplicateClose(_Scheduled, tag="duplicate_close", frozen=True, kw_only=True):
    """The next `n` closes, of one symbol or of each, are sent twice."""

    symbol: str | None = None
    n: int = 1


class WithholdClose(_Scheduled, tag="withhold_close", frozen=True, kw_only=True):
    """The next `n` closes, of one symbol or of each, are never sent; REST has them."""

    symbol: str | None = None
    n: int = 1


class Mute(_Scheduled, tag="mute", frozen=True, kw_only=True):
    """The connections open now (or one) get no data for `seconds` of virtual time or until `unmute`;
    they stay open and pinged. `also_new` mutes the connections to come as well, `symbol` one symbol only."""

    connection: int | None = None
    symbol: str | None = None
    seconds: float | None = None
    also_new: bool = False


class Unmute(_Scheduled, tag="unmute", frozen=True, kw_only=True):
    """Ends every mute."""


class Refuse(_Scheduled, tag="refuse", frozen=True, kw_only=True):
    """The next `n` WebSocket upgrades are answered with an HTTP status."""

    status: int = 503
    n: int = 1
    retry_after: int | None = None


class Flap(_Scheduled, tag="flap", frozen=True, kw_only=True):
    """The next `n` WebSocket connections are accepted and closed at once."""

    n: int = 1


class RestStatus(_Scheduled, tag="rest_status", frozen=True, kw_only=True):
    """The next `n` REST answers (of one path, if given) are this status, with `Retry-After` if given."""

    status: int = 503
    n: int = 1
    retry_after: int | None = None
    path: str | None = None


Fault = Drop | DuplicateClose | WithholdClose | Mute | Unmute | Refuse | Flap | RestStatus


_ERROR_STATUSES = frozenset(int(status) for status in HTTPStatus if status >= 400)


class FaultError(ValueError):
    """No such fault, or not these parameters."""


def parse_fault(body: bytes | dict[str, Any]) -> Fault:
    try:
        fault: Fault = msgspec.json.decode(body, type=Fault) if isinstance(body, bytes) else _converted(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FaultError(str(error)) from None
    if getattr(fault, "n", 1) < 1 or getattr(fault, "outage_hours", 0) < 0:
        raise FaultError("n must be at least 1 and outage_hours at least 0")
    if getattr(fault, "status", 400) not in _ERROR_STATUSES:
        raise FaultError("status must be an HTTP status from 400 on")
    return fault


def _converted(body: dict[str, Any]) -> Fault:
    return msgspec.convert(body, Fault)  # type: ignore[no-any-return]


class _Muting(msgspec.Struct):
    connections: frozenset[int] | None
    symbol: str | None
    until_ms: float


class _Counted(msgspec.Struct):
    fault: DuplicateClose | WithholdClose | Refuse | Flap | RestStatus
    left: dict[str, int]

    @property
    def is_used_up(self) -> bool:
        # One that concerns each symbol never is: a symbol may yet come for the first time.
        each_symbol = isinstance(self.fault, DuplicateClose | WithholdClose) and self.fault.symbol is None
        return bool(self.left) and not each_symbol and not any(self.left.values())


class FaultBoard:
    """The faults in force and those to come. Asking a counted one uses it up."""

    def __init__(self) -> None:
        self._scheduled: list[Fault] = []
        self._mutings: list[_Muting] = []
        self._counted: list[_Counted] = []

    def schedule(self, fault: Fault) -> None:
        self._scheduled.append(fault)

    def due(self, open_time: int) -> list[Fault]:
        """Takes out the scheduled faults whose candle has come, in the order they were given."""
        ready = [f for f in self._scheduled if f.at is not None and f.at <= open_time]
        self._scheduled = [f for f in self._scheduled if f not in ready]
        return ready

    def arm(self, fault: Fault, now_ms: int, open_connections: frozenset[int]) -> None:
        """Puts a fault in force. `Drop` is an act, not a state: the caller performs it."""
        match fault:
            case Mute():
                chosen = open_connections if fault.connection is None else frozenset({fault.connection})
                until_ms = float("inf") if fault.seconds is None else now_ms + fault.seconds * 1_000
                self._mutings.append(_Muting(None if fault.also_new else chosen, fault.symbol, until_ms))
            case Unmute():
                self._mutings.clear()
            case DuplicateClose() | WithholdClose() | Refuse() | Flap() | RestStatus():
                self._counted.append(_Counted(fault, {}))
            case Drop():
                raise FaultError("a drop cannot be armed")

    def is_muted(self, connection: int, symbol: str, now_ms: int) -> bool:
        self._mutings = [m for m in self._mutings if now_ms < m.until_ms]
        return any(
            (m.connections is None or connection in m.connections) and m.symbol in (None, symbol) for m in self._mutings
        )

    def copies_of_close(self, symbol: str) -> int:
        """How often this close is to be sent: 0, 1 or 2."""
        for kind, copies in ((WithholdClose, 0), (DuplicateClose, 2)):
            if self._take(kind, symbol, lambda f: f.symbol in (None, symbol)):
                return copies
        return 1

    def refusal(self) -> Refuse | None:
        """The answer to this WebSocket upgrade, if it is to be refused."""
        taken = self._take(Refuse)
        return taken if isinstance(taken, Refuse) else None

    def flaps(self) -> bool:
        """Whether this new connection is to be closed at once."""
        return self._take(Flap) is not None

    def rest_answer(self, path: str) -> RestStatus | None:
        """The failure that this REST request gets, if any."""
        taken = self._take(RestStatus, "", lambda f: f.path in (None, path))
        return taken if isinstance(taken, RestStatus) else None

    def describe(self) -> list[dict[str, Any]]:
        """Everything in force or to come, for people and tests."""
        mutings = [{"fault": "mute", **msgspec.to_builtins(m)} for m in self._mutings]
        counted = [{**msgspec.to_builtins(c.fault), "left": c.left} for c in self._counted if not c.is_used_up]
        return [*(msgspec.to_builtins(f) for f in self._scheduled), *mutings, *counted]

    def _take(
        self, kind: type[Any], key: str = "", applies: Callable[[Any], bool] = lambda fault: True
    ) -> Fault | None:
        """The oldest fault of a kind that still applies, one use of it gone.

        Uses are counted by `key`, the symbol for the faults that concern "each symbol".
        """
        for entry in self._counted:
            left = entry.left.get(key, entry.fault.n)
            if isinstance(entry.fault, kind) and left > 0 and applies(entry.fault):
                entry.left[key] = left - 1
                used: Fault = entry.fault
                return used
        return None
