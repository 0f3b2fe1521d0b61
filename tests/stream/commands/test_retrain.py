"""`volcast retrain` from its command line, with the real training where a test is marked slow; what the other commands
make of the champion that it leaves."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec
import polars as pl
import pytest
from click.testing import CliRunner, Result
from retrain_stand import FROM, NOW, Stand, market

from stream import times
from stream.__main__ import cli
from stream.adapters import champions, predictor
from stream.adapters.bundles import CHALLENGER, packaged_model
from stream.adapters.journal import statements
from stream.core.market.candle import HOUR_MS
from stream.core.messages.judged import Verdict
from stream.core.messages.scoring import Outcome

NOW_ISO, FROM_ISO = times.iso(NOW), times.iso(FROM)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the commands run, without a Volcast variable in the environment but that of the ledger."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("VOLCAST_") and name != "VOLCAST_LEDGER"]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand.of(tmp_path / "var", [market()])


def volcast(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="volcast")


def retrain(stand: Stand, *args: str | Path) -> Result:
    candles = stand.folder.parent / "candles.parquet"
    return volcast(
        "retrain", "--data-dir", stand.folder, "--candles", candles, "--now", NOW_ISO, "--from", FROM_ISO, *args
    )


def line(done: Result) -> str:
    (only,) = [text for text in done.stderr.splitlines() if text.startswith("volcast: ")]
    return only


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["--because", "boredom"], "--because"),
        (["--pool", "candles.parquet"], "--candles"),
        (["--now", "soon"], "--now"),
        (["--shadow-days", "-1"], "--shadow-days"),
        (["--epochs", "0"], "--epochs"),
        (["--archive-url", "ftp://x"], "--archive-url"),
    ],
)
def test_wrong_usage_has_exit_code_2(stand: Stand, args: list[str], names: str) -> None:
    done = volcast("retrain", "--data-dir", stand.folder, *args)
    assert done.exit_code == 2
    assert names in line(done)


def test_a_rollback_puts_the_parent_back_and_needs_one(stand: Stand) -> None:
    refused = volcast("retrain", "--data-dir", stand.folder, "--rollback")
    assert refused.exit_code == 1
    assert "nothing was promoted" in line(refused)
    nowhere = volcast("retrain", "--data-dir", "nowhere", "--rollback")
    assert nowhere.exit_code == 1
    assert "no data directory" in line(nowhere)
    assert not Path("nowhere").exists()
    old = stand.crown()
    new = stand.retrain().judged.refit
    done = volcast("retrain", "--data-dir", stand.folder, "--rollback")
    assert done.exit_code == 0, done.output
    assert f"version {old} is back, {new} is kept" in done.output
    assert stand.version() == old


def test_a_second_retraining_is_refused_in_one_line(stand: Stand) -> None:
    stand.crown()
    with champions.retraining(stand.folder):
        for args in ((), ("--rollback",)):
            done = retrain(stand, *args)
            assert done.exit_code == 1
            assert "another retraining" in line(done)


def test_a_damaged_champion_is_refused_in_one_line(stand: Stand) -> None:
    stand.champion.write_bytes(b"no bundle")
    done = retrain(stand)
    assert done.exit_code == 1
    assert str(stand.champion) in line(done)
    assert stand.champion.read_bytes() == b"no bundle"


def test_the_verdict_of_an_earlier_call_is_given_again(stand: Stand) -> None:
    stand.crown("linear")
    first = stand.retrain(stand.training(gated="constant"))
    for _ in range(2):
        done = retrain(stand, "--json", "verdict.json")
        assert done.exit_code == 0, done.output
        assert "refused" in done.output
        assert "earlier call" in done.output
        assert msgspec.json.decode(Path("verdict.json").read_bytes(), type=Verdict) == first.judged


def test_candles_of_another_symbol_are_refused(stand: Stand) -> None:
    stand.crown()
    done = retrain(stand, "--symbols", "ETHUSDT")
    assert done.exit_code == 1
    assert "ETHUSDT" in line(done)


def test_predict_takes_the_champion_as_run_does(stand: Stand) -> None:
    version = stand.crown()
    packaged = predictor.load(packaged_model()).model.version
    for args, expected in (
        (("--data-dir", stand.folder), version),
        (("--data-dir", stand.folder / "other"), packaged),
        (("--data-dir", stand.folder, "--model", packaged_model()), packaged),
    ):
        done = volcast("predict", "--candles", "candles.parquet", "--out", "out.parquet", "--from", "2023-11-30", *args)
        assert done.exit_code == 0, done.output
        assert pl.read_parquet("out.parquet")["id"][0].endswith(f":{expected}")


def test_check_shows_the_lineage_and_warns_of_a_model_that_is_old(stand: Stand) -> None:
    old = stand.crown()
    new = stand.retrain().judged
    nowhere = ("--rest-url", "http://127.0.0.1:9", "--mqtt-url", "mqtt://127.0.0.1:9", "--ws-url", "ws://127.0.0.1:9")
    done = volcast("check", "--data-dir", stand.folder, "--http-port", "0", *nowhere)
    (lineage,) = [text for text in done.output.splitlines() if " lineage " in text]
    assert f"after {old}" in lineage
    assert f"{new.symbols[0].qlike_challenger:.4f}" in lineage
    (warning,) = [text for text in done.output.splitlines() if text.startswith("warning  model")]
    assert "volcast retrain" in warning


def lived(stand: Stand, challenger: str, champion: str, *, hours: int, factor: float) -> None:
    """Writes a journal in which both have forecast `hours` hours, the challenger `factor` times too high."""
    from stream.adapters.journal.store import SqliteJournal
    from stream.core.messages.shadows import ShadowForecast

    newest = NOW // HOUR_MS * HOUR_MS - 26 * HOUR_MS
    times_ms = [newest - k * HOUR_MS for k in range(hours)]
    with contextlib.closing(SqliteJournal(stand.folder)) as journal:
        journal.store_shadows(
            [ShadowForecast("BTCUSDT", challenger, at, 0.01 * factor, 0.005, 0.02, 0.01) for at in times_ms]
        )
        outcomes = [
            Outcome(
                f"{champion}:{at}", 0, "BTCUSDT", at, "live", champion, 0.01, 0.01, 0.005, 0.02, 0.9, 0.01, 0.01, 0.01,
                model_volatility=0.0101,
            )
            for at in times_ms
        ]  # fmt: skip
        with journal.transaction() as db:
            statements.store_outcomes(db, outcomes)


@pytest.mark.parametrize(
    ("hours", "factor", "word"), [(100, 1.0, "waits"), (14 * 24, 1.0, "promoted"), (14 * 24, 3.0, "clearly worse")]
)
def test_what_runs_in_the_shadow_is_promoted_once_it_has_shown_itself(
    stand: Stand, hours: int, factor: float, word: str
) -> None:
    old = stand.crown()
    placed = stand.retrain(shadow_days=14).judged.refit
    assert placed is not None
    assert retrain(stand, "--shadow-days", "14").exit_code == 1, "there is no journal"
    lived(stand, placed, old, hours=hours, factor=factor)
    done = retrain(stand, "--shadow-days", "14")
    assert word in done.output, done.output
    assert (stand.version() == placed) == (word == "promoted")
    assert (stand.folder / CHALLENGER).exists() == (word == "waits")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_the_real_training_makes_a_champion(stand: Stand) -> None:
    old = stand.crown()
    done = retrain(stand, "--epochs", "1", "--because", "schedule")
    assert done.exit_code == 0, done.output
    assert "promoted" in done.output
    judged = stand.verdicts()[-1]
    assert (judged.outcome, judged.because, judged.champion) == ("promoted", "schedule", old)
    assert stand.version() == judged.refit
    assert (stand.folder / "retraining" / judged.id / "verdict.html").exists()
