"""The ledger of looks at the test year, for every command that scores: each look costs some of the year's worth.

A checkout of the project has its ledger in docs/, and each scoring that touches the year adds a line there by itself;
elsewhere there is none, unless a command is given one. VOLCAST_LEDGER names another file, or none where it is empty.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

import stream
from training.evaluation import ledger
from training.evaluation.ledger import Scoring

VARIABLE = "VOLCAST_LEDGER"


def used(given: Path | None) -> Path | None:
    """Returns the ledger that a command adds to: the one that it was given, or the checkout's. Raises `LedgerError`
    where it cannot be read."""
    if given is None and (named := os.environ.get(VARIABLE)) is not None:
        given = Path(named) if named.strip() else None
    elif given is None:
        of_checkout = Path(stream.__file__).parents[1] / "docs" / "scorings-2024.jsonl"
        given = of_checkout if of_checkout.is_file() and os.access(of_checkout.parent, os.W_OK) else None
    if given is not None:
        ledger.read(given)
        if not os.access(given.absolute().parent, os.W_OK):
            raise ledger.LedgerError(f"{given}: the ledger cannot be written there; name another file ({VARIABLE})")
    return given


def record(path: Path | None, start_ms: int, end_ms: int, scorings: list[Scoring]) -> None:
    """Writes down scorings of [start, end), ms, if it touches the test year, and says so on stderr."""
    if path is None or not scorings or not ledger.touches_test_year(start_ms, end_ms):
        return
    added = ledger.append(path, scorings)
    click.echo(f"{path}: {ledger.count(path)} scoring(s) of 2024, {added} of them new", err=True)
