"""Every command as a process: interrupted while it loads, its output closed by the reader, on terminals that lack
letters, with too little memory. Whatever happens, it ends with an exit code and at most one line.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
from command_line import COMMANDS

from stream.adapters.candles import files
from stream.core.market.candle import HOUR_MS
from stream.testing.market import simulate

FROM = 1_690_000_000_000 // HOUR_MS * HOUR_MS
MIB = 1024 * 1024
#: Python's settings on a terminal of the C locale.
ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LATIN = {"PYTHONIOENCODING": "latin-1"}
#: Addresses where connections are refused at once.
NOBODY = {
    "VOLCAST_REST_URL": "http://127.0.0.1:9",
    "VOLCAST_WS_URL": "ws://127.0.0.1:9",
    "VOLCAST_MQTT_URL": "mqtt://127.0.0.1:9",
}

#: Sends its own process the signal of Ctrl-C at the moment when it begins to import VOLCAST_TEST_MODULE.
_INTERRUPTER = """
import os, signal, sys

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["VOLCAST_TEST_MODULE"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
        return None

sys.meta_path.insert(0, Interrupter())
"""


def ended(
    *arguments: object, preexec: Callable[[], None] | None = None, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "stream", *map(str, arguments)]
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "PYTHONUTF8")}
    return subprocess.run(
        command,
        capture_output=True,
        check=False,
        timeout=120,
        preexec_fn=preexec,
        cwd=cwd,
        env=inherited | NOBODY | environment,
    )


@pytest.fixture(scope="module")
def candle_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("candles") / "btc.parquet"
    files.write(simulate(["BTCUSDT"], FROM, 3_600, 5)["BTCUSDT"], path)
    return path


# --- Ctrl-C -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("click", "predict"),
        ("stream.commands.predict", "predict"),
        ("numpy", "predict"),
        ("onnxruntime.capi._pybind_state", "predict"),
        ("polars", "predict"),
        ("evidently", "drift"),
        ("pandas._libs", "drift"),
        ("plotly", "report"),
        ("jinja2", "report"),
        ("matplotlib.figure", "report"),
        ("training.bundling.train", "train"),
        ("tensorflow", "train"),
        ("keras", "train"),
        ("uvicorn", "run"),
        ("msgspec", "check"),
    ],
)
def test_ctrl_c_while_a_command_loads_ends_it_without_a_traceback(
    module: str, command: str, candle_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_INTERRUPTER)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    options = {
        "predict": ["--candles", candle_file, "--out", tmp_path / "out.csv"],
        "drift": ["--candles", candle_file, "--out", tmp_path / "out.html"],
        "report": ["--candles", candle_file, "--from", "2023-12-01", "--out", tmp_path / "pages"],
        "train": ["--candles", candle_file, "--out", tmp_path / "run", "--from", "2023-08-01", "--to", "2023-12-01"],
    }
    done = ended(command, *options.get(command, []), cwd=tmp_path, PYTHONPATH=path, VOLCAST_TEST_MODULE=module)
    assert done.returncode == 130, done.stderr
    assert len(done.stderr.splitlines()) <= 1, done.stderr
    assert {p.name for p in tmp_path.iterdir()} <= {"sitecustomize.py", "__pycache__"}


@pytest.mark.parametrize("module", ["click", "msgspec", "numpy"])
def test_sigterm_ends_the_first_process_of_a_container_while_it_loads(module: str, tmp_path: Path) -> None:
    """The kernel spares such a process signals that it has no handler for."""
    first = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    if shutil.which("unshare") is None or subprocess.run([*first, "true"], capture_output=True, check=False).returncode:
        # Many containers allow none within them.
        return
    (tmp_path / "sitecustomize.py").write_text(_INTERRUPTER.replace("SIGINT", "SIGTERM"))
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*first, sys.executable, "-m", "stream", "check", "--data-dir", str(tmp_path / "var"), "--http-port", "0"],
        env=os.environ | NOBODY | {"PYTHONPATH": path, "VOLCAST_TEST_MODULE": module},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGTERM, b"", b"")


def test_ctrl_c_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_INTERRUPTER)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN) and None  # noqa: E731
    done = ended("--version", preexec=ignore, PYTHONPATH=path, VOLCAST_TEST_MODULE="click")
    assert done.returncode == 0, done.stderr


# --- readers of the output ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--help"], ["predict", "--help"], ["check"], ["--version"], ["demo", "--http-port", "0"]]
)
def test_a_reader_that_goes_away_ends_a_command_without_a_word(arguments: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "stream", *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        cwd=tmp_path,
        env=os.environ | NOBODY,
    )
    os.close(writing)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("arguments", [["--help"], ["check"], ["demo", "--http-port", "0"]])
def test_a_full_disk_under_our_output_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "stream", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            cwd=tmp_path,
            env=os.environ | NOBODY,
        )
    assert done.returncode == 1
    *log, line = done.stderr.decode().splitlines()
    assert line.startswith("volcast: the output cannot be written")
    assert all(" INFO " in before for before in log), log


# --- terminals of other alphabets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("terminal", [ASCII, LATIN, {"PYTHONIOENCODING": "cp437"}], ids=["ascii", "latin-1", "cp437"])
@pytest.mark.parametrize("command", [None, *sorted(COMMANDS)])
def test_every_help_is_shown_on_every_terminal(command: str | None, terminal: dict[str, str]) -> None:
    done = ended(*([command] if command else []), "--help", **terminal)
    assert done.returncode == 0, done.stderr
    assert b"Usage: volcast" in done.stdout
    assert done.stderr == b""


@pytest.mark.parametrize("terminal", [ASCII, LATIN], ids=["ascii", "latin-1"])
def test_so_is_what_commands_say(candle_file: Path, terminal: dict[str, str], tmp_path: Path) -> None:
    # The name of the file has letters that neither terminal has.
    out = tmp_path / "σ≥ė.csv"
    done = ended("predict", "--candles", candle_file, "--out", out, **terminal)
    assert done.returncode == 0, done.stderr
    assert out.exists()
    refused = ended("check", "--model", tmp_path / "σ.onnx", cwd=tmp_path, **terminal)
    assert refused.returncode == 1
    assert b"Traceback" not in refused.stderr


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_mb", [1, 50, 150])
def test_drift_with_too_little_memory_ends_with_one_line(memory_mb: int, candle_file: Path, tmp_path: Path) -> None:
    done = ended("drift", "--candles", candle_file, "--json", tmp_path / "d.json", "--memory-mb", memory_mb)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.decode().splitlines()
    assert line == f"volcast: drift needs more memory: raise --memory-mb, which is {memory_mb}"


@pytest.mark.parametrize("limit_mb", [200, 450])
@pytest.mark.parametrize("command", ["drift", "report"])
def test_so_does_a_command_under_a_limit_of_the_system(
    command: str, limit_mb: int, candle_file: Path, tmp_path: Path
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_mb * MIB, limit_mb * MIB))

    more = ["--from", "2023-12-01", "--to", "2023-12-10", "--out", tmp_path / "out"] if command == "report" else []
    done = ended(command, "--candles", candle_file, *more, preexec=limit)
    assert done.returncode in (0, 1), done.stderr
    if done.returncode:
        (line,) = done.stderr.decode().splitlines()
        assert line == f"volcast: {command} needs more memory: raise the limit (ulimit)"


def test_a_drift_run_that_is_watched_says_what_an_unwatched_one_says(candle_file: Path, tmp_path: Path) -> None:
    free = ended("drift", "--candles", candle_file)
    watched = ended("drift", "--candles", candle_file, "--memory-mb", 2_048)
    assert (watched.returncode, watched.stdout) == (free.returncode, free.stdout) == (0, free.stdout)
    refused = ended("drift", "--candles", tmp_path / "none.csv", "--memory-mb", 2_048)
    assert refused.returncode == 1
    (line,) = refused.stderr.decode().splitlines()
    assert "none.csv" in line


def test_whoever_ends_the_watcher_ends_the_work(candle_file: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    # Both hold the fifo open for writing until they end.
    script = f'exec 9>"{fifo}"; exec "{sys.executable}" -m stream drift --candles "{candle_file}" --memory-mb 2048'
    with subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.DEVNULL) as watcher, fifo.open("rb") as alive:
        children = Path(f"/proc/{watcher.pid}/task/{watcher.pid}/children")
        while not children.read_text().split() and watcher.poll() is None:  # a poll, not a fixed wait
            os.sched_yield()
        watcher.kill()
        assert watcher.wait() == -signal.SIGKILL
        assert alive.read() == b""


# --- loading ------------------------------------------------------------------------------------------------------


def _loaded(code: str, *modules: str) -> set[str]:
    """Returns those of the modules that are loaded once the code has run."""
    script = f"import sys\n{code}\nprint(*[m for m in {modules!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_every_command_is_a_file_and_every_file_a_command() -> None:
    folder = Path(str(resources.files("stream.commands")))
    # `health`, the container's health check, is run as a module and is no command.
    assert {p.stem for p in folder.glob("*.py")} - {"__init__", "health"} == set(COMMANDS)
    assert all(command.name == name for name, command in COMMANDS.items())


def test_the_list_of_commands_loads_none_of_them() -> None:
    code = "from click.testing import CliRunner; from stream.__main__ import cli; CliRunner().invoke(cli, ['--help'])"
    commands = [f"stream.commands.{name}" for name in COMMANDS]
    assert _loaded(code, *commands, "numpy", "polars", "asyncio", "rich", "stream.settings") == set()


@pytest.mark.parametrize("name", ["drift", "export", "report", "train"])
def test_a_command_that_is_confined_has_no_library_with_threads_before(name: str) -> None:
    assert _loaded(f"import stream.commands.{name}", "numpy", "polars", "onnxruntime", "pandas", "evidently") == set()
