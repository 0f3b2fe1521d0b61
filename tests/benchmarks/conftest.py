"""What benchmarks of the daemon share: an exchange in a process of its own, at ten closes a second."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from stream.testing.broker import EmbeddedBroker

#: Ten closes a second, far enough apart that none waits for another.
SPEED = 36_000


@pytest.fixture(scope="module")
def exchange() -> Iterator[tuple[str, str]]:
    """URLs of its stream and its REST."""
    command = [sys.executable, "-m", "stream", "exchange", "--speed", str(SPEED), "--ws-port", "0", "--rest-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        yield words[words.index("--ws-url") + 1], words[words.index("--rest-url") + 1]
        process.terminate()


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    with EmbeddedBroker() as running:
        yield running.url


@pytest.fixture
def speed() -> int:
    """Exchange seconds per second."""
    return SPEED
