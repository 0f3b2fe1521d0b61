"""A command that must not run reports it in one line with exit code 1, and leaves nothing half-started."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from stream.adapters.bundles import packaged_model
from stream.core.forecasting.contract import METADATA_KEY

START = 1_704_067_200_000


def volcast_now(*args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stream", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, **environment},
    )


def refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 1) -> str:
    """Asserts a refusal in one line, with these words and that exit code; returns the line."""
    assert done.returncode == code, (done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith("volcast: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0]
    return lines[0]


@pytest.fixture
def exchange(volcast: Callable[..., Any], candle_file: Path) -> list[str]:
    process = volcast(
        "exchange", "--candles", candle_file, "--from", "2024-01-01", "--hours", 20, "--ws-port", 0, "--rest-port", 0
    )
    return ["--ws-url", process.find(r"--ws-url (\S+)"), "--rest-url", process.find(r"--rest-url (\S+)")]


@pytest.fixture
def run(mosquitto: Any, subscribe: Callable[..., Any], exchange: list[str], tmp_path: Path) -> Any:
    """Runs `volcast run` with valid arguments, which later ones override. Whatever it publishes is an error."""
    subscriber = subscribe(mosquitto.port, "5")

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        done = volcast_now(
            "run", *exchange, "--mqtt-url", mosquitto.url, "--http-port", 0, "--data-dir", tmp_path / "var", *args
        )
        assert subscriber.messages() == []
        return done

    return run


def test_a_symbol_that_exchange_and_journal_do_not_know(run: Any) -> None:
    refused(run("--symbols", "BTCUSDT,NOSUCH"), "NOSUCH", "--symbols")


@pytest.mark.parametrize(
    ("content", "word"),
    [(None, "cannot be read"), (b"", "ONNX"), (b"nonsense" * 100, "ONNX")],
    ids=["absent", "empty", "nonsense"],
)
def test_an_unreadable_model(run: Any, tmp_path: Path, content: bytes | None, word: str) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    refused(run("--model", path), str(path), word)


def rewritten(path: Path, change: Callable[[str], str] | None) -> Path:
    """Writes the packaged bundle with its metadata changed, or without any."""
    model = onnx.load(packaged_model())
    kept = {p.key: p.value for p in model.metadata_props}
    del model.metadata_props[:]
    if change is not None:
        onnx.helper.set_model_props(model, {METADATA_KEY: change(kept[METADATA_KEY])})
    onnx.save(model, path)
    return path


def test_a_foreign_onnx_file(run: Any, tmp_path: Path) -> None:
    refused(run("--model", rewritten(tmp_path / "foreign.onnx", None)), "not a Volcast bundle")


def test_a_bundle_for_other_features(run: Any, tmp_path: Path) -> None:
    other = rewritten(
        tmp_path / "other.onnx", lambda text: re.sub(r'"features_version":"[^"]*"', '"features_version":"0"', text)
    )
    refused(run("--model", other), "features version 0", "export again")


def test_a_port_that_is_taken(run: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(run("--http-port", taken.getsockname()[1]), "in use", "--http-port")


def test_a_data_directory_that_cannot_be_written(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(run("--data-dir", tmp_path / "file" / "var"), "not writable", "--data-dir")


def test_a_data_directory_in_use(run: Any, volcast: Callable[..., Any], exchange: list[str], tmp_path: Path) -> None:
    first = volcast(
        "run", *exchange, "--mqtt-url", "mqtt://127.0.0.1:9", "--http-port", 0, "--data-dir", tmp_path / "var"
    )
    first.find(r"(feed is live)")
    refused(run(), "in use by another volcast")


@pytest.mark.parametrize(
    ("args", "words", "code"),
    [
        (["--symbols", "BTC-USDT-SWAP"], ["--symbols"], 2),
        (["--http-port", "x"], ["--http-port"], 2),
        (["--ws-url", "ftp://x"], ["--ws-url", "wss://"], 2),
        (["--mqtt-url", "mqtt://u:geheim@broker.example"], ["--allow-plaintext"], 2),
        (["--config", "/nowhere.toml"], ["/nowhere.toml"], 1),
    ],
)
def test_nonsense_settings(run: Any, args: list[str], words: list[str], code: int) -> None:
    assert "geheim" not in refused(run(*args), *words, code=code)


def test_an_embedded_broker_that_is_not_installed(run: Any, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'iotcore' else find(name, package)\n"
    )
    done = volcast_now("run", "--mqtt-url", "embedded", "--data-dir", tmp_path / "v", PYTHONPATH=str(hidden))
    refused(done, "iotcore", f"{sys.executable} -m pip install", "[demo]")


def test_check_shows_settings_without_secrets_and_warns_of_whom_it_cannot_reach(
    exchange: list[str], mosquitto: Any, tmp_path: Path
) -> None:
    here = [*exchange, "--http-port", "0", "--data-dir", str(tmp_path / "var")]
    done = volcast_now("check", *here, VOLCAST_MQTT_URL=mosquitto.url)
    assert done.returncode == 0, done.stderr
    assert "run would start" in done.stdout
    assert done.stdout.count("\nok ") == 9
    away = volcast_now("check", *here, "--mqtt-url", "mqtts://u:geheim@127.0.0.1:9")
    assert away.returncode == 0, away.stderr
    assert "warning  broker" in away.stdout
    assert "geheim" not in away.stdout + away.stderr
    refused(volcast_now("check", *here, "--symbols", "NOSUCH"), "NOSUCH")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["predict", "--candles", "absent.parquet", "--out", "o.csv"], ["absent.parquet", "cannot be read"]),
        (["predict", "--candles", "{file}", "--out", "o.csv", "--from", "2030-01-01"], ["--from"]),
        (["predict", "--candles", "{file}", "--out", "o.csv", "--symbol", "XRPUSDT"], ["XRPUSDT"]),
        (["demo", "--candles", "{file}", "--from", "2031-01-01"], ["--from"]),
        (["fetch", "--from", "2024-01-01", "--out", "o.csv", "--rest-url", "http://127.0.0.1:9"], ["127.0.0.1:9"]),
        (["drift", "--data-dir", "nothing-here"], ["no journal"]),
    ],
)
def test_the_other_commands_refuse_in_one_line_too(
    args: list[str], words: list[str], candle_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(volcast_now(*(a.format(file=candle_file) for a in args)), *words)
    assert not list(tmp_path.glob("o.*"))


def test_wrong_usage_is_exit_code_2() -> None:
    assert volcast_now("predict").returncode == 2
    assert volcast_now("nonsense").returncode == 2


def test_fetch_writes_what_the_exchange_has_and_tells_what_it_has_not(
    exchange: list[str], candle_file: Path, tmp_path: Path
) -> None:
    from stream.adapters.candles import files

    out = tmp_path / "fetched.parquet"
    done = volcast_now("fetch", "--from", "2023-09-01", "--to", "2024-01-04", "--out", out, *exchange[2:])
    assert done.returncode == 0, done.stderr
    fetched = files.read(out)["BTCUSDT"]
    # The exchange's clock stands still until a client asks the time: the first hour of 2024 is the newest closed one.
    expected = [c for c in files.read(candle_file)["BTCUSDT"] if c.open_time <= START]
    expected = [c for c in expected if c.open_time >= 1_693_526_400_000]
    assert [c.ohlcv for c in fetched] == [c.ohlcv for c in expected]
    assert str(len(expected)) in done.stdout
