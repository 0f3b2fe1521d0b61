"""The newest rows of a table that grows at its end, an hour at a time, as a value that never changes.

A longer tail shares the memory of the one before it: its rows are written behind those that the older one shows. Where
somebody has written there already, or the room is used up, the rows are copied to a new place. So an hour costs one row
and not a copy of thousands, in time and in memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Rows that a copy has room for. More would be memory that waits; with these a symbol copies each tail every 16 hours,
#: which takes some microseconds.
SPARE_ROWS = 16


def spare_rows_of(symbol: str) -> int:
    """Returns the room for a symbol's first rows: symbols that began in one hour must not all copy in one hour."""
    return zlib.crc32(symbol.encode()) % SPARE_ROWS + 1


class _Table:
    """Where the rows lie, and how many of them are written."""

    __slots__ = ("filled", "rows")

    def __init__(self, rows: NDArray[Any], filled: int) -> None:
        self.rows = rows
        self.filled = filled


class Tail:
    """A number of rows that stays the same; each value of `rows` is a number, an array or a record."""

    __slots__ = ("_end", "_length", "_table")

    def __init__(self, table: _Table, end: int, length: int) -> None:
        self._table = table
        self._end = end
        self._length = length

    @classmethod
    def of(cls, rows: NDArray[Any], spare: int = SPARE_ROWS) -> Tail:
        """Copies the rows; there is room for `spare` more."""
        length = len(rows)
        table = np.empty((length + spare, *rows.shape[1:]), rows.dtype)
        table[:length] = rows
        return cls(_Table(table, length), length, length)

    def __len__(self) -> int:
        return self._length

    def __eq__(self, other: object) -> bool:
        """Returns whether both have the same rows, to the last bit."""
        if not isinstance(other, Tail):
            return NotImplemented
        return self.rows.dtype == other.rows.dtype and self.rows.tobytes() == other.rows.tobytes()

    __hash__ = None  # type: ignore[assignment]

    @property
    def rows(self) -> NDArray[Any]:
        """The rows, the newest last. Nobody may write to them."""
        return self._table.rows[self._end - self._length : self._end]

    def later(self, row: Sequence[float] | float, hours: int, blank: Sequence[float] | float) -> Tail:
        """Returns the tail `hours` later, which ends with `row`; the hours between are `blank`."""
        table, end = self._table, self._end
        # More hours than there are rows leave nothing of what was before.
        hours = min(hours, self._length)
        if table.filled != end or end + hours > len(table.rows):
            kept = self.rows[hours:]
            copy = np.empty((self._length + SPARE_ROWS, *kept.shape[1:]), kept.dtype)
            copy[: len(kept)] = kept
            table, end = _Table(copy, len(kept)), len(kept)
        if hours > 1:
            table.rows[end : end + hours - 1] = blank
        end += hours
        table.rows[end - 1] = row
        table.filled = end
        return Tail(table, end, self._length)
