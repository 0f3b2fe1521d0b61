"""Types of values on the command line, and how wrong usage is reported: one line, exit code 2."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import click

from stream import times
from stream.cli import paths
from stream.core.market.symbols import SymbolError, parse
from stream.errors import MisuseError
from stream.urls import mask_within


class _Misused(click.ClickException):
    """Wrong usage as one line, instead of click's three."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"volcast: {self.message}", err=True)


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turns click's errors about usage into one line that names the command's help."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        # What was taken for an argument may be a URL with its password.
        text = mask_within(" ".join(error.format_message().split())).rstrip(".")
        where = error.ctx.command_path if error.ctx is not None else "volcast"
        raise _Misused(f"{text}; see `{where} --help`") from None


class Command(paths.Command):
    """A command that checks its paths first, and for which an empty option counts as not given: `--out ""` is the same
    as no `--out`."""

    def make_parser(self, ctx: click.Context) -> Any:
        parser = super().make_parser(ctx)
        parse = parser.parse_args

        def parse_args(args: list[str]) -> Any:
            given, rest, order = parse(args)
            for name, value in list(given.items()):
                if isinstance(value, list):
                    given[name] = [each for each in value if each != ""]
                if given[name] in ("", []):
                    del given[name]
            return given, rest, order

        parser.parse_args = parse_args  # type: ignore[method-assign]
        return parser


SEED = click.IntRange(min=0)


def command(function: Callable[..., Any]) -> click.Command:
    """Declares a command of `volcast`."""
    return click.command(cls=Command)(function)


class Time(click.ParamType[str]):
    """An ISO time, which is checked and passed on as text."""

    name = "ISO"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            times.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


def time_of(text: str, option: str) -> int:
    """Returns an ISO time as ms. Raises `MisuseError`, which names the option, where the text is none."""
    try:
        return times.parse(text)
    except ValueError as error:
        raise MisuseError(f"{option}: {error}") from None


def refuse_empty_period(from_: str, to: str, options: str = "--from, --to") -> None:
    """Raises `MisuseError` where the period does not end after it begins."""
    if time_of(from_, options) >= time_of(to, options):
        raise MisuseError(f"{options}: the period {from_} to {to} is empty; swap or widen it")


def one_symbol(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Returns any spelling of a pair in the exchange's, for every command alike. Raises `MisuseError` for any other."""
    if value is None:
        return None
    try:
        return parse(value)
    except SymbolError as error:
        raise MisuseError(f"{option.opts[-1]}: {error}") from None


class Finite(click.FloatRange):
    """A number in a range, which "nan" and "inf" are not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number
