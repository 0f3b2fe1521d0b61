"""How numbers are written in pages and tables."""

from __future__ import annotations

from training.scoring.measures import Scores

#: Where a figure does not exist.
NONE = "–"
#: From here on a number is written with its exponent.
_LONG = 1e6


def number(value: float | None, digits: int) -> str:
    if value is None:
        return NONE
    return f"{value:.{digits}f}" if abs(value) < _LONG else f"{value:.2e}"


def p_value(value: float | None) -> str:
    return NONE if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def share(value: float | None, digits: int = 1) -> str:
    if value is None:
        return NONE
    return f"{value:.{digits}%}" if abs(value) < _LONG else f"{100 * value:.2e}%"


def between(bounds: tuple[float, float] | None, digits: int = 2) -> str:
    return NONE if bounds is None else f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"


def spread(values: Scores, digits: int) -> str:
    low, mid, high = (number(values[k], digits) for k in ("min", "median", "max"))
    return f"{mid} ({low} to {high})"
