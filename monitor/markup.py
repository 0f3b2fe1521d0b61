"""The HTML of reports: text in, escaped markup out. Nothing is loaded from anywhere, and the browser is told so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

#: A page may use what it carries, and open no connection.
_SHUT = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
#: Evidently's page is a program: its own script, within the file.
_SHUT_EVIDENTLY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; font-src data:; img-src data: blob:"
)
_STYLE = """
:root{color-scheme:light}
.volcast{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:0 auto;padding:1rem;color:#1a1a1a;background:#fff}
.volcast h1{font-size:1.5rem;line-height:1.25;margin:.4rem 0}
.volcast h2{font-size:1.2rem;line-height:1.3;margin:2rem 0 .4rem}
.volcast .note{color:#555;font-size:.9rem}.volcast .wide{overflow-x:auto}
.volcast table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;margin:.6rem 0}
.volcast th,.volcast td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #e5e5e5;white-space:nowrap}
.volcast th{border-bottom:2px solid #999}
.volcast th:first-child,.volcast td:first-child{text-align:left}
.volcast svg{display:block;width:100%;min-width:40rem;height:auto;font:12px system-ui,sans-serif}
.volcast a{color:#0058a3}
"""


def document(title: str, parts: Sequence[str]) -> str:
    """One page, readable on a phone: wide tables scroll by themselves."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'{_head(title, _SHUT)}</head><body style="margin:0"><main class=volcast>\n'
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def headed(evidently: str, title: str, parts: Sequence[str]) -> str:
    """Evidently's page with ours above it. `ValueError` where it does not look like one."""
    before, style, after = evidently.partition("<style>")
    if not style or "<body>" not in after:
        raise ValueError("Evidently wrote a page of another form")
    ours = "<header class=volcast>\n" + "\n".join(parts) + "\n</header>"
    # The first <body> is the tag; later ones may stand in the script.
    return f"{before}{_head(title, _SHUT_EVIDENTLY)}{style}{after.replace('<body>', f'<body>{ours}', 1)}"


def _head(title: str, shut: str) -> str:
    return (
        f'<meta http-equiv="Content-Security-Policy" content="{shut}">'
        f'<meta name="referrer" content="no-referrer"><title>{escape(title)}</title><style>{_STYLE}</style>'
    )


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def link(href: str, text: str) -> str:
    """To a file beside the page."""
    return f'<a href="{escape(href)}">{escape(text)}</a>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are markup already."""
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def share(part: int, whole: int) -> str:
    """How many, and of how many."""
    return f"{part} of {whole} ({part / whole:.0%})" if whole else "none judged"
