"""`volcast backtest`: what was asked for is checked before anything is decided, and told once it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import click
import msgspec

from stream.adapters import policies
from stream.adapters import predictor as predictors
from stream.adapters.candles import files
from stream.commands.exchange import refuse_empty_period
from stream.commands.node import packaged_model
from stream.commands.outputs import write, write_json
from stream.commands.tables import show
from stream.core.deciding.policy import Policy
from stream.errors import MisuseError, RefusedError
from stream.extras import installing

_FROM, _TO = "2024-01-01", "2025-01-01"
_FIGURE_FORMS = ("png", "svg")
#: Shown beside every policy: the reference project's rule as it was, and with its numbers read as daily ones.
_REFERENCES = ("reference", "reference-daily")


def backtest(
    *,
    candles: Path,
    symbol: str,
    start: str | None,
    end: str | None,
    model: Path | None,
    years: str | None,
    forecaster: str,
    train_from: str,
    chosen: Sequence[Path],
    fee_bp: float,
    slippage_bp: float,
    delay_hours: int,
    seed: int,
    json_file: Path | None,
    html: Path | None,
    figure: Path | None,
) -> None:
    if years is not None and (model or start or end):
        raise click.UsageError("--walk-forward trains anew and names its own period: without --model, --from, --to")
    form = "" if figure is None else figure.suffix.removeprefix(".").lower()
    if figure is not None and form not in _FIGURE_FORMS:
        raise click.BadParameter(f"{figure.name!r} must end in .png or .svg", param_hint="--figure")
    judged = [policies.load(path) for path in chosen or (None,)]
    _refuse_same_names(judged)
    references = [p for name in _REFERENCES if (p := policies.load(name)).name not in {j.name for j in judged}]
    wanted_years = None if years is None else _years(years)
    if wanted_years is None:
        refuse_empty_period(start or _FROM, end or _TO)
    _need(("arch", "empyrical", *(("matplotlib",) if html or figure else ())))
    from training import forecasters
    from training.backtest import decisions, report, runner
    from training.backtest.execution import Costs
    from training.data import dataset

    table = files.read(candles, asked=symbol)
    data = dataset.of_grid(symbol, *table.grid(symbol))
    if wanted_years is None:
        since, until = dataset.time_ms(start or _FROM), dataset.time_ms(end or _TO)
        terms = [decisions.of_bundle(data, predictors.load(model or packaged_model()), since, until)]
    else:
        try:
            (learner,) = forecasters.named([forecaster], seed=seed)
        except forecasters.ForecasterError as error:
            raise MisuseError(f"--forecaster: {error}") from None
        forecasters.require_installed([learner])
        terms = []
        for year in wanted_years:
            click.echo(f"[{len(terms)}/{len(wanted_years)}] {forecaster} learns for {year}", err=True)
            terms += decisions.yearly(data, learner, dataset.time_ms(train_from), [year])
    try:
        tested = runner.run(
            data, table[symbol], terms, judged, references, Costs(fee_bp, slippage_bp, delay_hours), seed=seed
        )
    except ValueError as error:
        raise RefusedError(f"{candles}: {error}") from None
    show(report.tables(tested.backtest))
    click.echo(report.regimes_in_words(tested.backtest))
    for text in tested.backtest.findings:
        click.echo(text)
    for note in tested.backtest.notes:
        click.echo(f"note: {note}", err=True)
    write_json(json_file, msgspec.to_builtins(tested.backtest))
    if html is not None:
        write("--html", html, report.page(tested).encode())
    if figure is not None:
        from training.backtest import figures

        draw = figures.overview if len(judged) == 1 else figures.tradeoff
        write("--figure", figure, draw(tested, form))


def _refuse_same_names(judged: Sequence[Policy]) -> None:
    names = [p.name for p in judged]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise MisuseError(f"--policy: two policies are called {', '.join(sorted(twice))}: change `name` in one")


def _years(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or any(b != a + 1 for a, b in pairwise(found)):
        raise click.BadParameter(
            f"{text!r} is no list of years that follow each other, such as 2021,2022", param_hint="--walk-forward"
        )
    return found


def _need(modules: Sequence[str]) -> None:
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        raise RefusedError(f"a backtest needs {', '.join(missing)}, of the extra 'research': {installing('research')}")
