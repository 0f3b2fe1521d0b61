"""A reader of the log that stops reading: the node goes on, answers, and ends when it is signalled."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """A pipe whose buffer is full."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4_096)
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 256)
    os.set_blocking(writer, True)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def get(url: str) -> int | None:
    """Returns the HTTP status; None where there is no answer."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.fault(47)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_log_that_nobody_reads_stops_neither_the_node_nor_its_end(
    full_pipe: tuple[int, int], log_format: str, mosquitto: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    _, stderr = full_pipe
    port, nowhere = free_port(), free_port()
    node = subprocess.Popen(
        [
            sys.executable, "-m", "stream", "run", "--ws-url", f"ws://127.0.0.1:{nowhere}",
            "--rest-url", f"http://127.0.0.1:{nowhere}", "--mqtt-url", mosquitto.url, "--http-port", str(port),
            "--data-dir", str(tmp_path / "var"), "--drift-period-hours", "0", "--log-format", log_format,
        ],
        stderr=stderr,
    )  # fmt: skip
    try:
        until(lambda: get(f"http://127.0.0.1:{port}/healthz") == 200, "an answer", 30)
        # The node still runs without its log: it answers that it is not ready.
        until(lambda: get(f"http://127.0.0.1:{port}/readyz") == 503, "an answer", 30)
        node.terminate()
        assert node.wait(10) == 0
    finally:
        node.kill()
        node.wait()


def test_a_refusal_that_nobody_reads_still_ends_the_command(full_pipe: tuple[int, int], tmp_path: Path) -> None:
    _, stderr = full_pipe
    nothing = tmp_path / "nothing.onnx"
    node = subprocess.Popen(
        [sys.executable, "-m", "stream", "run", "--mqtt-url", "embedded", "--model", str(nothing)], stderr=stderr
    )
    try:
        assert node.wait(30) == 1
    finally:
        node.kill()
        node.wait()


def test_what_was_logged_comes_before_the_last_line_and_what_was_dropped_is_counted(
    full_pipe: tuple[int, int],
) -> None:
    reader, stderr = full_pipe
    code = (
        "import logging; from stream import logs; logs.configure('text');"
        "log = logging.getLogger('stream.x'); [log.info('line %d', n) for n in range(3000)];"
        "print('logged', flush=True); input(); log.info('after'); logs.last_words('the end')"
    )
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "logged\n"
        text = b""
        # Until two lines follow the warning: before that the queue is still full.
        while text.partition(b"were dropped")[2].count(b"\n") < 3:
            text += os.read(reader, 65_536)
        child.stdin.write("\n")
        child.stdin.close()
        while not text.endswith(b"the end\n"):
            text += os.read(reader, 65_536)
    assert child.returncode == 0
    lines = text.decode().splitlines()
    warnings = [line for line in lines if "log line(s) were dropped: nobody read them in time" in line]
    dropped = sum(int(line.split("WARNING ")[1].split()[0]) for line in warnings)
    assert dropped + sum("line " in line and "INFO" in line for line in lines) == 3_000
    assert lines[-2].endswith("after")
