"""Evidently's page with ours above it. It is a program, whose script stays within the file."""

from __future__ import annotations

from stream.html import render


def headed(evidently: str, template: str, **values: object) -> str:
    """`template`, which extends `monitor.drift/evidently.html.j2`, filled and put above Evidently's page.

    `ValueError` where that does not look like one.
    """
    before, style, after = evidently.partition("<style>")
    # The first <body> is the tag; later ones may stand in the script.
    head, body, shown = after.partition("<body>")
    if not style or not body:
        raise ValueError("Evidently wrote a page of another form")
    return render(template, evidently_before=before, evidently_head=style + head, evidently_shown=shown, **values)
