"""The exchange's bulk archive: zips and checksums made from the tape, the same bytes for the same tape.

As in the real archive, times are in microseconds from 2025 on and in milliseconds before, and there is no header. A day
appears a day after it ended, a month on the first Monday after it. The counterpart of `training.data.archive` and
deliberately separate from it: a shared mistake would make the two agree and both be wrong.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec

from stream.core.market.candle import HOUR_MS, INTERVAL, Candle
from stream.testing.fault_board import FaultBoard
from stream.testing.faults import (
    HeaderRow,
    MissingArchive,
    MissingRows,
    RevisedArchive,
    TruncatedZip,
    WrongChecksum,
)
from stream.testing.tape import Tape
from stream.testing.wire import kline_row

#: Candles from here on are written in microseconds.
MICROSECONDS_SINCE_MS = 1_735_689_600_000  # 2025-01-01
_DAY_MS = 24 * HOUR_MS
_HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore"
)
_PATH = re.compile(
    r"(?P<folder>monthly|daily)/klines/(?P<symbol>\w+)/(?P<interval>\w+)/"
    r"(?P<name>(?P=symbol)-(?P=interval)-(?P<label>\d{4}-\d{2}(-\d{2})?)\.zip)(?P<checksum>\.CHECKSUM)?"
)


@dataclass(frozen=True, slots=True)
class _File:
    symbol: str
    label: str
    name: str
    from_ms: int
    to_ms: int
    published_ms: int
    is_checksum: bool


class Archive:
    """The files below /data/spot/, as of the exchange's time and with the board's faults."""

    def __init__(self, tape: Tape, board: FaultBoard, now_ms: Callable[[], int]) -> None:
        self._tape, self._board, self._now_ms = tape, board, now_ms
        self._zips: dict[tuple[str, bool, int, int], bytes] = {}

    def file(self, path: str) -> bytes | None:
        """Returns the file's bytes, a zip or its checksum; None where there is no such file (now)."""
        asked = _parse(path)
        if asked is None or asked.symbol not in self._tape.symbols or asked.published_ms > self._now_ms():
            return None
        if self._board.spoils(MissingArchive, asked.symbol, asked.label):
            return None
        content = self._zip(asked)
        if content is None:
            return None
        if asked.is_checksum:
            wrong = self._board.spoils(WrongChecksum, asked.symbol, asked.label)
            digest = hashlib.sha256(content + b"!" * bool(wrong)).hexdigest()
            return f"{digest}  {asked.name}\n".encode()
        if self._board.spoils(TruncatedZip, asked.symbol, asked.label):
            return content[: len(content) // 2]
        return content

    def _zip(self, asked: _File) -> bytes | None:
        wrong = self._board.contents(asked.symbol, asked.label)
        header = any(isinstance(fault, HeaderRow) for fault in wrong)
        revision = sum(isinstance(fault, RevisedArchive) for fault in wrong)
        hours = sum(fault.hours for fault in wrong if isinstance(fault, MissingRows))
        key = (asked.name, header, revision, hours)
        if key not in self._zips:
            found, _ = self._tape.visible(asked.symbol, asked.published_ms, asked.from_ms, asked.to_ms - 1, 1_000)
            if not found:
                return None
            candles = [_revised(found[0], revision), *found[1:]][hours:]
            self._zips[key] = _packed(asked.name, candles, header)
        return self._zips[key]


def _parse(path: str) -> _File | None:
    found = _PATH.fullmatch(path)
    if found is None or found["interval"] != INTERVAL:
        return None
    label = found["label"]
    daily = len(label) == len("2024-03-05")
    if daily != (found["folder"] == "daily"):
        return None
    try:
        first = datetime.strptime(label, "%Y-%m-%d" if daily else "%Y-%m").replace(tzinfo=UTC)
    except ValueError:
        return None
    end = first + timedelta(days=1) if daily else (first + timedelta(days=31)).replace(day=1)
    from_ms, to_ms = (int(moment.timestamp()) * 1_000 for moment in (first, end))
    until_monday = 0 if daily else (7 - end.weekday()) % 7
    published_ms = to_ms + max(1, until_monday) * _DAY_MS
    return _File(found["symbol"], label, found["name"], from_ms, to_ms, published_ms, bool(found["checksum"]))


def _revised(candle: Candle, revision: int) -> Candle:
    """Returns the candle as revised: a revision changes the volume of the part's first hour."""
    return msgspec.structs.replace(candle, volume=candle.volume + revision) if revision else candle


def _packed(name: str, candles: list[Candle], header: bool) -> bytes:
    lines = [_HEADER] if header else []
    for candle in candles:
        row = kline_row(candle, microseconds=candle.open_time >= MICROSECONDS_SINCE_MS)
        lines.append(",".join(map(str, row)))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as zipped:
        # A fixed date: the clock's would change the bytes each time.
        member = zipfile.ZipInfo(name.removesuffix(".zip") + ".csv", date_time=(1980, 1, 1, 0, 0, 0))
        member.compress_type = zipfile.ZIP_DEFLATED
        zipped.writestr(member, "".join(f"{line}\n" for line in lines))
    return packed.getvalue()
