"""What can go wrong, as data: one struct a fault, and the board that remembers which are in force.

To add a fault: write its struct, name it in `Fault`, and give the board the question that the server
has to ask. Nothing here sends, closes or waits; the exchange does what the board says. Every fault
takes `at`, the open time of a candle: it then strikes just before that candle's close would be sent,
so that a script says the same at any speed.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Literal

import msgspec

from stream.testing.junk import JUNK


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
    """The next `n` WebSocket upgrades are answered with an HTTP status, and sent to `location` if given."""

    status: int = 503
    n: int = 1
    retry_after: int | None = None
    location: str | None = None


class Flap(_Scheduled, tag="flap", frozen=True, kw_only=True):
    """The next `n` WebSocket connections are accepted and closed at once."""

    n: int = 1


class Shutdown(_Scheduled, tag="shutdown", frozen=True, kw_only=True):
    """The connections open now are closed (1001) after `hours` more closes, 0: at once. If it is to `announce` that,
    `serverShutdown` is sent first, in the connection's framing or in another one."""

    hours: int = 1
    announce: bool = True
    framing: Literal["raw", "combined"] | None = None


class DelayClose(_Scheduled, tag="delay_close", frozen=True, kw_only=True):
    """The next `n` closes, of one symbol or of each, come late: after an `update` of the next candle, or after its
    `close`, and so out of order."""

    symbol: str | None = None
    n: int = 1
    until: Literal["update", "close"] = "update"


class WrongClose(_Scheduled, tag="wrong_close", frozen=True, kw_only=True):
    """The next `n` closes, of one symbol or of each, say another price than REST: `factor` times as much."""

    symbol: str | None = None
    n: int = 1
    factor: float = 1.01


class Revise(_Scheduled, tag="revise", frozen=True, kw_only=True):
    """From now on a past candle has another closing price, everywhere: `factor` times as much. `hours_ago` is 1 for the
    newest hour that is over."""

    symbol: str
    hours_ago: int = 1
    factor: float = 1.01


class End(_Scheduled, tag="end", frozen=True, kw_only=True):
    """The tape ends after `hours` more closes, 1: with the hour that runs. Whoever waits for something on the tape
    plays a long one, and ends it when that has been seen."""

    hours: int = 1


class Microseconds(_Scheduled, tag="microseconds", frozen=True, kw_only=True):
    """The next `n` closes, of one symbol or of each, have their times in microseconds."""

    symbol: str | None = None
    n: int = 1


class Malformed(_Scheduled, tag="malformed", frozen=True, kw_only=True):
    """Before the next `n` rounds of closes frames that cannot be used are sent: of these kinds, or of all but
    `oversize`."""

    kinds: tuple[str, ...] = ()
    n: int = 1


class Burst(_Scheduled, tag="burst", frozen=True, kw_only=True):
    """Before the next close each symbol's update is sent `n` times in a row."""

    n: int = 1_000


class Status(_Scheduled, tag="status", frozen=True, kw_only=True):
    """What the exchange says of a symbol from now on: `TRADING`, `HALT`, `BREAK`, `CANCEL_ONLY`; or `DELISTED`, which
    is that it knows no such symbol, and sends nothing of it. The tape says which candles there are."""

    symbol: str
    status: Literal["TRADING", "HALT", "BREAK", "CANCEL_ONLY", "END_OF_DAY", "DELISTED"]


class SlowRest(_Scheduled, tag="slow_rest", frozen=True, kw_only=True):
    """The next `n` REST answers come `seconds` (ours) late, told as of when they were asked for."""

    seconds: float = 1.0
    n: int = 1
    path: str | None = None


class RestBody(_Scheduled, tag="rest_body", frozen=True, kw_only=True):
    """The next `n` answers about candles are `html`, `truncated`, `nested`, or have an `off_grid` or a `duplicate`
    row that does not belong there."""

    kind: Literal["html", "truncated", "nested", "off_grid", "duplicate"] = "html"
    n: int = 1


class RestStatus(_Scheduled, tag="rest_status", frozen=True, kw_only=True):
    """The next `n` REST or archive answers are this status, with `Retry-After` if given. `path` names one path, or
    with a slash at its end all below it: `/api/` and `/data/` tell the two apart."""

    status: int = 503
    n: int = 1
    retry_after: int | None = None
    path: str | None = None


