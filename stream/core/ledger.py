"""The ledger: which candle of a symbol is due, and what any other one is.

It only judges. Fetching what is missing is the pipeline's work, and a hole that REST cannot fill
is declared by the operator when the next candle reaches it.
"""

from __future__ import annotations

from enum import Enum

from stream.core.candle import HOUR_MS


class Verdict(Enum):
    DUE = "due"
    DUPLICATE = "duplicate"  # the newest one again
    OUT_OF_ORDER = "out_of_order"  # older than the newest
    HOLE = "hole"  # at least one hour between it and the newest is missing


def judge(last_open_time: int | None, open_time: int) -> Verdict:
    """What a candle that opens at `open_time` is to a symbol whose newest opened at `last_open_time`."""
    if last_open_time is None or open_time == last_open_time + HOUR_MS:
        return Verdict.DUE
    if open_time == last_open_time:
        return Verdict.DUPLICATE
    return Verdict.OUT_OF_ORDER if open_time < last_open_time else Verdict.HOLE


def overdue(last_open_time: int | None, exchange_now_ms: int, grace_ms: int) -> bool:
    """Whether the next due candle's close, plus `grace_ms`, has passed without it."""
    if last_open_time is None:
        return True
    return exchange_now_ms >= last_open_time + 2 * HOUR_MS + grace_ms
