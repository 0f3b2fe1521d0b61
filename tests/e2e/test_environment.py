"""Environment variables of Volcast and of its libraries: `run` and `check` end alike, and never in a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

#: For the system this machine, where nothing answers; for the rules of proxies any other host.
AWAY = ["--ws-url", "wss://0.0.0.0:9", "--rest-url", "https://0.0.0.0:9", "--mqtt-url", "mqtt://127.0.0.1:9"]


def ended(command: str, folder: Path, variables: dict[str, str]) -> tuple[int, str]:
    """Runs a command and returns its exit code and output. A `run` that starts is sent SIGTERM."""
    bare = {k: v for k, v in os.environ.items() if not k.upper().endswith("_PROXY") and not k.startswith("SSL_CERT")}
    with subprocess.Popen(
        [sys.executable, "-m", "stream", command, *AWAY, "--http-port", "0", "--data-dir", str(folder / "var")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=bare | variables,
    ) as process:
        assert process.stdout is not None
        output = ""
        for line in process.stdout:
            output += line
            if command == "run" and ": BTCUSDT, model " in line:
                process.send_signal(signal.SIGTERM)
    return process.returncode, output


@pytest.mark.fault(52)
@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, "ALL_PROXY"),
        ({"HTTPS_PROXY": "http://u:geheim@127.0.0.1:port"}, "HTTPS_PROXY"),
        ({"SSL_CERT_FILE": "/nowhere/ca.pem"}, "SSL_CERT_FILE /nowhere/ca.pem"),
        ({"NO_PROXY": "::1,10.0.0.0/8", "HTTPS_PROXY": "127.0.0.1:9"}, None),
        ({"PROMETHEUS_MULTIPROC_DIR": "/nowhere", "WEBSOCKETS_MAX_LOG_SIZE": "x", "WEB_CONCURRENCY": "auto"}, None),
    ],
    ids=lambda case: str(case)[:40],
)
def test_run_and_check_end_alike(variables: dict[str, str], names: str | None, tmp_path: Path) -> None:
    for command in ("check", "run"):
        code, output = ended(command, tmp_path, variables)
        assert "Traceback" not in output
        assert "geheim" not in output
        lines = [line for line in output.splitlines() if line.startswith("volcast: ")]
        if names is None:
            assert (code, lines) == (0, [])
        else:
            assert code == 1
            assert len(lines) == 1
            assert names in lines[0]
