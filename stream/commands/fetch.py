"""`volcast fetch`: what the exchange has of some symbols, as one candle file, and what it has not, as lines."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import Progress

from stream import urls
from stream.commands.exchange import parse_time, refuse_empty_period
from stream.commands.outputs import write_json
from stream.errors import MisuseError, RefusedError
from stream.settings import bare
from training.data import fetch as fetching

#: Lines of one kind for one symbol; --json has them all.
_LINES = 20


def fetch(
    *,
    symbols: tuple[str, ...],
    from_: str,
    to: str | None,
    out: Path,
    rest_url: str,
    archive_url: str | None,
    allow_plaintext: bool,
    json_file: Path | None,
) -> None:
    start = parse_time(from_, "--from")
    end = parse_time(to, "--to") if to else None
    if to:
        refuse_empty_period(from_, to)
    archive_url = bare(archive_url) or None
    if archive_url is None:
        # An exchange on this machine has its own market: another one's archive would not fit to it.
        archive_url = rest_url if urls.is_loopback(urls.parse(rest_url).host) else fetching.ARCHIVE_URL
    _refuse_archive(archive_url, allow_plaintext)
    console = Console(stderr=True)
    try:
        with Progress(console=console, disable=not console.is_terminal) as bar:
            tasks = {name: bar.add_task(name, total=None) for name in symbols}
            fetched = fetching.fetch(
                symbols,
                start,
                end,
                out,
                rest_url=rest_url,
                archive_url=archive_url,
                progress=lambda name, done, total: bar.update(tasks[name], completed=done, total=total),
                waiting=lambda seconds: bar.console.print(
                    f"waiting {math.ceil(seconds)} s: the exchange limits requests"
                ),
            )
    except KeyboardInterrupt:
        raise RefusedError(f"interrupted; {fetching.parts_of(out)} keeps what came: the same command resumes") from None
    click.echo(f"{fetched.rows} candles: {out}" + (f", {fetched.kept} of them kept from before" * bool(fetched.kept)))
    for series in fetched.series:
        for line in _lines(series):
            click.echo(f"{series.symbol}: {line}")
    write_json(json_file, {"out": str(out), **msgspec.to_builtins(fetched)})


def _refuse_archive(url: str, allow_plaintext: bool) -> None:
    try:
        address = urls.parse(url)
    except ValueError as error:
        raise MisuseError(f"--archive-url: {urls.mask(url)} will not do: {error}") from None
    if address.scheme not in ("http", "https"):
        raise MisuseError(f"--archive-url: {urls.mask(url)} must be https://host")
    if address.scheme == "http" and not urls.is_loopback(address.host) and not allow_plaintext:
        raise MisuseError(f"--archive-url: {urls.mask(url)} is not encrypted: use https://, or say --allow-plaintext")


def _lines(series: fetching.Series) -> list[str]:
    facts = series.facts
    lines = [
        f"{_utc(series.first_open_time)} to {_utc(series.last_open_time)}, "
        f"{series.archive_hours} from the archive, {series.rest_hours} from REST"
    ]
    lines += _some([f"the archive has revised {part}: fetched anew" for part in facts.revised])
    lines += _some([f"REST replaces the archive's {part.part}: {part.reason}" for part in facts.replaced])
    lines += _some([f"{part.part} is used as fetched before: {part.reason}" for part in facts.unchecked])
    lines += _some(
        [
            f"archive, which counts, and REST differ at {_utc(d.open_time)}: {_values(d.archive)} / {_values(d.rest)}"
            for d in facts.disagreements
        ]
    )
    lines += [f"{count} row(s) of the archive set aside: {reason}" for reason, count in facts.set_aside.items()]
    lines += _some(
        [
            f"the exchange has no candle for {hole.hours} hour(s) from {_utc(hole.from_ms)} to {_utc(hole.to_ms)}"
            for hole in series.holes
        ]
    )
    if series.withdrawn:
        lines.append(f"{series.withdrawn} candle(s) that the file held are not at the exchange: left out")
    return lines


def _some(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _LINES else [*lines[:_LINES], f"... and {len(lines) - _LINES} more; --json has all"]


def _values(ohlcv: tuple[Any, ...]) -> str:
    return " ".join(f"{value:.10g}" for value in ohlcv)


def _utc(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1_000, UTC):%Y-%m-%d %H:%M}"
