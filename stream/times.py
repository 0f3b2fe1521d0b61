"""Times as people read and write them: one parser, one set of formats. Elsewhere a time is ms since 1970, UTC."""

from __future__ import annotations

from datetime import UTC, datetime


def parse(text: str) -> int:
    """Returns an ISO time such as 2024-03-01 or 2024-03-01T06:00 as ms; UTC where it names no zone.

    Raises `ValueError` where the text is none.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no ISO time such as 2024-03-01 or 2024-03-01T06:00") from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return int(moment.timestamp()) * 1_000


def moment(ms: float) -> datetime:
    return datetime.fromtimestamp(ms / 1_000, UTC)


def day(ms: float) -> str:
    return f"{moment(ms):%Y-%m-%d}"


def minute(ms: float) -> str:
    return f"{moment(ms):%Y-%m-%d %H:%M}"


def utc(ms: float) -> str:
    """Returns a minute marked as UTC, for where the context does not show it: log lines, cards."""
    return f"{minute(ms)} UTC"


def iso(ms: float) -> str:
    """Returns a minute in ISO form, for figures that programs read."""
    return f"{moment(ms):%Y-%m-%dT%H:%MZ}"
