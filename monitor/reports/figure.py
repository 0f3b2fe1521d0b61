"""The trend figure of a report's index, as SVG within its page: drift, the verdicts and the forecasts' quality by week.

Colours are Okabe & Ito's, which do not lean on telling red from green; what a colour says, a shape or a word says too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from html import escape

from monitor.reports.trend import TrendPoint
from stream.times import day

_BLACK, _ORANGE, _BLUE, _GREY, _PALE = "#000000", "#d55e00", "#0072b2", "#767676", "#e5e5e5"

#: Of the drawing, in units of the figure: its width, and where panels begin and end.
_WIDTH, _LEFT, _END = 900, 48, 824
_PANEL = 150
_STRIP = 22


def trend(points: Sequence[TrendPoint], from_ms: int, to_ms: int) -> str:
    """The figure of [from_ms, to_ms), points oldest first: scores over thresholds, verdicts, QLIKE."""
    axis = _Time(from_ms, to_ms)
    parts: list[str] = []
    bottom = _scores(parts, axis, points, 30.0)
    bottom = _verdicts(parts, axis, points, bottom + 34)
    bottom = _qlike(parts, axis, points, bottom + 40)
    parts += [f'<text x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{t}</text>' for x, t in axis.ticks()]
    description = (
        "Drift scores by week against their thresholds, the verdicts, and QLIKE of served forecasts and of har."
    )
    return f'<svg viewBox="0 0 {_WIDTH:g} {bottom + 30:g}" role="img" aria-label="{description}">{"".join(parts)}</svg>'


def _scores(parts: list[str], axis: _Time, points: Sequence[TrendPoint], top: float) -> float:
    """The highest score of each week; a ring is within its threshold, a full dot beyond."""
    y = _panel(parts, "drift: highest score ÷ threshold", [p.score_of_threshold for p in points], top, axis, 1.2)
    _line(parts, [(axis.x(p.last), y(p.score_of_threshold)) for p in points], _GREY)
    limit = y(1.0)
    parts.append(f'<path d="M{_LEFT} {limit:.1f}H{_END}" stroke="{_BLACK}" stroke-dasharray="5 4"/>')
    _margin_label(parts, limit, "threshold", _BLACK)
    for p in points:
        colour, fill = (_ORANGE, _ORANGE) if p.detected else (_BLUE, "#fff")
        parts.append(
            f'<circle cx="{axis.x(p.last):.1f}" cy="{y(p.score_of_threshold):.1f}" r="3.5" fill="{fill}" '
            f'stroke="{colour}" stroke-width="1.5"><title>{day(p.last)}: {escape(p.measure)} at '
            f"{p.score_of_threshold:.2f}</title></circle>"
        )
    return top + _PANEL


def _verdicts(parts: list[str], axis: _Time, points: Sequence[TrendPoint], top: float) -> float:
    """A box a week and verdict; a full one is drift, none is a week that could not be judged."""
    strips: tuple[tuple[str, list[bool | None]], ...] = (
        ("30 days", [p.detected for p in points]),
        ("10 days", [p.fast_detected for p in points]),
        ("default", [p.default_detected for p in points]),
    )
    caption = "verdicts (full = drift): of 30 days, of 10 days, and Evidently's default"
    parts.append(f'<text x="{_LEFT}" y="{top - 8}">{caption}</text>')
    width = max(3.0, min(12.0, (_END - _LEFT) / max(len(points), 1) - 2))
    for k, (name, verdicts) in enumerate(strips):
        middle = top + (k + 0.5) * _STRIP
        _margin_label(parts, middle, name, _BLACK)
        for p, verdict in zip(points, verdicts, strict=True):
            if verdict is not None:
                colour, fill = (_ORANGE, _ORANGE) if verdict else (_GREY, "#fff")
                parts.append(
                    f'<rect x="{axis.x(p.last) - width / 2:.1f}" y="{middle - 7:.1f}" width="{width:.1f}" height="14" '
                    f'fill="{fill}" stroke="{colour}"/>'
                )
    return top + len(strips) * _STRIP


def _qlike(parts: list[str], axis: _Time, points: Sequence[TrendPoint], top: float) -> float:
    """Whose line lies lower, forecast better."""
    lines = (("served", _ORANGE, [p.qlike_served for p in points]), ("har", _BLUE, [p.qlike_har for p in points]))
    y = _panel(parts, "QLIKE over 30 days (less is better)", [v for *_, vs in lines for v in vs], top, axis)
    ends: list[tuple[float, str, str]] = []
    for name, colour, values in lines:
        _line(parts, [(axis.x(p.last), y(v)) for p, v in zip(points, values, strict=True)], colour, 2.0)
        ends += [(y(v), name, colour) for v in values if v is not None][-1:]
    at = -math.inf
    for end, name, colour in sorted(ends):
        # Two names must not lie on each other.
        at = max(end, at + 13)
        _margin_label(parts, at, name, colour)
    return top + _PANEL


class _Time:
    """The axis that all panels share."""

    def __init__(self, from_ms: int, to_ms: int) -> None:
        self._from, self._to = from_ms, to_ms

    def x(self, ms: int) -> float:
        return _LEFT + (ms - self._from) / (self._to - self._from) * (_END - _LEFT)

    def ticks(self) -> list[tuple[float, str]]:
        """First days of months, thinned out to a baker's dozen; Mondays of a short period."""
        start, end = (datetime.fromtimestamp(ms / 1_000, UTC) for ms in (self._from, self._to))
        moment = start.replace(hour=0, minute=0, second=0, microsecond=0)
        short = end - start < timedelta(days=62)
        found = []
        while moment <= end:
            if moment >= start and (moment.weekday() == 0 if short else moment.day == 1):
                found.append(moment)
            moment += timedelta(days=1)
        step = max(1, math.ceil(len(found) / 13))
        form = "%d %b" if short else "%b" if end - start < timedelta(days=400) else "%b %Y"
        return [(self.x(int(m.timestamp()) * 1_000), f"{m:{form}}") for m in found[::step]]