class _OfArchive(_Scheduled, frozen=True, kw_only=True):
    """Concerns all zips of the archive, or those of one symbol, or of one `part`: `2024-03` or `2024-03-05`."""

    symbol: str | None = None
    part: str | None = None

    def concerns(self, symbol: str, part: str) -> bool:
        return self.symbol in (None, symbol) and self.part in (None, part)


class TruncatedZip(_OfArchive, tag="truncated_zip", frozen=True, kw_only=True):
    """The next `n` zips (null: all) end in the middle; their checksums are those of the whole."""

    n: int | None = 1


class WrongChecksum(_OfArchive, tag="wrong_checksum", frozen=True, kw_only=True):
    """The next `n` checksums (null: all) are those of other bytes."""

    n: int | None = 1


class MissingArchive(_OfArchive, tag="missing_archive", frozen=True, kw_only=True):
    """The next `n` answers (null: all, which is the default) are that there is no such file."""

    n: int | None = None


class HeaderRow(_OfArchive, tag="header_row", frozen=True, kw_only=True):
    """From now on the CSV has a header, as those of futures have; the checksum is right."""


class MissingRows(_OfArchive, tag="missing_rows", frozen=True, kw_only=True):
    """From now on the CSV lacks its first `hours` rows, which REST has; the checksum is right."""

    hours: int = 1


class RevisedArchive(_OfArchive, tag="revised_archive", frozen=True, kw_only=True):
    """From now on the first row has another volume than REST has; each order is one more revision."""


class MendArchive(_Scheduled, tag="mend_archive", frozen=True, kw_only=True):
    """Ends every fault of the archive."""


SpoiltAnswer = TruncatedZip | WrongChecksum | MissingArchive
SpoiltContent = HeaderRow | MissingRows | RevisedArchive
Fault = (
    Drop
    | DuplicateClose
    | WithholdClose
    | Mute
    | Unmute
    | Refuse
    | Flap
    | Shutdown
    | DelayClose
    | WrongClose
    | Revise
    | End
    | Microseconds
    | Malformed
    | Burst
    | Status
    | SlowRest
    | RestBody
    | RestStatus
    | SpoiltAnswer
    | SpoiltContent
    | MendArchive
)


#: Those that act at once and leave nothing behind: the exchange performs them.
ACTS = (Drop, Shutdown, Revise, End)
#: Those that concern "each symbol" where none is named.
_PER_SYMBOL = (DuplicateClose, WithholdClose, DelayClose, WrongClose, Microseconds)
_ERROR_STATUSES = frozenset(int(status) for status in HTTPStatus if status >= 400)
_REDIRECTS = frozenset((301, 302, 307, 308))


class FaultError(ValueError):
    """No such fault, or not these parameters."""


