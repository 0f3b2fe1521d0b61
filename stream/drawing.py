"""How figures look and become bytes: the same input gives the same bytes, with no clock, no chance and no display.

Colours are Okabe & Ito's, which do not lean on telling red from green. Importing this module loads matplotlib.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

BLACK, ORANGE, BLUE, GREEN, PINK, YELLOW, SKY, GREY = (
    "#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f",
)  # fmt: skip
WIDTH_INCHES = 9.0
SIZE_INCHES = (WIDTH_INCHES, 3.8)
_DPI = 110
_STYLE: dict[str, Any] = {
    "svg.hashsalt": "volcast",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def rendered(draw: Callable[[Figure], None], form: str, size_inches: tuple[float, float] = SIZE_INCHES) -> bytes:
    """What `draw` draws as a file of `form`, "svg" or "png"."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size_inches, dpi=_DPI)
        FigureCanvasAgg(figure)
        draw(figure)
        out = io.BytesIO()
        figure.savefig(out, format=form, metadata={"Date": None} if form == "svg" else {"Software": None})
    return out.getvalue()


def dates(axes: Axes) -> None:
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.margins(x=0.01)