class _Scale:
    """From zero at the bottom of a panel to `most` at its top."""

    def __init__(self, top: float, most: float) -> None:
        self._top, self._most = top, most

    def __call__(self, value: float | None) -> float:
        return math.nan if value is None else self._top + _PANEL * (1 - value / self._most)


def _panel(
    parts: list[str], title: str, values: Sequence[float | None], top: float, axis: _Time, floor: float = 0.0
) -> _Scale:
    """Draws a frame with its grid; says where values lie in it. It reaches to `floor` at least."""
    most = max([v for v in values if v is not None] + [floor]) or 1.0
    step = _step(most)
    scale = _Scale(top, most * 1.05)
    parts.append(f'<text x="{_LEFT}" y="{top - 10}">{escape(title)}</text>')
    parts += [f'<path d="M{x:.1f} {top}v{_PANEL}" stroke="{_PALE}"/>' for x, _ in axis.ticks()]
    for k in range(math.floor(most * 1.05 / step) + 1):
        y = scale(k * step)
        parts.append(
            f'<path d="M{_LEFT} {y:.1f}H{_END}" stroke="{_PALE}"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{k * step:g}</text>'
        )
    return scale


def _step(most: float) -> float:
    """A round distance, for two to five of them up to `most`."""
    power: float = 10.0 ** math.floor(math.log10(most / 3))
    return next(power * k for k in (1, 2, 5, 10) if most / (power * k) <= 5)


def _margin_label(parts: list[str], y: float, text: str, colour: str) -> None:
    """A name in the right margin."""
    parts.append(f'<text x="{_END + 12}" y="{y + 4:.1f}" fill="{colour}">{escape(text)}</text>')


def _line(parts: list[str], at: Sequence[tuple[float, float]], colour: str, width: float = 1.2) -> None:
    """Broken where a value is missing."""
    runs: list[list[str]] = [[]]
    for x, y in at:
        if math.isnan(y):
            runs.append([])
        else:
            runs[-1].append(f"{x:.1f},{y:.1f}")
    parts += [
        f'<polyline points="{" ".join(run)}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>'
        for run in runs
        if len(run) > 1
    ]
