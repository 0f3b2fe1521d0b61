"""What can go wrong, as data: one struct for each fault.

To add a fault: write its struct, name it in `Fault`, and give the board (`fault_board`) the method that the
server has to call. Nothing here sends, closes or waits; the exchange does what the board returns. Every fault
takes `at`, the open time of a candle: it then strikes just before that candle's close would be sent,
so that a script has the same effect at any speed.
"""

from __future__ import annotations

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
    """The next `n` WebSocket upgrades are answered with an HTTP status, and redirected to `location` if given."""

    status: int = 503
    n: int = 1
    retry_after: int | None = None
    location: str | None = None


class Flap(_Scheduled, tag="flap", frozen=True, kw_only=True):
    """The next `n` WebSocket connections are accepted and closed at once."""

    n: int = 1


class Shutdown(_Scheduled, tag="shutdown", frozen=True, kw_only=True):
    """The connections open now are closed (1001) after `hours` more closes, 0: at once. With `announce`,
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
    """The next `n` closes, of one symbol or of each, have another price than REST: `factor` times as much."""

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
    """The tape ends after `hours` more closes, 1: with the present hour. A test that waits for something on the tape
    plays a long one, and ends it when it has been seen."""

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
    """The status that the exchange reports for a symbol from now on; with `DELISTED` it knows no such symbol, and sends
    nothing of it. Which candles there are depends on the tape alone."""

    symbol: str
    status: Literal["TRADING", "HALT", "BREAK", "CANCEL_ONLY", "END_OF_DAY", "DELISTED"]


class SlowRest(_Scheduled, tag="slow_rest", frozen=True, kw_only=True):
    """The next `n` REST answers come `seconds` (real time) late, as of when they were asked for."""

    seconds: float = 1.0
    n: int = 1
    path: str | None = None


class RestBody(_Scheduled, tag="rest_body", frozen=True, kw_only=True):
    """The next `n` answers about candles are `html`, `truncated`, `nested`, or have an `off_grid` or a `duplicate`
    row that does not belong there; `short`, their last two rows are missing; `empty`; `unusable`, each row breaks a
    rule; `partly_unusable`, every tenth does; `cut_times`, close times end with the second; `foreign`, they are another
    symbol's; or `newest`, as if no start had been asked for."""

    kind: Literal[
        "html", "truncated", "nested", "off_grid", "duplicate",
        "short", "empty", "unusable", "partly_unusable", "cut_times", "foreign", "newest",
    ] = "html"  # fmt: skip
    n: int = 1


class RestLag(_Scheduled, tag="rest_lag", frozen=True, kw_only=True):
    """From now on answers about candles are as of `seconds` of the exchange's time ago: a database that is behind."""

    seconds: float


class RestCache(_Scheduled, tag="rest_cache", frozen=True, kw_only=True):
    """From now on the same request for candles gets the same answer for `seconds` (real time), whatever its headers."""

    seconds: float


class RestCap(_Scheduled, tag="rest_cap", frozen=True, kw_only=True):
    """From now on an answer about candles has at most so many `rows`."""

    rows: int


class MendRest(_Scheduled, tag="mend_rest", frozen=True, kw_only=True):
    """Ends lag, cache and cap."""


class WrongTime(_Scheduled, tag="wrong_time", frozen=True, kw_only=True):
    """The next `n` answers about the server's time are off by `seconds`."""

    seconds: float
    n: int = 1


class EarlyClose(_Scheduled, tag="early_close", frozen=True, kw_only=True):
    """After the next `n` closes, of one symbol or of each, the hour that has just begun is reported as closed as well:
    half of it, with the time of its end."""

    symbol: str | None = None
    n: int = 1


class RestStatus(_Scheduled, tag="rest_status", frozen=True, kw_only=True):
    """The next `n` REST or archive answers are this status, with `Retry-After` if given. `path` names one path, or
    with a slash at its end all below it: `/api/` is REST and `/data/` the archive."""

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
    """The next `n` zips (null: all) end in the middle; their checksums are those of the complete ones."""

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
    """From now on the first row has another volume than REST has; each further one of these is one more revision."""


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
    | RestLag
    | RestCache
    | RestCap
    | MendRest
    | WrongTime
    | EarlyClose
    | RestStatus
    | SpoiltAnswer
    | SpoiltContent
    | MendArchive
)


#: Faults that concern each symbol where none is named.
PER_SYMBOL = (DuplicateClose, WithholdClose, DelayClose, WrongClose, Microseconds, EarlyClose)
_ERROR_STATUSES = frozenset(int(status) for status in HTTPStatus if status >= 400)
_REDIRECTS = frozenset((301, 302, 307, 308))


class FaultError(ValueError):
    """There is no such fault, or it does not take these parameters."""


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
    if getattr(fault, "rows", 1) < 1 or (isinstance(fault, RestLag | RestCache) and fault.seconds < 0):
        raise FaultError("rows must be at least 1 and seconds at least 0")
    return fault


def _converted(body: dict[str, Any]) -> Fault:
    return msgspec.convert(body, Fault)  # type: ignore[no-any-return]
