"""`volcast backtest`: checks the request before the backtest runs, and reports the result after it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import msgspec

from stream import times
from stream.adapters import policies
from stream.adapters import predictor as predictors
from stream.adapters.bundles import packaged_model
from stream.adapters.candles import files
from stream.cli import scoring_ledger, settings_flags
from stream.cli.outputs import write, write_json
from stream.cli.parameters import SEED, Finite, Time, command, one_symbol, refuse_empty_period
from stream.cli.paths import Output
from stream.cli.settings_flags import FILE, MODEL, POLICY
from stream.cli.tables import show
from stream.core.deciding.policy import Policy
from stream.core.market.candle import HOUR_MS
from stream.errors import MisuseError, RefusedError
from stream.extras import refuse_missing

_FIGURE_FORMS = ("png", "svg")
#: Shown alongside every policy: the reference project's rule as it was, and with its numbers read as daily ones.
_REFERENCES = ("reference", "reference-daily")


@command
@click.option("--candles", type=FILE, required=True, help="Candle file.")
@click.option("--symbol", callback=one_symbol, default="BTCUSDT", show_default=True)
@click.option(
    "--from", "start", type=Time(), metavar="ISO", help="First decision, UTC.  [default: after the training range]"
)
@click.option("--to", "end", type=Time(), metavar="ISO", help="No decision beyond, UTC.  [default: end of file]")
@click.option("--model", type=MODEL, help="ONNX bundle.  [default: the packaged one]")
@click.option("--walk-forward", "years", metavar="YEARS", help="Learn anew before each of these years, e.g. 2021,2022.")
@click.option("--forecaster", default="linear", show_default=True, help="Walk forward: who learns; model: the network.")
@click.option(
    "--train-from",
    type=Time(),
    metavar="ISO",
    default="2018-03-01",
    show_default=True,
    help="Walk forward: learn from.",
)
@click.option("--pool", type=FILE, help="Walk forward: candle file of other pairs to learn from too.")
@click.option(
    "--policy",
    "chosen",
    type=POLICY,
    multiple=True,
    help="Policy file (TOML) or packaged name; may be given again, the first is judged.  [default: target-40]",
)
@click.option("--fee-bp", type=Finite(min=0), default=10.0, show_default=True, help="Fee a side, 0.01 %.")
@click.option("--slippage-bp", type=Finite(min=0), default=0.0, show_default=True, help="Slippage a side.")
@click.option("--delay-hours", type=click.IntRange(1, 2), default=1, show_default=True, help="Hours until a fill.")
@click.option("--seed", type=SEED, default=7, show_default=True, help="Of the bootstrap, and of what is trained.")
@click.option("--json", "json_file", type=Output(stream=True), help="Write the figures here too, all digits.")
@click.option("--html", type=Output(stream=True), help="Report with plots, one file.")
@click.option("--figure", type=Output(), help="The main figure, .svg or .png; of several policies what tracking costs.")
@settings_flags.config_option
def backtest(**options: Any) -> None:
    """What the daemon's decisions would have come to: risk, cost and stability beside benchmarks (needs `research`).

    The very operator and policy of the daemon, filled at the next hour's open. Volatilities are annualized with
    8,760 hours. A bundle is tested only after its training range; earlier years need --walk-forward.

    Example: volcast backtest --candles btc.parquet --walk-forward 2021,2022,2023,2024 --html risk.html
    """
    # A walk forward trains its own models and needs no bundle: only one given as a flag is a mistake.
    loaded = settings_flags.settle(options, "policy", *(["model"] if options["years"] is None else []))
    if loaded.policy and not options["chosen"]:
        options["chosen"] = (loaded.policy,)
    _backtest(**options)


def _backtest(
    *,
    candles: Path,
    symbol: str,
    start: str | None,
    end: str | None,
    model: Path | None,
    years: str | None,
    forecaster: str,
    train_from: str,
    pool: Path | None,
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
    if years is None and pool is not None:
        raise click.UsageError("--pool goes with --walk-forward: a bundle has learnt already")
    form = "" if figure is None else figure.suffix.removeprefix(".").lower()
    if figure is not None and form not in _FIGURE_FORMS:
        raise click.BadParameter(f"{figure.name!r} must end in .png or .svg", param_hint="--figure")
    judged = [policies.load(path) for path in chosen or (None,)]
    _refuse_same_names(judged)
    references = [p for name in _REFERENCES if (p := policies.load(name)).name not in {j.name for j in judged}]
    wanted_years = None if years is None else _years(years)
    if start and end:
        refuse_empty_period(start, end)
    refuse_missing("a backtest needs", "research", ("arch", "empyrical", *(("matplotlib",) if html or figure else ())))
    ledger = scoring_ledger.used(None)
    from training import forecasters
    from training.backtest import decisions, report, runner
    from training.backtest.execution import Costs
    from training.data import dataset
    from training.evaluation.ledger import Scoring

    table = files.read(candles, asked=symbol)
    data = dataset.of_grid(symbol, *table.grid(symbol))
    if wanted_years is None:
        bundle = predictors.load(model or packaged_model())
        if start is None:
            since, until = dataset.unseen(data, bundle.model.contract.training.trained_until)
        else:
            since, until = times.parse(start), int(data.open_time[-1]) + HOUR_MS
        until = until if end is None else times.parse(end)
        if since >= until:
            raise RefusedError(
                f"{candles}: the period from {times.day(since)} to {times.day(until)} is empty; name --from and --to"
            )
        terms = [decisions.of_bundle(data, bundle, since, until)]
    else:
        others = dataset.load_others(pool, symbol) if pool is not None else ()
        try:
            (learner,) = forecasters.named([forecaster], seed=seed, pool=others)
        except forecasters.ForecasterError as error:
            raise MisuseError(f"--forecaster: {error}") from None
        forecasters.require_installed([learner])
        terms = []
        for year in wanted_years:
            click.echo(f"[{len(terms)}/{len(wanted_years)}] {forecaster} learns for {year}", err=True)
            terms += decisions.yearly(data, learner, times.parse(train_from), [year])
    try:
        tested = runner.run(
            data, table[symbol], terms, judged, references, Costs(fee_bp, slippage_bp, delay_hours), seed=seed
        )
    except ValueError as error:
        raise RefusedError(f"{candles}: {error}") from None
    first, last = terms[0].since, terms[-1].until
    looks = [
        Scoring(name, symbol, times.day(first), times.day(last), "backtest", data_sha256=data.sha256(first, last))
        for name in dict.fromkeys(term.model for term in terms)
    ]
    scoring_ledger.record(ledger, first, last, looks)
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
