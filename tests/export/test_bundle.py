"""From candles to a bundle and back: one tiny run, its parity, equal bytes in two processes, and its refusals."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from export import bundle
from stream.adapters import predictor
from stream.adapters.candles import files
from stream.core.forecasting.contract import ContractError
from stream.testing.market import simulate_symbol
from training.bundling.train import train

# Keras hands TensorFlow variables to numpy 2 when it saves weights, by a protocol that numpy calls outdated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:keras.src.backend.tensorflow.core"
)

START = 1_609_459_200_000  # 2021-01-01 00:00 UTC
HOURS = 4_600


@pytest.fixture(scope="module")
def tape(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tape") / "candles.parquet"
    files.write(simulate_symbol("BTCUSDT", START, HOURS, seed=9), path)
    return path


@pytest.fixture(scope="module")
def run(tape, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    summary = train(tape, out, train_from="2021-01-01", train_until="2021-06-01", seed=3, epochs=1)
    assert summary["rows"] > 3_000
    assert summary["scores"]["folds.1.next_24h.rmse"] > 0
    assert set(summary["scores"]) == {
        f"folds.{k}.next_24h.{measure}" for k in (1, 2, 3) for measure in ("rmse", "mae", "qlike", "r2", "bias")
    }, "nothing after the training range is scored"
    return out


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "model.onnx"
    summary = bundle.export(run, out)
    assert summary["parity"] <= 1e-5
    assert summary["version"] == predictor.load(out).model.version
    return out


def test_the_bundle_says_what_the_run_says(run, exported):
    written = msgspec.json.decode((run / "contract.json").read_bytes())
    agreed = msgspec.to_builtins(predictor.load(exported).model.contract)
    assert agreed.pop("versions").items() >= written.pop("versions").items()
    assert msgspec.json.decode(msgspec.json.encode(agreed)) == written
    assert predictor.load(exported).model.contract.training.symbols == ("BTCUSDT",)
    assert [p.name for p in exported.parent.iterdir()] == [exported.name]


def test_two_processes_with_different_hash_seeds_export_equal_bytes(run, exported, tmp_path):
    # Not the first process's order of sets, and not its counters: a process of its own per seed.
    out = tmp_path / "again.onnx"
    code = f"from export.bundle import export; export({str(run)!r}, {str(out)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "42"})
    assert out.read_bytes() == exported.read_bytes()


def test_a_second_export_in_one_process_gives_equal_bytes(run, exported, tmp_path):
    bundle.export(run, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


def test_the_same_seed_trains_the_same_weights(run, tape, tmp_path):
    train(tape, tmp_path / "again", train_from="2021-01-01", train_until="2021-06-01", seed=3, epochs=1)
    assert (tmp_path / "again" / "contract.json").read_bytes() == (run / "contract.json").read_bytes()


@pytest.mark.parametrize("missing", ["contract.json", "windows.npz", "network.keras"])
def test_an_unfinished_run_is_refused_and_nothing_is_written(run, tmp_path, missing):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / missing).unlink()
    with pytest.raises(ValueError, match="volcast train") as refusal:
        bundle.export(copy, tmp_path / "model.onnx")
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.glob("*.onnx"))


def test_a_network_that_disagrees_with_its_bundle_is_refused(run, tmp_path, monkeypatch):
    from export import parity

    monkeypatch.setattr(parity, "LIMIT", 0.0)
    with pytest.raises(ValueError, match=r"differ by .* nothing was written"):
        bundle.export(run, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(run, tape, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere/model.onnx: cannot be written"):
        bundle.export(run, tmp_path / "nowhere" / "model.onnx")
    (tmp_path / "taken.onnx").mkdir()
    with pytest.raises(ValueError, match=r"taken.onnx: cannot be written"):
        bundle.export(run, tmp_path / "taken.onnx")
    with pytest.raises(ValueError, match="cannot be written there"):
        train(tape, tape, train_from="2021-01-01", train_until="2021-06-01")


def limited(code: str, kilobytes: int) -> subprocess.CompletedProcess[str]:
    """Runs `code` where no file may grow beyond the limit: the system's answer is that of a disk that is full."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({kilobytes * 1024}, {kilobytes * 1024})); "
    return subprocess.run([sys.executable, "-c", limit + code], capture_output=True, text=True, check=False)


def test_a_full_disk_leaves_no_half_a_bundle(run, exported, tmp_path):
    out = tmp_path / "model.onnx"
    shutil.copy(exported, out)
    ended = limited(f"from export.bundle import export; export({str(run)!r}, {str(out)!r})", kilobytes=64)
    assert f"{out}: cannot be written: File too large" in ended.stderr.splitlines()[-1]
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
    assert out.read_bytes() == exported.read_bytes()


def test_a_full_disk_leaves_the_older_run(run, tape, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    call = f"train({str(tape)!r}, {str(out)!r}, train_from='2021-01-01', train_until='2021-03-15', epochs=1)"
    ended = limited(f"from training.bundling.train import train; {call}", kilobytes=64)
    assert f"{out}: the run cannot be written there: File too large" in ended.stderr.splitlines()[-1]
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_a_training_that_is_ended_leaves_nothing_to_export(tape, tmp_path):
    out = tmp_path / "run"
    # The kernel ends it after so much of a processor's time: well within a thousand passes.
    code = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (15, 15)); "
    code += "from training.bundling.train import train; "
    code += f"train({str(tape)!r}, {str(out)!r}, train_from='2021-01-01', train_until='2021-06-01', epochs=1_000)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ended.returncode < 0
    assert out.is_dir(), "it had begun"
    with pytest.raises(ValueError, match="is no finished run"):
        bundle.export(out, tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx"))


def test_a_run_of_another_feature_version_is_refused(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    agreed = msgspec.json.decode((copy / "contract.json").read_bytes())
    agreed["features_version"] = "0"
    (copy / "contract.json").write_bytes(msgspec.json.encode(agreed))
    with pytest.raises(ContractError, match="features version 0"):
        bundle.export(copy, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("choice", "cause"),
    [
        ({"train_from": "2021-06-01", "train_until": "2021-01-01"}, "is empty"),
        ({"train_from": "2021-01-01", "train_until": "2021-01-20"}, "hours of BTCUSDT with a known outcome"),
        ({"symbol": "ETHUSDT"}, "no candles of ETHUSDT"),
    ],
)
def test_a_range_that_teaches_nothing_is_refused_before_anything_is_written(tape, tmp_path, choice, cause):
    with pytest.raises(ValueError, match=cause):
        train(tape, tmp_path / "run", **choice)
    assert not (tmp_path / "run").exists()
