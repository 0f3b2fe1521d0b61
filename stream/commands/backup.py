"""`volcast backup FILE`: copies the journal consistently while a daemon goes on writing."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import click

from stream.adapters.journal import files
from stream.adapters.journal.database import FILE_NAME
from stream.cli import settings_flags
from stream.cli.parameters import command
from stream.cli.paths import DataDir, Output, inputs_of, places_of, refuse_clashes
from stream.errors import JournalError, RefusedError


@command
@click.argument("file", type=Output())
@settings_flags.config_option
@click.option("--data-dir", type=DataDir(), help="Where the journal is.  [default: var]")
def backup(file: Path, **flags: Any) -> None:
    """Copy the journal into FILE, as it is at one moment, while the daemon goes on. FILE is whole or not there, and one
    that is there already is not replaced.

    To restore: stop the daemon, move journal.sqlite, -wal and -shm aside, put FILE in place of journal.sqlite, start.

    Example: volcast backup --data-dir var journal-2026-11-22.sqlite
    """
    copy_journal(settings_flags.settle(flags, "data_dir").data_dir, file)


def copy_journal(data_dir: Path, file: Path) -> None:
    """Copies the journal. Raises `RefusedError` where FILE exists, `JournalError` where it cannot be copied."""
    journal = data_dir / FILE_NAME
    if not journal.exists():
        raise JournalError(f"there is no journal in {data_dir}: name its directory with --data-dir")
    refuse_clashes(places_of(("FILE", file)), inputs_of(data_dir))
    if file.exists():
        raise RefusedError(f"{file} is there already and is not replaced: choose another name, or remove it")
    try:
        with contextlib.closing(files.look(journal)) as source:
            files.copy(source, file)
    except (sqlite3.Error, OSError) as error:
        raise JournalError(f"{journal} was not copied to {file}: {error}") from None
    click.echo(f"{file}: {file.stat().st_size} bytes")
