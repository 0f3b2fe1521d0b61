"""Tables of figures in the terminal. No figure may be cut short, so a table that is too wide is printed in parts."""

from __future__ import annotations

import os
from collections.abc import Iterable

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

#: Width that is used for a pipe or a file, which has none of its own.
_PIPE_WIDTH = 140
_UNBOUNDED = 10_000


def show(tables: Iterable[Table]) -> None:
    """Prints tables to stdout, with an empty line after each."""
    console = Console()
    width_known = console.is_terminal or os.environ.get("COLUMNS", "").isdecimal()
    width = console.width if width_known else _PIPE_WIDTH
    for table in tables:
        for part in parts(table, width):
            # Where one column is too wide already, the terminal wraps the line: nothing is lost.
            Console(width=max(width, _needed(part))).print(part, "")


def parts(table: Table, width: int) -> list[Table]:
    """Returns the table as tables no wider than `width`, each with the first column.

    One that is wider has just one column besides the first.
    """
    groups: list[list[int]] = [[]]
    for column in range(1, len(table.columns)):
        if groups[-1] and _needed(_part(table, [*groups[-1], column])) > width:
            groups.append([])
        groups[-1].append(column)
    found = [_part(table, group) for group in groups]
    # Equal numbers of columns look better than one column that is left over.
    many = -(-(len(table.columns) - 1) // len(groups))
    evenly = [_part(table, range(k, min(k + many, len(table.columns)))) for k in range(1, len(table.columns), many)]
    if all(_needed(part) <= width for part in evenly):
        found = evenly
    found[0].title, found[-1].caption = table.title, table.caption
    if len(found) == 1 and width >= (table.min_width or 0):
        found[0].min_width = table.min_width
    return found


def _needed(table: Table) -> int:
    """Returns the width that shows every cell in full."""
    console = Console(width=_UNBOUNDED)
    return Measurement.get(console, console.options, table).maximum


def _part(table: Table, others: Iterable[int]) -> Table:
    """Returns the first column of `table` and the columns `others`, without title and caption."""
    columns = [table.columns[k] for k in (0, *others)]
    shown = Table(
        box=table.box,
        padding=table.padding,
        show_edge=table.show_edge,
        title_justify=table.title_justify,
        caption_justify=table.caption_justify,
    )
    for column in columns:
        shown.add_column(column.header, justify=column.justify, no_wrap=True)
    for row, cells in zip(table.rows, zip(*(c.cells for c in columns), strict=True), strict=True):
        shown.add_row(*cells, style=row.style)
    return shown
