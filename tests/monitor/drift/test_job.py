"""The schedule of drift runs with real children that do well, fail, hang, eat memory, flood and say nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from monitor.drift import job
from stream.adapters.bundles import packaged_model
from stream.clock import Clock
from stream.core.messages.schemas import Drift, DriftFeature, FastDrift
from stream.telemetry import DriftFailed, Fact

START = 1_704_067_200_000
DAY_S = 24 * 3_600


def feature(score: float, threshold: float = 1.0) -> DriftFeature:
    return DriftFeature("log_max_24h", score, threshold, score >= threshold, score >= 0.1)


RESULT = Drift(
    symbol="BTCUSDT", issued_at=5, from_=1, to=2, rows=3, method="m", detected=False, default_detected=True,
    drifted_share=0.0, features=(feature(0.5),), reference="bundle",
    fast=FastDrift(1, 2, 0, 3, True, (feature(1.25),)), report="drift-BTCUSDT-5.html", model_version="v",
)  # fmt: skip
WRITE = f"import sys; open(sys.argv[1], 'w').write({msgspec.json.encode(RESULT).decode()!r});"


class Listener:
    symbols: Sequence[str] = ("BTCUSDT",)

    def __init__(self) -> None:
        self.drifts: list[tuple[Drift, int]] = []

    def exchange_now_ms(self) -> int:
        return START

    def readiness_ok(self) -> bool:
        return True

    async def publish_drift(self, drift: Drift, expiry_s: int) -> None:
        self.drifts.append((drift, expiry_s))


class Attempts(logging.Handler):
    """Ends a test when an attempt has told its end: the schedule logs one line for each."""

    def __init__(self, wanted: int) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.done = asyncio.Event()
        self._wanted = wanted
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        if len(self.lines) >= self._wanted:
            self._loop.call_soon_threadsafe(self.done.set)


async def run_job(
    code: str, tmp_path: Path, *, timeout_s: float = 60.0, lines: int = 1
) -> tuple[Listener, list[Fact], list[str]]:
    """One attempt whose child runs `code`, with the path of its result as the argument; the log's lines with it."""
    listener, facts, attempts = Listener(), [], Attempts(lines)
    schedule = job.Schedule(
        listener,
        period_hours=24,
        data_dir=tmp_path,
        model=packaged_model,
        clock=Clock(wall_ms=lambda: 5),
        observe=facts.append,
        command=lambda symbol, data_dir, model, html: [sys.executable, "-c", code, str(html.with_suffix(".json"))],
        timeout_s=timeout_s,
    )
    job.log.addHandler(attempts)
    job.log.setLevel(logging.INFO)
    running = asyncio.create_task(schedule.run())
    try:
        async with asyncio.timeout(120):
            await attempts.done.wait()
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        job.log.removeHandler(attempts)
    return listener, facts, attempts.lines


async def test_a_childs_result_is_published_and_both_verdicts_are_logged(tmp_path: Path) -> None:
    listener, facts, lines = await run_job(WRITE, tmp_path)
    assert listener.drifts == [(RESULT, 3 * DAY_S)]
    assert facts == []
    (line,) = lines
    assert "30 days not detected" in line
    assert "10 days against 90 detected (log_max_24h 1.25 of 1.00)" in line
    assert "Evidently's default detected" in line


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit('volcast: too few candles')", "too few candles"),
        ("import os; os.abort()", "signal 6"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
        ("pass", "drift-BTCUSDT-5.json"),
        (f"{WRITE} sys.exit('volcast: changed its mind')", "changed its mind"),
        ("import sys; open(sys.argv[1], 'w').write('{\"half\":')", "truncated"),
        ("import sys; open(sys.argv[1], 'w').write('x' * 10_000_000)", "bytes"),
        (WRITE.replace("BTCUSDT", "ETHUSDT"), "is of ETHUSDT"),
        (
            "import resource; resource.setrlimit(resource.RLIMIT_DATA, (2**28, 2**28)); b = bytearray(2**30)",
            "MemoryError",
        ),
        ("import sys\nfor _ in range(200): print('x' * 100_000, file=sys.stderr)\nsys.exit('at last')", "at last"),
    ],
    ids=[
        "refused", "crashed", "killed", "silent", "result but failed", "half", "too long", "another's", "memory",
        "flood",
    ],
)  # fmt: skip
async def test_a_child_that_fails_is_a_counter_and_a_line_and_leaves_no_file(
    tmp_path: Path, code: str, reason: str
) -> None:
    listener, facts, lines = await run_job(code, tmp_path)
    assert listener.drifts == []
    (failed,) = facts
    assert isinstance(failed, DriftFailed)
    assert reason in failed.reason
    assert len(failed.reason) < 10_000
    assert [reason in line for line in lines] == [True]
    assert list((tmp_path / "reports").iterdir()) == []


