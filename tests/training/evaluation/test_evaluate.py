"""`volcast evaluate` from the door: candles in, figures, report and ledger out, and one line for bad input."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from repository import SHIPPED_BUNDLE

from stream import times
from stream.__main__ import cli
from stream.adapters.candles import files
from stream.core.forecasting.contract import INPUT_SEQUENCE, INPUT_STATIC, LOG_VOLATILITY
from stream.core.forecasting.features import SEQUENCE_HOURS, SEQUENCE_NAMES, STATIC_NAMES
from stream.core.market.candle import HOUR_MS
from stream.testing.market import simulate
from stream.testing.sample_model import sample_model
from training import forecasters
from training.data import dataset
from training.data.panel import NEXT_24H
from training.evaluation import evaluate, ledger
from training.models.run import load_run
from training.models.trees import Trees
from training.scoring import scores

START = 1_609_459_200_000  # 2021-01-01 00:00 UTC
PERIOD = ("--from", "2021-04-01", "--to", "2021-05-20")


@pytest.fixture(scope="module")
def tape(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tape") / "candles.parquet"
    files.write(simulate(["BTCUSDT"], START, 3_400, seed=9)["BTCUSDT"], path)
    return path


@pytest.fixture(scope="module")
def scored(tape) -> evaluate.Scored:
    return evaluate.fixed(tape, [SHIPPED_BUNDLE], start=PERIOD[1], end=PERIOD[3])


def volcast(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])


def refused(*arguments: str | Path) -> str:
    done = volcast(*arguments)
    assert done.exit_code == 1, done.output
    lines = [line for line in done.stderr.splitlines() if not line.startswith("[")]
    assert len(lines) == 1
    assert lines[0].startswith("volcast: ")
    return lines[0]


def test_a_bundle_is_scored_beside_the_core_baselines(scored):
    of = scored.evaluation
    # The bundle learnt from 2018 on, and a linear model wants folds there: said, not silently less.
    assert set(of.next_24h) == {"model", "served", *forecasters.CORE} - {"rolling_mean_published", "linear"}
    assert any(note.startswith("linear is left out") for note in of.notes)
    assert "rolling_mean_published" in of.rolling_24h_next
    assert set(of.horizons) == {"1h", "6h", "12h", "24h"}
    model, persistence = (of.rolling_24h_next[n]["rmse"] for n in ("model", "persistence"))
    assert model is not None
    assert persistence is not None
    assert model < persistence
    assert of.model_version == of.models[0].version
    assert of.interval is not None
    assert 0.5 < of.interval.coverage <= 1


def test_the_volatility_that_groups_go_by_is_known_at_the_origin(tape, scored, tmp_path):
    # Every candle after the cut is altered: outcomes before it move, what was known does not.
    cut = START + 2_700 * HOUR_MS
    wild = [msgspec.structs.replace(c, close=c.low) if c.open_time > cut else c for c in files.read(tape)["BTCUSDT"]]
    files.write(wild, tmp_path / "wild.parquet")
    calm, altered = (dataset.load(path, "BTCUSDT") for path in (tape, tmp_path / "wild.parquet"))
    rows = calm.open_time <= cut
    np.testing.assert_array_equal(calm.features.realized_24h[rows], altered.features.realized_24h[rows])
    assert (calm.labels[rows][-24:, 0] != altered.labels[rows][-24:, 0]).all()
    # And that is what evaluate groups by: persistence says that very number.
    of = scored.evaluation
    again = scores.score(
        scored.panel,
        scored.panel.forecasts[NEXT_24H]["persistence"],
        of.models,
        of.protocol,
        period=(of.start, of.end),
        data_sha256=of.data_sha256,
        tests=False,
    )
    assert again.groups == of.groups


def test_the_door_writes_table_json_report_and_figure(tape, tmp_path):
    files = [tmp_path / name for name in ("a.json", "a.html", "a.svg")]
    done = volcast("--candles", tape, *PERIOD, "--json", files[0], "--html", files[1], "--figure", files[2])
    assert done.exit_code == 0, done.output
    assert "next 24 h, none of them known" in done.stdout
    figures = json.loads(files[0].read_text())
    for key in ("symbol", "start", "end", "model_version", "rows", "next_24h", "rolling_24h_next", "horizons"):
        assert figures[key]
    assert {"level", "coverage", "width"} <= figures["interval"].keys()
    assert {"rmse", "mae", "qlike", "r2", "bias"} == figures["next_24h"]["model"].keys()
    assert figures["diebold_mariano"]["model"]["har"].keys() >= {"p", "statistic", "reason"}
    assert figures["model_version"] in files[1].read_text()
    assert files[2].read_bytes().startswith(b"<?xml")
    before = [f.read_bytes() for f in files]
    assert volcast("--candles", tape, *PERIOD, "--html", files[1], "--figure", files[2]).exit_code == 0
    assert [f.read_bytes() for f in files] == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "a.json", "a.svg"]


def test_a_walk_forward_of_baselines_needs_no_model(tmp_path):
    path = tmp_path / "two_years.parquet"
    tape = simulate(["BTCUSDT", "ETHUSDT"], START - 4_000 * HOUR_MS, 6_500, seed=3)
    files.write([c for series in tape.values() for c in series], path)
    done = volcast(
        *("--candles", path, "--walk-forward", "2021", "--train-from", "2020-08-01", "--baselines-only"),
        *("--symbol", "ethusdt", "--baselines", "persistence,log_har", "--json", tmp_path / "a.json"),
    )
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures["protocol"]["kind"] == "walk_forward"
    assert "2020-08-01" in figures["protocol"]["text"]
    assert (figures["symbol"], figures["start"], figures["end"]) == ("ETHUSDT", "2021-01-01", "2022-01-01")
    assert list(figures["next_24h"]) == ["persistence", "log_har"]
    assert figures["models"] == []
    assert figures["interval"] is None


def test_a_scoring_of_the_test_year_is_written_down_once(tmp_path, monkeypatch):
    path, book = tmp_path / "c.parquet", tmp_path / "scorings.jsonl"
    files.write(simulate(["BTCUSDT"], 1_700_000_000_000 // HOUR_MS * HOUR_MS, 3_000, seed=2)["BTCUSDT"], path)
    ask = ("--candles", path, "--baselines", "persistence", "--no-tests", "--ledger", book)
    assert volcast(*ask, "--from", "2023-11-20", "--to", "2024-01-01").exit_code == 0
    assert not book.exists()
    asked = (*ask, "--from", "2024-01-10", "--to", "2024-02-20", "--json", tmp_path / "a.json")
    for _ in range(2):
        done = volcast(*asked)
        assert done.exit_code == 0, done.output
    (line,) = ledger.read(book)
    figures = json.loads((tmp_path / "a.json").read_text())
    assert (line.model, line.symbol, line.start, line.end, line.protocol) == (
        *(figures[k] for k in ("model_version", "symbol", "start", "end")),
        "fixed",
    )
    assert line.rmse == pytest.approx(figures["next_24h"]["model"]["rmse"], rel=1e-5)
    assert line.coverage == pytest.approx(figures["interval"]["coverage"], rel=1e-5)
    assert figures["diebold_mariano"] == {}
    # Without a name it goes into the checkout's own, or the one that the environment names.
    monkeypatch.setenv("VOLCAST_LEDGER", str(tmp_path / "own.jsonl"))
    assert volcast(*ask[:-2], "--from", "2024-01-10", "--to", "2024-02-20").exit_code == 0
    assert ledger.read(tmp_path / "own.jsonl") == [line]


# Evidently imports what numpy has renamed.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_backtest_a_study_and_a_report_of_the_test_year_are_looks_too(tmp_path, monkeypatch):
    path, book = tmp_path / "c.parquet", tmp_path / "looks.jsonl"
    files.write(simulate(["BTCUSDT"], 1_690_000_000_000 // HOUR_MS * HOUR_MS, 6_000, seed=2)["BTCUSDT"], path)
    monkeypatch.setenv("VOLCAST_LEDGER", str(book))
    period = ("--from", "2024-01-10", "--to", "2024-02-20")
    for command in (
        ("backtest", *period),
        ("drift", "--study", "2023-09-01..2024-03-25"),
        ("report", *period, "--out", str(tmp_path / "pages")),
    ):
        done = CliRunner().invoke(cli, [command[0], "--candles", str(path), *command[1:]])
        assert done.exit_code == 0, done.output
    assert [line.protocol for line in ledger.read(book)] == ["backtest", "drift --study", "report"]
    monkeypatch.setenv("VOLCAST_LEDGER", "")
    assert CliRunner().invoke(cli, ["backtest", "--candles", str(path), *period]).exit_code == 0
    assert ledger.count(book) == 3


def test_without_a_period_it_scores_what_the_model_has_not_learnt_from(tape, tmp_path):
    later = tmp_path / "later.parquet"
    files.write(simulate(["BTCUSDT"], times.parse("2024-10-01"), 3_000, seed=2)["BTCUSDT"], later)
    done = volcast("--candles", later, "--baselines", "ewma", "--no-tests", "--json", tmp_path / "a.json")
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "a.json").read_text())
    assert (figures["start"], figures["end"]) == ("2025-01-01", "2025-02-03")
    assert "no hour is left to score it on" in refused("--candles", tape, "--no-tests")


# Keras hands TensorFlow variables to numpy 2 when it saves weights, by a protocol that numpy calls outdated.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_a_run_that_is_not_exported_yet_is_scored_through_keras(tape, tmp_path):
    import keras

    sequence = keras.Input((SEQUENCE_HOURS, len(SEQUENCE_NAMES)), name=INPUT_SEQUENCE)
    static = keras.Input((len(STATIC_NAMES),), name=INPUT_STATIC)
    level = keras.layers.Dense(5, kernel_initializer="zeros")(static)
    seen = keras.layers.Rescaling(0.0)(keras.layers.GlobalAveragePooling1D()(sequence))
    log_sigma = level + keras.ops.sum(seen, axis=-1, keepdims=True) - 5.0
    keras.Model([sequence, static], {LOG_VOLATILITY: log_sigma}).save(tmp_path / "network.keras")
    leaf = np.zeros(1, np.int64)
    leaves = Trees(leaf - 1, leaf.astype(np.float32), leaf - 1, leaf - 1, np.array([0.5]), leaf, leaf + 2)
    leaves.save(tmp_path / "trees.npz")
    agreed = sample_model().contract
    (tmp_path / "contract.json").write_bytes(msgspec.json.encode(agreed))

    run = load_run(tmp_path)
    rows = np.zeros((3, SEQUENCE_HOURS, len(SEQUENCE_NAMES)), np.float32), np.zeros((3, len(STATIC_NAMES)), np.float32)
    np.testing.assert_allclose(run(*rows), np.exp([[-5.0, -5.0, -4.5, -5.0, -5.0]] * 3), rtol=1e-5)
    of = evaluate.fixed(tape, [tmp_path], start=PERIOD[1], end=PERIOD[3], baselines=["ewma"], tests=False).evaluation
    assert of.model_version.startswith("run ")
    assert of.models[0].data_sha256 == agreed.training.data_sha256
    assert of.next_24h["model"]["r2"] is not None
    assert of.next_24h["model"]["r2"] < 0
    (tmp_path / "network.keras").write_bytes(b"no network")
    assert "holds no network and trees" in refused("--candles", tape, *PERIOD, "--model", tmp_path)
    assert "scored alone" in refused("--candles", tape, *PERIOD, "--model", tmp_path, "--model", SHIPPED_BUNDLE)
    (tmp_path / "contract.json").unlink()
    assert "is no finished run" in refused("--candles", tape, *PERIOD, "--model", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("--from", "2030-01-01", "--to", "2031-01-01"), "choose another range or fetch more"),
        ((*PERIOD, "--symbol", "ETHUSDT"), "no candles of ETHUSDT"),
        ((*PERIOD, "--model", "nowhere.onnx"), "nowhere.onnx: the model cannot be read"),
        ((*PERIOD, "--html", "nowhere/a.html"), "--html nowhere/a.html: cannot be written"),
        ((*PERIOD, "--ledger", "nowhere/a.jsonl"), "--ledger nowhere/a.jsonl: cannot be written"),
        (("--walk-forward", "2021", "--train-from", "2022-01-01", "--baselines-only"), "is empty; swap or widen it"),
    ],
)
def test_bad_input_is_one_line_that_names_cause_and_cure(tape, arguments, cause):
    assert cause in refused("--candles", tape, *arguments)


def test_a_corrupt_ledger_is_refused_before_anything_is_scored(tape, tmp_path):
    book = tmp_path / "scorings.jsonl"
    book.write_text("not json\n")
    assert "line 1 is no scoring" in refused("--candles", tape, *PERIOD, "--ledger", book)
    assert book.read_text() == "not json\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--figure", "a.pdf"),
        ("--baselines-only",),
        ("--walk-forward", "2021", "--from", "2021-01-01"),
        ("--walk-forward", "2021", "--model", "x.onnx"),
        ("--walk-forward", "MMXXI"),
        ("--walk-forward", "2022,2021", "--baselines-only"),
        ("--from", "2021-05-01", "--to", "2021-04-01"),
        ("--from", "soon"),
        (*PERIOD, "--baselines", "core,prophet"),
    ],
)
def test_wrong_usage_is_exit_code_2(tape, arguments):
    assert volcast("--candles", tape, *arguments).exit_code == 2


def test_without_the_extra_one_line_names_it(tape, monkeypatch):
    real = importlib.util.find_spec
    gone = {"statsmodels", "arch", "matplotlib"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in gone else real(name, *a))
    line = refused("--candles", tape, *PERIOD)
    assert "statsmodels, arch, of the extra 'research'" in line
    assert "--no-tests" in line
    assert "--html and --figure need matplotlib" in refused("--candles", tape, "--no-tests", "--html", "a.html")
    done = volcast("--candles", tape, *PERIOD, "--baselines", "ewma", "--no-tests")
    assert done.exit_code == 0, done.output
