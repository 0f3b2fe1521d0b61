"""Times: every ISO spelling of a moment is the same number, and anything else is refused with a clear message."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream import times

SECONDS = st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1)).map(lambda t: t.replace(microsecond=0))


@given(SECONDS, st.integers(-14 * 60, 14 * 60))
def test_a_moment_is_one_number_in_whatever_zone_it_is_written(moment: datetime, offset_minutes: int) -> None:
    ms = times.parse(moment.isoformat())
    assert times.moment(ms) == moment.replace(tzinfo=UTC)
    zone = timezone(timedelta(minutes=offset_minutes))
    assert times.parse(moment.replace(tzinfo=UTC).astimezone(zone).isoformat()) == ms


@given(SECONDS.map(lambda t: t.replace(second=0)))
def test_what_is_shown_can_be_read_again(moment: datetime) -> None:
    ms = times.parse(moment.isoformat())
    assert times.parse(times.minute(ms)) == times.parse(times.iso(ms)) == ms
    assert times.utc(ms) == f"{times.minute(ms)} UTC"
    assert times.parse(times.day(ms)) == ms // 86_400_000 * 86_400_000


def test_what_is_no_time_is_refused_with_an_example() -> None:
    with pytest.raises(ValueError, match="'tomorrow' is no ISO time such as 2024-03-01"):
        times.parse("tomorrow")