async def test_a_child_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    # Both hold the pipe open and wait for what never comes.
    code = (
        f"import signal, subprocess, sys; pipe = open({str(fifo)!r}, 'w');"
        "subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'], pass_fds=[pipe.fileno()]);"
        "pipe.write('both'); pipe.flush(); signal.pause()"
    )
    reading = asyncio.get_running_loop().run_in_executor(None, fifo.read_text)
    listener, facts, lines = await run_job(code, tmp_path, timeout_s=5.0)
    assert listener.drifts == []
    (failed,) = facts
    assert isinstance(failed, DriftFailed)
    assert "no end after 5 s; killed" in failed.reason
    assert len(lines) == 1
    # The pipe ends when the last process that holds it has ended.
    async with asyncio.timeout(120):
        assert await reading == "both"


async def test_a_daemon_that_stops_takes_the_child_with_it(tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    code = f"import signal; pipe = open({str(fifo)!r}, 'w'); signal.pause()"
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[None] = loop.create_future()

    def read() -> str:
        with fifo.open() as pipe:
            loop.call_soon_threadsafe(opened.set_result, None)
            return pipe.read()

    reading = loop.run_in_executor(None, read)
    job = asyncio.create_task(run_job(code, tmp_path))
    async with asyncio.timeout(120):
        await opened
        job.cancel()
        assert await reading == ""
    assert (await asyncio.gather(job, return_exceptions=True))[0] is not None


async def test_a_clean_up_that_fails_is_a_line_and_not_the_end(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    # A folder where a left-over file would be cannot be unlinked, by anyone.
    (reports / "drift-BTCUSDT-4.html.part").mkdir(parents=True)
    listener, facts, lines = await run_job(WRITE, tmp_path, lines=2)
    assert [drift for drift, _ in listener.drifts] == [RESULT]
    assert facts == []
    assert "cannot be removed" in lines[1]


async def test_reports_that_cannot_be_written_are_a_counter(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("a file")
    listener, facts, _ = await run_job(WRITE, tmp_path, lines=2)
    assert listener.drifts == []
    assert len(facts) == 1


def test_the_command_is_our_own_and_niced_and_bounded(tmp_path: Path) -> None:
    command = job.drift_command("BTCUSDT", tmp_path, packaged_model(), tmp_path / "a.html")
    assert command[:5] == [sys.executable, "-P", "-m", "stream", "drift"]
    assert command[command.index("--nice") + 1] == "10"
    assert command[command.index("--memory-mb") + 1] == str(job.MEMORY_MB)


def test_the_newest_reports_are_kept_and_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    numbers = [*range(95, 130), 1_700_000_000_000]
    for i in numbers:
        for suffix in ("html", "json"):
            (tmp_path / f"drift-BTCUSDT-{i}.{suffix}").write_text("")
    others = [
        "drift-BTCUSDT-2024-Q1.html", "BTCUSDT-2024-Q1-drift.html", "drift-ETHUSDT-1.html", "drift-BTCUSDTX-1.html",
        "regression.html", "notes.part", ".drift-ETHUSDT-1.html.part",
    ]  # fmt: skip
    left_over = [".drift-BTCUSDT-99.html.part", ".drift-BTCUSDT-99.json.part", "drift-BTCUSDT-99.html.part"]
    for name in (*others, *left_over):
        (tmp_path / name).write_text("")
    (tmp_path / "2024").mkdir()
    job._clean(tmp_path, "BTCUSDT", None)
    kept = {p.name for p in tmp_path.iterdir()}
    newest = numbers[-job.KEEP_REPORTS :]
    assert kept == {*others, "2024", *(f"drift-BTCUSDT-{i}.{s}" for i in newest for s in ("html", "json"))}


def test_drift_is_off_where_it_is_not_wanted() -> None:
    assert job.state(0) == "off: --drift-period-hours is 0"
    assert job.state(24) == "on"
