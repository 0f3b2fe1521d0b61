"""Training and export as child processes: niced, bounded in memory, and gone when this process is, whatever ends it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from stream import times
from stream.errors import RefusedError

#: Whatever else the machine does comes first.
NICE = 10
_STDERR_BYTES = 16 * 1024
_ENVIRONMENT = {
    # Two threads at most: a daemon on the same machine keeps a core.
    "OMP_NUM_THREADS": "2",
    "OPENBLAS_NUM_THREADS": "2",
    "POLARS_MAX_THREADS": "2",
    "TF_NUM_INTRAOP_THREADS": "2",
    "TF_NUM_INTEROP_THREADS": "1",
}
_PR_SET_PDEATHSIG = 1


class Step(NamedTuple):
    """A command, and the file that is there, complete, once it has run to its end."""

    name: str
    command: Sequence[str]
    product: Path


class Make(Protocol):
    """Returns the steps from a candle file to a bundle, which learns until `until_ms`, in the folder of both."""

    def __call__(
        self, candles: Path, symbol: str, until_ms: int, *, pooled: bool, run: Path, bundle: Path
    ) -> list[Step]: ...


class Volcast(NamedTuple):
    """The steps of `volcast train` and `volcast export` by this interpreter."""

    train_from: int
    seed: int
    epochs: int | None
    memory_mb: int

    def __call__(
        self, candles: Path, symbol: str, until_ms: int, *, pooled: bool, run: Path, bundle: Path
    ) -> list[Step]:
        bounds = ("--nice", str(NICE), "--memory-mb", str(self.memory_mb))
        train = ["train", "--candles", str(candles), "--symbol", symbol, "--out", str(run), "--seed", str(self.seed)]
        train += ["--from", times.iso(self.train_from), "--to", times.iso(until_ms)]
        train += ["--pool", str(candles)] if pooled else []
        train += ["--epochs", str(self.epochs)] if self.epochs is not None else []
        export = ["export", "--run", str(run), "--out", str(bundle)]
        # -P: a folder named stream in the working directory must not be imported.
        ours = [sys.executable, "-P", "-m", "stream"]
        return [
            Step("training", [*ours, *train, *bounds], run / "contract.json"),
            Step("export", [*ours, *export, *bounds], bundle),
        ]


def run(step: Step) -> None:
    """Runs a step to its end. Raises `RefusedError` with the last line that it printed where it fails, or ends without
    its product."""
    with _started(step) as child:
        errors = _end_of(child)
        code = child.wait()
    lines = errors.decode(errors="replace").strip().splitlines()
    if code:
        reason = lines[-1].removeprefix("volcast: ") if lines else _how_it_ended(code)
        raise RefusedError(f"the {step.name} failed: {reason}")
    if not step.product.exists():
        raise RefusedError(f"the {step.name} ended without {step.product.name}: retrain again")


@contextlib.contextmanager
def _started(step: Step) -> Iterator[subprocess.Popen[bytes]]:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    parent = os.getpid()

    def end_with_parent() -> None:
        # Also where the parent is killed by kill -9: a training that nobody waits for would go on for minutes.
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGKILL)

    child = subprocess.Popen(
        list(step.command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | _ENVIRONMENT,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    try:
        yield child
    finally:
        # Also where the child has ended and left children of its own: no process of a step remains.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if child.stderr is not None:
            child.stderr.close()


def _end_of(child: subprocess.Popen[bytes]) -> bytes:
    """Reads the child's stderr to its end, and returns the last of it."""
    assert child.stderr is not None
    tail = b""
    while chunk := os.read(child.stderr.fileno(), 64 * 1024):
        tail = (tail + chunk)[-_STDERR_BYTES:]
    return tail


def _how_it_ended(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
