"""Runs work in a child process with a bound on its memory, watched by a parent that can still report a lack of it.

Libraries react badly when memory is refused: some end the process, some panic in a thread that others wait for, some
retry for ever. So the parent ends the child at the bound, before anything is refused, and where a limit of the system
(ulimit) comes first it looks for the signs: what libraries print about it, and memory near the limit that no longer
changes.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import resource
import select
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

from stream.cli import process

#: Work with a bound of its own is ended after this time, whatever it does; a drift run takes some 8 s.
_TIME_S = 300
_LOOK_S = 0.02
#: Memory above this share of a system's limit that has not changed for this long counts as exhausted.
_NEAR, _STILL_S = 0.75, 30.0
#: How long a child that reports a lack of memory, or is asked to end, may take to end.
_GRACE_S = 2.0
#: Beyond the watched bound, by so much, the system enforces another, for memory that grows faster than it is sampled.
#: That one counts reserved memory too, and libraries reserve a gigabyte and more that they never touch.
_BACKSTOP_MIB = 2_048
_MIB = 1024 * 1024
_ERRORS_BYTES = 64 * 1024
_SIGNS = re.compile(
    rb"memory allocation (of \d+ bytes |still )?failed|MemoryError|bad_alloc|cannot allocate memory|out of memory"
    rb"|cannot map zero-fill pages|failed to map segment|not enough memory",
    re.IGNORECASE,
)
#: Where memory was near its limit, an end of this kind is attributed to a lack of memory as well.
_DEFECT = re.compile(rb"^Traceback|panicked at", re.MULTILINE)


class _Held(NamedTuple):
    """Memory of a process, bytes; zeros where the system does not report it."""

    #: What it has touched and shares with no other process.
    own: int = 0
    #: What RLIMIT_DATA and RLIMIT_AS count.
    data: int = 0
    space: int = 0


class _Limits(NamedTuple):
    """Memory limits of the system, bytes."""

    data: float = math.inf
    space: float = math.inf

    @classmethod
    def of_the_system(cls) -> _Limits:
        soft = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)]
        return cls(*(math.inf if bound == resource.RLIM_INFINITY else bound for bound in soft))

    def near(self, held: _Held) -> bool:
        return held.data >= _NEAR * self.data or held.space >= _NEAR * self.space


def watched(command: str, memory_mb: int | None, time_s: int = _TIME_S) -> None:
    """Calls `in_child` where the command is a process of its own; within another program, which has threads and must
    not end, it does nothing."""
    if process.is_ours:
        in_child(command, memory_mb, time_s)


def in_child(command: str, memory_mb: int | None, time_s: int = _TIME_S) -> None:
    """Forks, and returns in a child that may hold `memory_mb` MiB of its own, and with that bound may take `time_s`.

    In the calling process it never returns: that one exits as the child does, or with one line where memory was short.
    Without a bound, its own or the system's, it returns at once and does not fork. Call it before there are threads.
    """
    limits = _Limits.of_the_system()
    if memory_mb is None and limits == _Limits():
        return
    sys.stdout.flush()
    reading, writing = os.pipe()
    watcher = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(writing, sys.stderr.fileno())
        os.close(writing)
        _confine(watcher, memory_mb, time_s)
        return
    os.close(writing)
    cure = "raise the limit (ulimit)" if memory_mb is None else f"raise --memory-mb, which is {memory_mb}"
    _Watch(child, reading, memory_mb, limits, time_s).end(f"volcast: {command} needs more memory: {cure}")


class _Watch:
    """Watches a child: how it ends, and why."""

    def __init__(self, child: int, reading: int, memory_mb: int | None, limits: _Limits, time_s: int) -> None:
        self._child = child
        self._reading = reading
        self._bound = None if memory_mb is None else memory_mb * _MIB
        self._limits = limits
        self._time_s = time_s
        self._errors = b""
        self._was_near = False
        self._short = self._late = self._asked = False
        self._began_s = self._moved_s = time.monotonic()
        self._last = _Held()
        self._end_by_s: float | None = None

    def end(self, short_of_memory: str) -> NoReturn:
        signal.signal(signal.SIGTERM, self._asked_to_end)
        status = None
        while status is None:
            try:
                status = self._look()
            except KeyboardInterrupt:
                # A terminal has sent the signal to the child as well.
                self._asked = True
                self._end_by_s = time.monotonic() + _GRACE_S
        while self._read(0.0):
            pass
        code = os.waitstatus_to_exitcode(status)
        if code and not self._asked and self._was_short(code):
            sys.stderr.write(f"{short_of_memory}\n")
            sys.exit(1)
        sys.stderr.flush()
        os.write(sys.stderr.fileno(), self._errors)
        if self._late or code == -signal.SIGXCPU:
            sys.stderr.write(f"volcast: no end after {self._time_s} s; stopped\n")
            sys.exit(1)
        if code < 0 and not self._asked:
            sys.stderr.write(f"volcast: ended by signal {-code}\n")
        sys.exit(code if code >= 0 else 128 - code)

    def _was_short(self, code: int) -> bool:
        defect = code < 0 or _DEFECT.search(self._errors) is not None
        return self._short or _SIGNS.search(self._errors) is not None or (self._was_near and defect)

    def _look(self) -> int | None:
        """Checks on the child once, and ends it where that is due. Returns its exit status, once it has one."""
        self._read(_LOOK_S)
        ended, status = os.waitpid(self._child, os.WNOHANG)
        if ended:
            return status
        now_s, held = time.monotonic(), _memory(self._child)
        near = self._limits.near(held)
        self._was_near = self._was_near or near
        beyond = self._bound is not None and held.own >= self._bound
        self._short = self._short or beyond
        self._late = self._bound is not None and now_s > self._began_s + self._time_s
        if beyond or self._late or (self._end_by_s is not None and now_s > self._end_by_s):
            os.kill(self._child, signal.SIGKILL)
            return os.waitpid(self._child, 0)[1]
        if self._end_by_s is None and ((near and self._still(held, now_s)) or _SIGNS.search(self._errors)):
            self._short = True
            self._end_by_s = now_s + _GRACE_S
        return None

    def _read(self, wait_s: float) -> bool:
        if not select.select([self._reading], [], [], wait_s)[0]:
            return False
        chunk = os.read(self._reading, 64 * 1024)
        if not chunk:
            # The child has closed its end but has not exited: nothing more arrives, so wait here instead.
            time.sleep(wait_s)
            return False
        self._errors = (self._errors + chunk)[-_ERRORS_BYTES:]
        return True

    def _still(self, held: _Held, now_s: float) -> bool:
        if held != self._last:
            self._last, self._moved_s = held, now_s
        return now_s > self._moved_s + _STILL_S

    def _asked_to_end(self, number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, number)
        self._asked = True
        self._end_by_s = time.monotonic() + _GRACE_S


def _confine(watcher: int, memory_mb: int | None, time_s: int) -> None:
    """Sets the child's limits; runs in the child."""
    if memory_mb is not None:
        _lower(resource.RLIMIT_DATA, (memory_mb + _BACKSTOP_MIB) * _MIB)
        _lower(resource.RLIMIT_CPU, time_s)
    # Where the machine runs out of memory all the same, it is this process that the kernel ends. Linux only.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    _end_with(watcher)


def _end_with(watcher: int) -> None:
    """Has the kernel end this process whenever the watching one ends, also by kill -9. Linux only."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != watcher:
            os.kill(os.getpid(), signal.SIGKILL)


def _lower(kind: int, bound: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or bound < hard:
        resource.setrlimit(kind, (bound, bound))


def _memory(process: int) -> _Held:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return _Held()
    kib = {name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", status, re.MULTILINE)}
    own = kib.get("RssAnon", 0) + kib.get("VmSwap", 0)
    return _Held(own * 1024, kib.get("VmData", 0) * 1024, kib.get("VmSize", 0) * 1024)
