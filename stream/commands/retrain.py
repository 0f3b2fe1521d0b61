"""`volcast retrain`: a challenger from the newest candles, the gate, and what follows; or back to the parent.

Training and export are child processes of it (training/retraining/children.py); it needs no daemon and stops none.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from stream.cli import process, settings_flags
from stream.cli.outputs import write_json
from stream.cli.parameters import SEED, Time, command, time_of
from stream.cli.paths import ATTEMPT_FILES, DataDir, Folder, Output, inputs_of, places_of, refuse_clashes
from stream.cli.settings_flags import FILE
from stream.core.market.candle import HOUR_MS
from stream.errors import RefusedError
from stream.extras import refuse_missing

if TYPE_CHECKING:
    from stream.core.messages.judged import SymbolJudged
    from training.retraining.attempt import Done

_DAY_MS = 24 * HOUR_MS
#: Of a training on eleven pairs since 2018, which takes 1.6 GB.
_MEMORY_MB = 4_096


@command
@click.option("--data-dir", type=DataDir(), help="The node's: journal and champion.  [default: var]")
@click.option("--symbols", metavar="A,B", help="Symbols that the node follows.  [default: BTCUSDT]")
@click.option("--candles", type=FILE, help="Candle file.  [default: the exchange's archive and REST, and the journal]")
@click.option("--pool", type=FILE, help="With --candles: candle file of further pairs to learn from.")
@click.option(
    "--because",
    type=click.Choice(["schedule", "decay", "drift", "hand"]),
    default="hand",
    show_default=True,
    help="Why it is begun; it is written down.",
)
@click.option(
    "--shadow-days",
    type=click.IntRange(0, 365),
    default=0,
    show_default=True,
    help="Promote what passes only once it has run in the champion's shadow for so many days, by a later call.",
)
@click.option("--rollback", is_flag=True, help="Put the champion's parent back instead.")
@click.option("--now", type=Time(), metavar="ISO", help="The time that counts as now, UTC.  [default: the clock's]")
@click.option(
    "--from", "from_", type=Time(), metavar="ISO", default="2018-03-01", show_default=True, help="Learn from here on."
)
@click.option("--seed", type=SEED, default=7, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the data.  [default: that of `train`]")
@click.option(
    "--memory-mb",
    type=click.IntRange(1, 2**20),
    metavar="MB",
    default=_MEMORY_MB,
    show_default=True,
    help="Of a training.",
)
@click.option("--out-dir", type=Folder(ATTEMPT_FILES), help="Folder of the attempts.  [default: DATA_DIR/retraining]")
@click.option("--rest-url", help="REST.  [default: https://api.binance.com]")
@click.option(
    "--archive-url",
    envvar="VOLCAST_ARCHIVE_URL",
    help="Bulk archive.  [default: https://data.binance.vision; REST_URL if that is on loopback]",
)
@click.option("--allow-plaintext", is_flag=True, default=None, help="Unencrypted URLs beyond loopback.")
@click.option("--json", "json_file", type=Output(stream=True), help="Write the verdict here too.")
@settings_flags.config_option
def retrain(**options: Any) -> None:
    """Train a challenger, judge it against the champion, and promote it if it is better (needs `train`, `research`).

    The challenger learns until 90 days and 24 hours ago, both are scored on those days, and what passes is fitted again
    up to now and becomes DATA_DIR/champion.onnx. Killed, the same command goes on. Exit code 0 whatever the verdict is.

    Example: volcast retrain --data-dir var --symbols BTCUSDT,ETHUSDT --because schedule

    Example: volcast retrain --data-dir var --rollback
    """
    loaded = settings_flags.settle(options, "data_dir", "symbols", "rest_url", "allow_plaintext", "model", "log_format")
    from stream import logs

    logs.configure(loaded.log_format)
    if options.pop("rollback"):
        _rollback(options["data_dir"])
        return
    if loaded.model is not None:
        click.echo(
            f"volcast: warning: the settings name {loaded.model}: a node with them does not serve the champion",
            err=True,
        )
    _retrain(**options)


def _rollback(data_dir: Path) -> None:
    from stream.adapters import bundles, champions

    if not data_dir.is_dir():
        raise RefusedError(f"there is no data directory {data_dir}: name the node's with --data-dir")
    with champions.retraining(data_dir):
        gone, back = champions.rollback(data_dir)
    click.echo(
        f"{data_dir / bundles.CHAMPION}: version {back} is back, {gone} is kept in {data_dir / champions.MODELS}"
    )


def _retrain(
    *,
    data_dir: Path,
    symbols: tuple[str, ...],
    candles: Path | None,
    pool: Path | None,
    because: str,
    shadow_days: int,
    now: str | None,
    from_: str,
    seed: int,
    epochs: int | None,
    memory_mb: int,
    out_dir: Path | None,
    rest_url: str,
    archive_url: str | None,
    allow_plaintext: bool,
    json_file: Path | None,
) -> None:
    if pool is not None and candles is None:
        raise click.UsageError("--pool goes with --candles: what is fetched has the champion's pairs")
    refuse_clashes(places_of(("--json", json_file)), inputs_of(data_dir))
    refuse_missing("it needs", "train", ("tensorflow", "keras", "tf2onnx", "onnx", "lightgbm"))
    refuse_missing("the gate needs", "research", ("statsmodels", "matplotlib"))
    now_ms = time_of(now, "--now") if now is not None else time.time_ns() // 1_000_000
    from_ms = time_of(from_, "--from")
    out = out_dir if out_dir is not None else data_dir / "retraining"
    if process.is_ours:
        # A daemon on this machine has priority.
        os.nice(10)
    from stream import times
    from stream.adapters import champions, policies
    from stream.cli import archive_url as archives
    from stream.cli import retrain_source, scoring_ledger
    from training.evaluation.ledger import Scoring
    from training.retraining import attempt
    from training.retraining.children import Volcast
    from training.retraining.plan import Recipe

    ledger = scoring_ledger.used(None)
    with process.ended_in_order(), champions.retraining(data_dir):
        champion = champions.champion(data_dir)
        if shadow_days and _shadow_decided(data_dir, symbols, shadow_days, now_ms):
            return
        if candles is not None:
            table = retrain_source.of_files(candles, pool, symbols[0], now_ms)
        else:
            learnt = champion.model.contract.training.symbols
            end_ms = now_ms // _DAY_MS * _DAY_MS
            archive = archives.of(archive_url, rest_url, allow_plaintext=allow_plaintext)
            table = retrain_source.of_node(data_dir, symbols, learnt, from_ms, end_ms, rest_url, archive)
        done = attempt.retrain(
            attempt.Request(
                data_dir=data_dir,
                out=out,
                table=table,
                followed=symbols,
                now_ms=now_ms,
                because=because,  # type: ignore[arg-type]
                shadow_days=shadow_days,
                recipe=Recipe(from_ms, seed, epochs),
                make=Volcast(from_ms, seed, epochs, memory_mb),
                # Decisions play no part in the gate.
                policy=policies.load(None),
            )
        )
    of = done.judged
    looks = [
        Scoring(version, of.symbols[0].symbol, times.day(of.gate_from), times.day(of.gate_to), "retrain", qlike=qlike)
        for version, qlike in (
            (of.champion, of.symbols[0].qlike_champion),
            (of.challenger, of.symbols[0].qlike_challenger),
        )
    ]
    scoring_ledger.record(ledger, of.gate_from, of.gate_to, looks)
    _print(done)
    write_json(json_file, msgspec.to_builtins(of))


def _shadow_decided(data_dir: Path, symbols: tuple[str, ...], days: int, now_ms: int) -> bool:
    """Promotes the challenger that runs in the champion's shadow once it has shown itself for so many days, and takes
    one away that is clearly worse. Returns False where another may be trained."""
    from stream.adapters import bundles, champions, predictor
    from stream.adapters.journal.database import FILE_NAME
    from stream.adapters.journal.store import SqliteJournal
    from training.retraining import shadowing

    path = data_dir / bundles.CHALLENGER
    if not path.exists():
        return False
    version = predictor.load(path).model.version
    if not (data_dir / FILE_NAME).exists():
        raise RefusedError(f"{data_dir} has a challenger and no journal: a node must run there for it to have a shadow")
    from_ms = now_ms - (days + 2) * _DAY_MS
    with contextlib.closing(SqliteJournal(data_dir, read_only=True)) as journal:
        shown = [
            shadowing.judge(
                symbol,
                days,
                journal.shadows(symbol, version, from_ms, now_ms),
                journal.outcomes(symbol, from_ms, now_ms),
            )
            for symbol in symbols
        ]
    for each in shown:
        click.echo(each.text)
    if any(each.ready is False for each in shown):
        path.unlink()
        click.echo(f"refused: version {version} is clearly worse in the shadow than the champion")
        return False
    if any(each.ready is None for each in shown):
        click.echo(f"waits: version {version} runs in the champion's shadow, for {days} day(s)")
        return True
    placed = champions.promote_challenger(data_dir, now_ms)
    click.echo(f"promoted: version {version} is the champion, {placed.parents[0]} was")
    return True


_WORDS = {
    "promoted": "promoted: version {refit} is the champion, {champion} was",
    "shadow": "passed: version {refit} runs in the shadow of {champion}",
    "refused": "refused: version {champion} stays the champion",
}


def _print(done: Done) -> None:
    of = done.judged
    earlier = " (an earlier call with the same candles, code and champion)" if done.again else ""
    click.echo(_WORDS[of.outcome].format(refit=of.refit, champion=of.champion) + earlier)
    for refusal in of.refusals:
        click.echo(f"because {refusal}")
    for each in of.symbols:
        click.echo(_figures(each))
    for note in of.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"{done.folder / 'verdict.html'}")


def _figures(of: SymbolJudged) -> str:
    tested = of.reason if of.p_better is None else f"p {of.p_better:.3f} that it is better"
    return (
        f"{of.symbol}: {of.forecasts} forecasts, QLIKE {of.qlike_challenger:.4f}, the champion's "
        f"{of.qlike_champion:.4f}; {tested}; its interval holds {of.coverage_challenger:.1%}"
    )
