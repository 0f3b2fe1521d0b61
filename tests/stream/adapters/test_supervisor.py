"""What the supervisor is notified of, on a real socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from stream.adapters.supervisor import Supervisor
from stream.telemetry import HEARTBEAT_LIMIT_S


@pytest.fixture
async def supervisor(systemd: socket.socket) -> AsyncIterator[Supervisor]:
    made = await asyncio.to_thread(Supervisor)
    yield made
    made.close()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000")
        yield listening


async def next_message(systemd: socket.socket) -> str:
    return (await asyncio.to_thread(systemd.recv, 100)).decode()


async def test_it_hears_of_the_start_and_the_stop(systemd: socket.socket, supervisor: Supervisor) -> None:
    await supervisor.ready()
    await supervisor.stopping()
    assert [await next_message(systemd), await next_message(systemd)] == ["READY=1", "STOPPING=1"]


async def test_it_hears_of_life_only_while_the_heartbeat_is_young(
    systemd: socket.socket, supervisor: Supervisor
) -> None:
    asked = 0

    def heartbeat_age_s() -> float:
        nonlocal asked
        asked += 1
        return 0.0 if asked <= 2 else HEARTBEAT_LIMIT_S

    alive = asyncio.create_task(supervisor.keep_alive(heartbeat_age_s))
    assert [await next_message(systemd), await next_message(systemd)] == ["WATCHDOG=1"] * 2
    async with asyncio.timeout(60):
        while asked < 5:  # noqa: ASYNC110 - the supervisor reads the age without setting an event
            await asyncio.sleep(0.01)
    alive.cancel()
    await asyncio.gather(alive, return_exceptions=True)
    systemd.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.recv(100)


async def test_one_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    supervisor = await asyncio.to_thread(Supervisor)
    await supervisor.ready()
    assert len(caplog.messages) == 1
    assert "nobody is not there" in caplog.messages[0]


async def test_without_one_nothing_is_sent_and_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    supervisor = await asyncio.to_thread(Supervisor)
    await supervisor.ready()
    await supervisor.keep_alive(lambda: 0.0)
