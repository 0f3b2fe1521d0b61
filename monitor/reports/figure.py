"""The trend figure of a report's index, as SVG within its page: drift, the verdicts and the forecasts' quality by week.

Rules of this module:
- What a colour says, a shape, a line's style or a word says too.
- The drawing is inline, for its marks to say which week and measure they are of. Its letters are paths: who looks may
  lack the font.
Importing this module loads matplotlib.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monitor.reports.trend import TrendPoint
from stream.drawing import BLACK, BLUE, GREY, ORANGE, WIDTH_INCHES, dates, rendered
from stream.times import day

_HEIGHT_INCHES = 5.6
_SVG = "http://www.w3.org/2000/svg"
_DESCRIPTION = "Drift scores by week against their thresholds, the verdicts, and QLIKE of served forecasts and of har."
#: Boxes of verdicts: as wide as so many weeks leave room for, within bounds. Points.
_BOX_POINTS = (2.5, 8.0)
_STRIP_POINTS = 500
#: Two names in a margin are at least this share of a panel apart.
_APART = 0.12
#: Ids of a week's mark and of the boxes, in the SVG.
WEEK, VERDICTS = "week", "verdicts"

ET.register_namespace("", _SVG)
ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")


def trend(points: Sequence[TrendPoint], from_ms: int, to_ms: int) -> str:
    """The figure of [from_ms, to_ms), points oldest first: scores over thresholds, verdicts, QLIKE."""

    def draw(figure: Figure) -> None:
        above, between, below = figure.subplots(3, 1, sharex=True, height_ratios=(1.0, 0.42, 1.0))
        _scores(above, points)
        _verdicts(between, points)
        _qlike(below, points)
        dates(below)
        below.set_xlim(_times([from_ms])[0], _times([to_ms])[0])

    return _inline(rendered(draw, "svg", (WIDTH_INCHES, _HEIGHT_INCHES)), points)


def _scores(axes: Axes, points: Sequence[TrendPoint]) -> None:
    """The highest score of each week; a ring is within its threshold, a full dot beyond."""
    scores = [p.score_of_threshold for p in points]
    axes.plot(_times([p.last for p in points]), scores, color=GREY, linewidth=1.0)
    axes.axhline(1.0, color=BLACK, linewidth=1.0, linestyle="--")
    for k, p in enumerate(points):
        edge, fill = (ORANGE, ORANGE) if p.detected else (BLUE, "white")
        _marks(axes, [p.last], p.score_of_threshold, f"{WEEK}-{k}", marker="o", ms=5.5, mec=edge, mfc=fill)
    axes.set_ylim(0, 1.05 * max([*scores, 1.2]))
    _title(axes, "drift: highest score ÷ threshold (full = beyond)")
    _name(axes, 1.0, "threshold", BLACK)


def _verdicts(axes: Axes, points: Sequence[TrendPoint]) -> None:
    """A box a week and verdict; a full one is drift, none is a week that could not be judged."""
    strips: dict[str, list[bool | None]] = {
        "30 days": [p.detected for p in points],
        "10 days": [p.fast_detected for p in points],
        "default": [p.default_detected for p in points],
    }
    least, most = _BOX_POINTS
    size = min(most, max(least, _STRIP_POINTS / max(len(points), 1) - 1.5))
    for row, (of, verdicts) in enumerate(strips.items()):
        for wanted, edge, fill in ((True, ORANGE, ORANGE), (False, GREY, "white")):
            at = [p.last for p, verdict in zip(points, verdicts, strict=True) if verdict is wanted]
            name = f"{VERDICTS}-{row}-{'drift' if wanted else 'none'}"
            _marks(axes, at, row, name, marker="s", ms=size, mec=edge, mfc=fill)
        _name(axes, row, of, BLACK)
    axes.set_ylim(len(strips) - 0.4, -0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    _title(axes, "verdicts (full = drift): of 30 days, of 10 days, and Evidently's default")


def _qlike(axes: Axes, points: Sequence[TrendPoint]) -> None:
    """Whose line lies lower, forecast better; it is broken where a value is missing."""
    lines = (
        ("served", ORANGE, "-", [p.qlike_served for p in points]),
        ("har", BLUE, "--", [p.qlike_har for p in points]),
    )
    top = 1.05 * max([v for *_, values in lines for v in values if v is not None], default=1.0) or 1.0
    ends: list[tuple[float, str, str]] = []
    for name, colour, style, values in lines:
        known = np.array([np.nan if v is None else v for v in values], np.float64)
        axes.plot(_times([p.last for p in points]), known, color=colour, linewidth=1.8, linestyle=style)
        ends += [(v, name, colour) for v in values if v is not None][-1:]
    axes.set_ylim(0, top)
    _title(axes, "QLIKE over 30 days (less is better): served solid, har dashed")
    at = -top
    for end, name, colour in sorted(ends):
        at = max(end, at + _APART * top)
        _name(axes, at, name, colour)


def _marks(axes: Axes, at: Sequence[int], height: float, name: str, **look: Any) -> None:
    """A mark at each of the times, all in a group of that name. Those at the period's end are not cut."""
    (line,) = axes.plot(_times(at), np.full(len(at), height), linestyle="none", **look)
    line.set(gid=name, clip_on=False, in_layout=False, zorder=3)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize="medium")


def _name(axes: Axes, at: float, text: str, colour: str) -> None:
    """In the right margin, at a height of the panel's scale."""
    where = axes.get_yaxis_transform()
    axes.annotate(text, (1, at), (8, 0), xycoords=where, textcoords="offset points", va="center", color=colour)


def _times(ms: Sequence[int]) -> np.ndarray:
    return np.array(ms, "datetime64[ms]")


def _inline(svg: bytes, points: Sequence[TrendPoint]) -> str:
    """The drawing as a part of a page: named for who cannot see it, each week's mark with its measure and score."""
    root = ET.fromstring(svg)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    root.set("role", "img")
    root.set("aria-label", _DESCRIPTION)
    marks = {group.get("id"): group for group in root.iter(f"{{{_SVG}}}g")}
    for k, p in enumerate(points):
        title = ET.Element(f"{{{_SVG}}}title")
        title.text = f"{day(p.last)}: {p.measure} at {p.score_of_threshold:.2f}"
        marks[f"{WEEK}-{k}"].insert(0, title)
    return ET.tostring(root, encoding="unicode")
