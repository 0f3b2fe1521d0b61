"""Options of commands that may run alongside a daemon: a lower priority, and a bound on memory.

Kept apart from `stream.cli.confined`, which loads nothing but the standard library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def options(command: F) -> F:
    """Adds `--nice` and `--memory-mb`."""
    command = click.option(
        "--memory-mb", type=click.IntRange(1, 2**20), metavar="MB", help="End where more is needed, MiB."
    )(command)
    return click.option(
        "--nice", type=click.IntRange(0, 19), default=0, show_default=True, help="Lower priority by so much."
    )(command)
