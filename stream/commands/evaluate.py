"""`volcast evaluate`: what was asked for is checked before anything is scored, and told once it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from stream.commands.exchange import refuse_empty_period
from stream.commands.node import packaged_model
from stream.commands.outputs import write, write_json
from stream.commands.tables import show
from stream.errors import MisuseError, RefusedError
from stream.extras import installing

if TYPE_CHECKING:
    from training.evaluation.evaluate import Scored

_FIGURE_FORMS = ("png", "svg")


def evaluate(
    *,
    candles: Path,
    models: Sequence[Path],
    symbol: str,
    start: str | None,
    end: str | None,
    years: str | None,
    train_from: str,
    pool: Path | None,
    baselines: str,
    baselines_only: bool,
    no_tests: bool,
    seed: int,
    json_file: Path | None,
    html: Path | None,
    figure: Path | None,
    ledger: Path | None,
) -> None:
    if years is None and (pool is not None or baselines_only):
        raise click.UsageError("--pool and --baselines-only go with --walk-forward: bundles have learnt already")
    if baselines_only and pool is not None:
        raise click.UsageError("--pool is for the model, which --baselines-only leaves out")
    if years is not None and (models or start or end):
        raise click.UsageError("--walk-forward trains anew and names its own period: without --model, --from, --to")
    form = "" if figure is None else figure.suffix.removeprefix(".").lower()
    if figure is not None and form not in _FIGURE_FORMS:
        raise click.BadParameter(f"{figure.name!r} must end in .png or .svg", param_hint="--figure")
    _need("the tests of forecasts", () if no_tests else ("statsmodels", "arch"), "or pass --no-tests")
    _need("--html and --figure", ("matplotlib",) if html or figure else (), "or leave them out")
    from training.evaluation import evaluate as evaluation
    from training.evaluation import looks as ledgers
    from training.pages import table

    if ledger is not None:
        ledgers.read(ledger)
    chosen = _baselines(baselines)
    if years is None:
        refuse_empty_period(start or ledgers.TEST_YEAR[0], end or ledgers.TEST_YEAR[1])
        scored = evaluation.fixed(
            candles,
            models or [packaged_model()],
            symbol=symbol,
            start=start or ledgers.TEST_YEAR[0],
            end=end or ledgers.TEST_YEAR[1],
            baselines=chosen,
            tests=not no_tests,
            progress=_show_progress,
        )
    else:
        scored = evaluation.walk_forward(
            candles,
            _years(years),
            symbol=symbol,
            train_from=train_from,
            pool=pool,
            baselines=chosen,
            with_model=not baselines_only,
            seed=seed,
            tests=not no_tests,
            progress=_show_progress,
        )
    # Before anything is shown: what was looked at is in the ledger, whatever becomes of the rest.
    _into_ledger(scored, ledger)
    show(table.tables(scored.evaluation))
    for note in scored.evaluation.notes:
        click.echo(f"note: {note}", err=True)
    _write_all(scored, json_file, html, figure, form)


def _into_ledger(scored: Scored, ledger: Path | None) -> None:
    from training.data.dataset import time_ms
    from training.evaluation import evaluate as evaluation
    from training.evaluation import looks as ledgers

    of = scored.evaluation
    if not of.models or not ledgers.touches_test_year(time_ms(of.start), time_ms(of.end)):
        return
    if ledger is None:
        click.echo("note: 2024 is the test year: --ledger FILE writes down that it was looked at", err=True)
        return
    added = ledgers.append(ledger, evaluation.scorings(scored))
    click.echo(f"{ledger}: {ledgers.count(ledger)} scoring(s) of 2024, {added} of them new", err=True)


def _write_all(scored: Scored, json_file: Path | None, html: Path | None, figure: Path | None, form: str) -> None:
    of = scored.evaluation
    write_json(json_file, msgspec.to_builtins(of))
    if html is not None:
        from training.evaluation.evaluate import MEANINGS
        from training.pages import evaluation_page

        write("--html", html, evaluation_page.page(of, scored.panel, MEANINGS).encode())
    if figure is not None:
        from training.pages import evaluation_page, figures

        write("--figure", figure, figures.forecast_against_actual(scored.panel, evaluation_page.subject(of), form))


def _baselines(text: str) -> tuple[str, ...]:
    from training import forecasters

    sets = {"core": forecasters.CORE, "all": forecasters.BASELINES, "none": ()}
    names = [n for part in text.split(",") if (name := part.strip()) for n in sets.get(name, (name,))]
    chosen = tuple(dict.fromkeys(names))
    try:
        forecasters.named(chosen)
    except forecasters.ForecasterError as error:
        raise MisuseError(f"--baselines: {error}") from None
    return chosen


def _years(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or any(b <= a for a, b in pairwise(found)):
        raise click.BadParameter(
            f"{text!r} is no list of years in their order, such as 2021,2022", param_hint="--walk-forward"
        )
    return found


def _need(what: str, modules: Sequence[str], otherwise: str) -> None:
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        raise RefusedError(
            f"{what} need {', '.join(missing)}, of the extra 'research': {installing('research')} ({otherwise})"
        )


def _show_progress(what: str, done: int, total: int) -> None:
    click.echo(f"[{done}/{total}] {what}", err=True)
