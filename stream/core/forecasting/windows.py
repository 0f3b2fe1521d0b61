"""Trailing windows whose value at a row depends on that window's rows and on nothing else, to the last bit.

A running sum would carry every earlier row's rounding into each window, so a fresh start and a long run
would differ. Here a window of w rows is put together from windows of 1, 2, 4, … rows: the same additions in
the same order whatever precedes them. Time is the last axis; rows before the first count as zero.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_Combine = Callable[[Array, Array], Array]


def delayed(x: Array, rows: int, fill: float = 0.0) -> Array:
    """Returns `x` as it was `rows` rows ago; `fill` where there was no row."""
    if rows == 0:
        return x
    out = np.empty_like(x)
    out[..., :rows] = fill
    if rows < x.shape[-1]:
        out[..., rows:] = x[..., :-rows]
    return out


class Trailing:
    """Trailing sums of one array over any number of rows; the doublings are shared between calls."""

    def __init__(self, x: Array, decay: float = 1.0, *, newest: int | None = None) -> None:
        """`decay` < 1 weights the value of k rows ago by decay**k. With `newest` only the sums of that many rows at
        the end are computed and returned: the same numbers for less work."""
        self._decay = decay
        self._newest = x.shape[-1] if newest is None else newest
        self._powers = [x]
        self._sums: dict[tuple[int, int], Array] = {}

    def sum(self, rows: int, ago: int = 0) -> Array:
        """Returns Σ over the last `rows` rows, the current one included, or as it was `ago` rows ago: [..., newest].
        Raises `ValueError` if `rows` is less than 1."""
        if rows < 1:
            raise ValueError("a window has at least one row")
        if (rows, ago) in self._sums:
            return self._sums[rows, ago]
        self._double(rows)
        total: Array | None = None
        for level, offset in _parts(rows):
            part = self._ending(self._powers[level], ago + offset)
            if self._decay != 1.0:
                part = self._decay**offset * part
            total = part if total is None else total + part
        assert total is not None
        self._sums[rows, ago] = total
        return total

    def _double(self, rows: int) -> None:
        """Makes Σ over the last 1, 2, 4, … rows up to `rows`, for every row: each [..., T]."""
        while 2 ** len(self._powers) <= rows:
            half = 2 ** (len(self._powers) - 1)
            last = self._powers[-1]
            older = delayed(last, half)
            self._powers.append(last + (older if self._decay == 1.0 else self._decay**half * older))

    def _ending(self, power: Array, offset: int) -> Array:
        """Returns the newest rows of `power` as it was `offset` rows ago; a view if all of them exist."""
        end = power.shape[-1] - offset
        if end >= self._newest:
            return power[..., end - self._newest : end]
        return delayed(power, offset)[..., -self._newest :]


class NewestSums:
    """The sums of `Trailing` at the newest row alone, for a fraction of the work. Here time is the first axis, and the
    newest row comes first."""

    def __init__(self, x: Array, decay: float = 1.0, scratch: Array | None = None) -> None:
        """`scratch` is written to: as many rows as `x` has."""
        self._decay = decay
        #: Σ over blocks of 1, 2, 4, … rows, one block behind the other; the doublings are shared between windows.
        self._blocks = [x]
        self._scratch = np.empty_like(x) if scratch is None else scratch

    def sum(self, rows: int) -> Array:
        """Returns Σ over the newest `rows` rows, at least one: [...]."""
        (level, _), *_ = parts = _parts(rows)
        while len(self._blocks) <= level:
            last = self._blocks[-1]
            self._blocks.append(self._in_pairs(last, len(self._blocks) - 1, self._scratch[: len(last) // 2]))
            self._scratch = self._scratch[len(last) // 2 :]
        # Each part of the window ends where the one before it begins, and consists of blocks of that one's size.
        blocks = self._blocks[level][: rows >> level]
        total: Array | None = None
        for larger, ago in parts:
            for below in range(level, larger):
                blocks = self._in_pairs(blocks, below)
            level, part, blocks = larger, blocks[0], blocks[1:]
            if self._decay != 1.0:
                part = self._decay**ago * part
            total = part if total is None else total + part
        assert total is not None
        return total

    def _in_pairs(self, blocks: Array, level: int, out: Array | None = None) -> Array:
        newer, older = blocks[: len(blocks) // 2 * 2 : 2], blocks[1::2]
        if self._decay != 1.0:
            older = np.multiply(self._decay ** (2**level), older, out=out)
        paired: Array = np.add(newer, older, out=out)
        return paired


@cache
def _parts(rows: int) -> tuple[tuple[int, int], ...]:
    """Returns the powers of two that a window is put together from, each with how many rows ago it ends."""
    parts, ago = [], 0
    for level in range(rows.bit_length()):
        if rows >> level & 1:
            parts.append((level, ago))
            ago += 2**level
    return tuple(parts)


def trailing_max(x: Array, rows: int) -> Array:
    """Returns the maximum over the last `rows` rows; rows before the first count as minus infinity. Raises `ValueError`
    if `rows` is less than 1."""
    if rows < 1:
        raise ValueError("a window has at least one row")
    level, width = x, 1
    while 2 * width <= rows:
        level = np.maximum(level, delayed(level, width, -np.inf))
        width *= 2
    return np.maximum(level, delayed(level, rows - width, -np.inf))