def parse_fault(body: bytes | dict[str, Any]) -> Fault:
    try:
        fault: Fault = msgspec.json.decode(body, type=Fault) if isinstance(body, bytes) else _converted(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FaultError(str(error)) from None
    n = getattr(fault, "n", None)
    least_hours = 0 if isinstance(fault, Shutdown) else 1
    if (n is not None and n < 1) or getattr(fault, "hours", 1) < least_hours or getattr(fault, "outage_hours", 0) < 0:
        raise FaultError("n and hours must be at least 1 and outage_hours at least 0")
    if isinstance(fault, Refuse | RestStatus):
        also = _REDIRECTS if isinstance(fault, Refuse) and fault.location else frozenset()
        if fault.status not in _ERROR_STATUSES | also:
            raise FaultError("status must be an HTTP status from 400 on, or a redirect with a location")
    if isinstance(fault, Malformed) and not set(fault.kinds) <= JUNK.keys():
        raise FaultError(f"kinds are {', '.join(JUNK)}")
    if isinstance(fault, Revise) and fault.hours_ago < 1:
        raise FaultError("hours_ago must be at least 1")
    return fault


def _converted(body: dict[str, Any]) -> Fault:
    return msgspec.convert(body, Fault)  # type: ignore[no-any-return]


class _Muting(msgspec.Struct):
    connections: frozenset[int] | None
    symbol: str | None
    until_ms: float


class _Counted(msgspec.Struct):
    fault: Any
    left: dict[str, int]

    @property
    def is_used_up(self) -> bool:
        # One that concerns each symbol never is: a symbol may yet come for the first time.
        each_symbol = isinstance(self.fault, _PER_SYMBOL) and self.fault.symbol is None
        return bool(self.left) and not each_symbol and not any(self.left.values())


class FaultBoard:
    """The faults in force and those to come. Asking a counted one uses it up."""

    def __init__(self) -> None:
        self._scheduled: list[Fault] = []
        self._mutings: list[_Muting] = []
        self._counted: list[_Counted] = []
        self._contents: list[SpoiltContent] = []
        self._statuses: dict[str, str] = {}

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
            case Status():
                self._statuses[fault.symbol] = fault.status
            case HeaderRow() | MissingRows() | RevisedArchive():
                self._contents.append(fault)
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
        """How often this close is to be sent: 0, 1 or 2."""
        for kind, copies in ((WithholdClose, 0), (DuplicateClose, 2)):
            if self._take(kind, symbol, lambda f: f.symbol in (None, symbol)):
                return copies
        return 1

    def change_of_close(self, symbol: str, kind: type[Any]) -> Any:
        """The fault of that kind (`DelayClose`, `WrongClose`, `Microseconds`) that this close suffers, or None."""
        return self._take(kind, symbol, lambda f: f.symbol in (None, symbol))

    def junk(self) -> tuple[str, ...]:
        """Kinds of unusable frames to send before this round of closes."""
        taken = self._take(Malformed)
        if not isinstance(taken, Malformed):
            return ()
        return taken.kinds or tuple(kind for kind in JUNK if kind != "oversize")

    def burst(self) -> int:
        """How often each symbol's update is to be sent before this round of closes."""
        found = next((c for c in self._counted if isinstance(c.fault, Burst)), None)
        if found is None:
            return 0
        self._counted.remove(found)
        return int(found.fault.n)

    def status(self, symbol: str) -> str:
        return self._statuses.get(symbol, "TRADING")

    def delay_s(self, path: str) -> float:
        """How late this REST answer is to come."""
        taken = self._take(SlowRest, "", lambda f: _is_on(f.path, path))
        return taken.seconds if isinstance(taken, SlowRest) else 0.0

    def spoilt_rows(self) -> str | None:
        """What is wrong with this answer about candles."""
        taken = self._take(RestBody)
        return taken.kind if isinstance(taken, RestBody) else None

    def refusal(self) -> Refuse | None:
        """The answer to this WebSocket upgrade, if it is to be refused."""
        taken = self._take(Refuse)
        return taken if isinstance(taken, Refuse) else None

    def flaps(self) -> bool:
        """Whether this new connection is to be closed at once."""
        return self._take(Flap) is not None

    def rest_answer(self, path: str) -> RestStatus | None:
        """The failure that this REST request gets, if any."""
        taken = self._take(RestStatus, "", lambda f: _is_on(f.path, path))
        return taken if isinstance(taken, RestStatus) else None

    def spoils(self, kind: type[SpoiltAnswer], symbol: str, part: str) -> bool:
        """Whether this answer of the archive is to be spoilt so."""
        return self._take(kind, "", lambda f: f.concerns(symbol, part)) is not None

    def contents(self, symbol: str, part: str) -> list[SpoiltContent]:
        """What is wrong with this part of the archive from now on, in the order it was given."""
        return [fault for fault in self._contents if fault.concerns(symbol, part)]

    def describe(self) -> list[dict[str, Any]]:
        """Everything in force or to come, for people and tests."""
        mutings = [{"fault": "mute", **msgspec.to_builtins(m)} for m in self._mutings]
        counted = [{**msgspec.to_builtins(c.fault), "left": c.left} for c in self._counted if not c.is_used_up]
        held = [msgspec.to_builtins(f) for f in (*self._scheduled, *self._contents)]
        statuses = [{"fault": "status", "symbol": s, "status": v} for s, v in self._statuses.items() if v != "TRADING"]
        return [*held, *statuses, *mutings, *counted]

    def _take(self, kind: type[Any], key: str = "", applies: Callable[[Any], bool] = lambda fault: True) -> Any:
        """The oldest fault of a kind that still applies, one use of it gone.

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
