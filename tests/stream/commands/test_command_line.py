"""The command line: wrong usage is one line and exit code 2, and a setting means the same to every command."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from stream.__main__ import cli
from stream.adapters.candles import files
from stream.core.market.candle import HOUR_MS
from stream.testing.market import simulate

START = 1_704_067_200_000


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the commands run: with a candle file, and no Volcast variable in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("VOLCAST_")]:
        monkeypatch.delenv(name)
    files.write(simulate(["BTCUSDT"], START - 400 * HOUR_MS, 400, 1)["BTCUSDT"], tmp_path / "c.csv")
    return tmp_path


def volcast(*args: str, variables: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, args, prog_name="volcast", env=variables)


def line(done: Result) -> str:
    """Returns the one line of a refusal."""
    (only,) = done.stderr.splitlines()
    assert only.startswith("volcast: ")
    return only


def shown(case: object) -> str:
    return " ".join(map(str, case))[:60] if isinstance(case, list) else str(case)[:30]


C = ("--candles", "c.csv")
FETCH = ("fetch", "--from", "2024-01-01", "--out", "o.csv")


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["nonsense"], "nonsense"),
        (["--nonsense"], "--nonsense"),
        (["predict"], "--candles"),
        (["predict", *C], "--out"),
        (["predict", *C, "--out", ""], "--out"),
        (["predict", *C, "--out", "o.txt"], ".parquet or .csv"),
        (["predict", *C, "--out", "o.csv", "--from", "soon"], "2024-03-01"),
        (["predict", *C, "--out", "o.csv", "--nonsense"], "--nonsense"),
        (["predict", *C, "--out", "o.csv", "more"], "more"),
        (["exchange", "--symbols", ","], "--symbols"),
        (["exchange", "--from", "2024-13-01"], "--from"),
        (["exchange", "--hours", "-5"], "--hours"),
        (["exchange", "--seed", "-1"], "--seed"),
        *[(["exchange", "--speed", speed], "--speed") for speed in ("fast", "0", "-1", "nan", "inf")],
        (["exchange", "--ws-port", "70000"], "--ws-port"),
        (["demo", "--hours", "0"], "--hours"),
        (["demo", "--mqtt-url", "tcp://127.0.0.1"], "mqtt://host"),
        ([*FETCH[:3], "--to", "2023-01-01", *FETCH[3:]], "--from, --to"),
        ([*FETCH, "--rest-url", "ftp://x"], "--rest-url"),
        ([*FETCH, "--rest-url", "http://x.example"], "--allow-plaintext"),
        ([*FETCH, "--rest-url", "https://x.example", "--archive-url", "x"], "--archive-url"),
        ([*FETCH, "--symbols", "a/b/c"], "--symbols"),
        (["train", *C, "--out", "r", "--from", "2024-01-02", "--to", "2024-01-01"], "--from, --to"),
        (["train", *C, "--out", "r", "--epochs", "0"], "--epochs"),
        (["evaluate", *C, "--from", "2024-01-02", "--to", "2024-01-01"], "--from, --to"),
        (["evaluate", *C, "--baselines", "nonsense", "--no-tests"], "nonsense"),
        (["evaluate", *C, "--walk-forward", "2023,2022", "--no-tests"], "--walk-forward"),
        (["evaluate", *C, "--baselines-only"], "--baselines-only"),
        (["backtest", *C, "--pool", "c.csv"], "--pool"),
        (["backtest", *C, "--from", "2024-01-02", "--to", "2024-01-01"], "--from, --to"),
        (["backtest", *C, "--fee-bp", "nan"], "--fee-bp"),
        (["backtest", *C, "--delay-hours", "-1"], "--delay-hours"),
        (["backtest", *C, "--policy", "target-40", "--policy", "target-40"], "--policy"),
        (["backtest", *C, "--walk-forward", "2022", "--from", "2022-01-01"], "--walk-forward"),
        (["backtest", *C, "--walk-forward", "2022", "--forecaster", "nonsense"], "--forecaster"),
        (["drift", "--symbols", "BTCUSDT,ETHUSDT"], "--symbols"),
        (["drift", "--study", "2019-01-01..2020-01-01"], "--candles"),
        (["drift", *C, "--study", "2020-01-01..2019-01-01"], "--study"),
        (["drift", *C, "--study", "a..b"], "--study"),
        (["drift", "--memory-mb", "9" * 20], "--memory-mb"),
        (["report"], "--from"),
        (["report", "--from", "2024-01-01T00:30"], "full hour"),
        (["report", "--from", "2024-01-01", "--quarterly", "2024"], "--quarterly"),
        (["report", "--from", "2024-01-02", "--to", "2024-01-01"], "--from, --to"),
        (["backup"], "FILE"),
        (["run", "--http-port", "x"], "--http-port"),
        (["run", "--stall-after-s", "0"], "--stall-after-s"),
        (["run", "--mqtt-url", "mqtt://127.0.0.1", "--mqtt-cert-file", "c.pem"], "--mqtt-cert-file"),
        (["run", "mqtt://u:geheim@127.0.0.1"], "unexpected"),
        (["check", "--ws-url", "wss://stream.example/ws"], "use wss://stream.example"),
        (["check", "--rest-url", "https://u:geheim@api.example/api/v3"], "use https://api.example"),
    ],
    ids=shown,
)
def test_wrong_usage_is_one_line_and_exit_code_2(args: list[str], names: str) -> None:
    done = volcast(*args)
    assert done.exit_code == 2, done.output
    assert names in line(done)
    assert "geheim" not in done.output


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["predict", "--candles", "absent.csv", "--out", "o.csv"], "absent.csv"),
        (["predict", *C, "--out", "o.csv", "--from", "2030-01-01"], "2030-01-01"),
        (["drift", "--data-dir", "nothing"], "nothing"),
        (["backup", "x.sqlite", "--data-dir", "nothing"], "nothing"),
        (["backtest", *C, "--json", "nowhere/x.json"], "nowhere"),
        (["check", "--config", "nowhere.toml"], "nowhere.toml"),
        (["exchange", "--host", "nowhere.invalid."], "--host"),
    ],
    ids=shown,
)
def test_what_could_not_be_done_is_one_line_and_exit_code_1(args: list[str], names: str) -> None:
    done = volcast(*args)
    assert done.exit_code == 1, done.output
    assert names in line(done)


#: (a command, a setting of the daemon that it has too, a value that makes the command name it)
SHARED = [
    (["drift"], "data_dir", "no-such-folder"),
    (["report", "--from", "2024-01-01"], "data_dir", "no-such-folder"),
    (["backup", "x.sqlite"], "data_dir", "no-such-folder"),
    (["drift"], "model", "no-such-model"),
    (["report", "--from", "2024-01-01"], "model", "no-such-model"),
    (["predict", *C, "--out", "o.csv"], "model", "no-such-model"),
    (["predict", *C, "--out", "o.csv"], "policy", "no-such-policy"),
    (["backtest", *C], "model", "no-such-model"),
    (["backtest", *C], "policy", "no-such-policy"),
    (["evaluate", *C, "--no-tests"], "model", "no-such-model"),
    ([*FETCH], "rest_url", "http://127.0.0.1:9"),
    (["check"], "model", "no-such-model"),
]


@pytest.mark.parametrize("source", ["flag", "variable", "file", "config"])
@pytest.mark.parametrize(("args", "name", "value"), SHARED, ids=shown)
def test_a_setting_comes_from_the_same_places_for_every_command(
    args: list[str], name: str, value: str, source: str, folder: Path
) -> None:
    variables: dict[str, str] = {}
    losers = {"flag": ["variable", "file"], "variable": ["file"], "file": [], "config": []}[source]
    other = "http://127.0.0.1:8" if name == "rest_url" else "another"
    given = {source: value, **dict.fromkeys(losers, other)}
    more = list(args)
    for place, setting in given.items():
        if place == "flag":
            more += [f"--{name.replace('_', '-')}", setting]
        elif place == "variable":
            variables[f"VOLCAST_{name.upper()}"] = f" '{setting}' "
        else:
            file = folder / ("volcast.toml" if place == "file" else "other.toml")
            file.write_text(f'{name} = "{setting}"\n')
            more += ["--config", str(file)] if place == "config" else []
    done = volcast(*more, variables=variables)
    assert done.exit_code == 1, done.output
    assert value in done.output
    assert other not in done.output


@pytest.mark.parametrize("args", [["drift"], ["report", "--from", "2024-01-01"]])
def test_which_of_several_symbols_is_meant_is_asked(args: list[str]) -> None:
    done = volcast(*args, variables={"VOLCAST_SYMBOLS": "BTCUSDT,ETHUSDT"})
    assert done.exit_code == 2
    assert "--symbol" in line(done)


def test_a_mistyped_variable_is_told_by_every_command_that_has_settings() -> None:
    done = volcast("drift", variables={"VOLCAST_DATADIR": "/x"})
    first, second = done.stderr.splitlines()
    assert "did you mean VOLCAST_DATA_DIR?" in first
    assert "no journal in var" in second
