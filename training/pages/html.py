"""The little HTML that a report is made of: text in, escaped markup out. No script, nothing loaded from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

from training.scoring.measures import Scores

_STYLE = """
:root{color-scheme:light}
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:0 auto;padding:1rem;color:#1a1a1a;background:#fff}
h1{font-size:1.5rem;line-height:1.25}h2{font-size:1.2rem;margin-top:2.2rem}
figure{margin:1.2rem 0}figure img{max-width:100%;height:auto}figcaption,.note{color:#555;font-size:.9rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;margin:.6rem 0}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #e5e5e5;white-space:nowrap}
th{border-bottom:2px solid #999}th:first-child,td:first-child{text-align:left}
tr.ours td{font-weight:600;background:#fdf1e9}dt{font-weight:600}dd{margin:0 0 .5rem 0;overflow-wrap:anywhere}
"""


def document(title: str, parts: Sequence[str]) -> str:
    """One page, readable on a phone: wide tables scroll by themselves."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def picture(svg: bytes, alt: str) -> str:
    """An SVG as part of the page, with a text for who cannot see it."""
    data = base64.b64encode(svg).decode()
    return (
        f'<figure><img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(alt)}</figcaption></figure>"
    )


def section(title: str, *parts: str) -> str:
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(parts)


def definitions(rows: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in rows) + "</dl>"


def paragraph(text: str) -> str:
    """A remark, begun and ended as a sentence."""
    return f'<p class="note">{escape(text[:1].upper() + text[1:])}{"" if text.endswith(".") else "."}</p>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], ours: Sequence[str]) -> str:
    """Rows whose first cell is one of `ours` stand out."""
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in columns)
    body = "".join(
        f"<tr{' class=ours' if row[0] in ours else ''}>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>\n"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


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
