"""A tail never changes, whoever goes on from it, and has the rows that copying would give."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.core.forecasting.tail import SPARE_ROWS, Tail, spare_rows_of

LENGTH = 7


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, LENGTH + 3), st.floats(-1, 1)), max_size=40),
    st.integers(0, 5),
)
def test_every_tail_keeps_the_rows_that_it_had(steps: list[tuple[int, int, float]], spare: int) -> None:
    """`steps`: which of the tails so far goes on, by how many hours, and with what."""
    tails, plain = [Tail.of(np.arange(float(LENGTH)), spare)], [list(np.arange(float(LENGTH)))]
    for chosen, hours, value in steps:
        at = chosen % len(tails)
        tails.append(tails[at].later(value, hours, -9.0))
        plain.append([*plain[at], *[-9.0] * (hours - 1), value][-LENGTH:])
    assert [tail.rows.tolist() for tail in tails] == plain
    assert [pickle.loads(pickle.dumps(tail)) for tail in tails] == tails


def test_records_are_kept_as_they_are() -> None:
    kind = np.dtype([("a", np.float32), ("b", np.uint8)])
    tail = Tail.of(np.zeros(3, kind), 1).later((0.5, 7), 2, (np.nan, 0))
    assert [row.item() for row in tail.rows][2] == (0.5, 7)
    assert np.isnan(tail.rows["a"][1])
    assert tail != Tail.of(np.zeros(3, kind))


def test_symbols_that_begin_together_do_not_copy_together() -> None:
    spared = [spare_rows_of(f"S{k}USDT") for k in range(640)]
    assert max(spared.count(rows) for rows in set(spared)) < 2 * len(spared) / SPARE_ROWS
