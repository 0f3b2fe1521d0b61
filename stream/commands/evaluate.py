"""`volcast evaluate`: checks the request before anything is scored, and reports the result after it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from stream import times
from stream.adapters.bundles import packaged_model
from stream.cli import scoring_ledger, settings_flags
from stream.cli.outputs import write, write_json
from stream.cli.parameters import SEED, Time, command, one_symbol, refuse_empty_period
from stream.cli.paths import RUN_FILES, Input, Output
from stream.cli.settings_flags import FILE
from stream.cli.tables import show
from stream.errors import MisuseError
from stream.extras import refuse_missing

if TYPE_CHECKING:
    from training.evaluation.evaluate import Scored

_FIGURE_FORMS = ("png", "svg")


@command
@click.option("--candles", type=FILE, required=True, help="Candle file.")
@click.option(
    "--model",
    "models",
    type=Input(RUN_FILES, shipped=("export", "models", "*.onnx")),
    multiple=True,
    help="ONNX bundle, or a directory that `volcast train` wrote; may be given again.  [default: the packaged one]",
)
@click.option("--symbol", callback=one_symbol, default="BTCUSDT", show_default=True)
@click.option(
    "--from", "start", type=Time(), metavar="ISO", help="First forecast, UTC.  [default: after the training range]"
)
@click.option("--to", "end", type=Time(), metavar="ISO", help="No outcome beyond, UTC.  [default: end of file]")
@click.option("--walk-forward", "years", metavar="YEARS", help="Train anew before each of these years, e.g. 2022,2023.")
@click.option(
    "--train-from",
    type=Time(),
    metavar="ISO",
    default="2018-03-01",
    show_default=True,
    help="Walk forward: learn from here on.",
)
@click.option("--pool", type=FILE, help="Candle file of other pairs to learn from too: model, linear, lightgbm.")
@click.option(
    "--baselines",
    metavar="LIST",
    default="core",
    show_default=True,
    help="Names, comma-separated, or core, all, none. core needs no training stack.",
)
@click.option("--baselines-only", is_flag=True, help="Walk forward: leave the model out.")
@click.option("--no-tests", is_flag=True, help="Measures only: no tests of forecasts, no extra `research`.")
@click.option("--seed", type=SEED, default=7, show_default=True, help="Of what is trained in a walk forward.")
@click.option("--json", "json_file", type=Output(stream=True), help="Write the figures here too, all digits.")
@click.option("--html", type=Output(stream=True), help="Report with plots, one file.")
@click.option("--figure", type=Output(), help="Forecast against actual, .svg or .png.")
@click.option(
    "--ledger",
    type=Output(),
    help="JSON lines: a scoring that touches 2024 is written down here.  [default: docs/ of a checkout]",
)
@settings_flags.config_option
def evaluate(**options: Any) -> None:
    """Score models beside the baselines, also where they win: measures, tests, groups, intervals, decay (hourly σ).

    Bundles as they are, or with --walk-forward a model trained anew before each year. The tests of forecasts and the
    figures need the extra `research`, a walk forward the extra `train`.

    Example: volcast evaluate --candles btc.parquet --pool others.parquet --walk-forward 2024 --html report.html
    """
    loaded = settings_flags.settle(options, "model")
    if loaded.model and not options["models"] and options["years"] is None:
        options["models"] = (loaded.model,)
    _evaluate(**options)


def _evaluate(
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
    if years is None and baselines_only:
        raise click.UsageError("--baselines-only goes with --walk-forward: without a model there is no period")
    if years is not None and (models or start or end):
        raise click.UsageError("--walk-forward trains anew and names its own period: without --model, --from, --to")
    form = "" if figure is None else figure.suffix.removeprefix(".").lower()
    if figure is not None and form not in _FIGURE_FORMS:
        raise click.BadParameter(f"{figure.name!r} must end in .png or .svg", param_hint="--figure")
    tested = () if no_tests else ("statsmodels", "arch")
    refuse_missing("the tests of forecasts need", "research", tested, "or pass --no-tests")
    drawn = ("matplotlib",) if html or figure else ()
    refuse_missing("--html and --figure need", "research", drawn, "or leave them out")
    from training.evaluation import evaluate as evaluation
    from training.pages import table

    ledger = scoring_ledger.used(ledger)
    chosen = _baselines(baselines)
    if years is None:
        if start and end:
            refuse_empty_period(start, end)
        scored = evaluation.fixed(
            candles,
            models or [packaged_model()],
            symbol=symbol,
            pool=pool,
            start=start,
            end=end,
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
    # Before anything is shown: what was scored is in the ledger even if the rest fails.
    of = scored.evaluation
    scoring_ledger.record(ledger, times.parse(of.start), times.parse(of.end), evaluation.scorings(scored))
    show(table.tables(scored.evaluation))
    for note in scored.evaluation.notes:
        click.echo(f"note: {note}", err=True)
    _write_all(scored, json_file, html, figure, form)


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


def _show_progress(what: str, done: int, total: int) -> None:
    click.echo(f"[{done}/{total}] {what}", err=True)
