"""What a command's process needs before it does anything: streams that take every letter, libraries that keep to
themselves, Ctrl-C that ends it in order. Imports nothing but the standard library: it comes before everything else.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

#: Exit code of a command that Ctrl-C ended, as shells count it.
INTERRUPTED = 130
#: What an error says, that bears no file's name, when our output has no reader, no terminal or no room any more.
_LOST = (errno.EPIPE, errno.EIO, errno.ENOSPC)
#: One thread each: a process that runs for months beside others computes little and must not grow with the cores.
_THREADS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
    "TOKIO_WORKER_THREADS": "2",  # the embedded broker's; with one, a task that blocks would hold up all others
}

#: Whether this process does nothing but one command, rather than call it from Python.
is_ours = False
_interrupted = False


@contextlib.contextmanager
def in_order() -> Iterator[None]:
    """Around a whole command. Ctrl-C at any moment, also while libraries load, is exit code 130 without a traceback;
    a second one no longer waits."""
    global is_ours
    is_ours = True
    _take_every_letter()
    _keep_out_of_home()
    # Ignored, as in the background of a script, it stays ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _unraisable
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except MemoryError:
        sys.stderr.write("volcast: there is not enough memory for it\n")
        sys.exit(1)
    except Exception as error:
        # Some libraries make an error of their own of what comes in between while they load.
        if _interrupted:
            sys.exit(INTERRUPTED)
        if not (isinstance(error, OSError) and error.filename is None and error.errno in _LOST):
            raise
        with contextlib.suppress(OSError):
            sys.stderr.write(f"volcast: the output cannot be written: {error.strerror}\n")
        _drop_output()
        sys.exit(1)
    finally:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        _flush()


def few_threads() -> None:
    """For a process that runs long; before numpy is imported. What the user has set stays."""
    for name, number in _THREADS.items():
        os.environ.setdefault(name, number)


def _drop_output() -> None:
    """What is still to be written goes nowhere, so that nothing fails with it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _take_every_letter() -> None:
    """A terminal of another alphabet shows ? for what it lacks, such as σ."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _keep_out_of_home() -> None:
    # Keras would write its settings there, and take ours from what it finds.
    os.environ["KERAS_HOME"] = os.devnull
    # Matplotlib then makes itself a folder, and removes it in the end; that it warns is no news.
    os.environ.setdefault("MPLCONFIGDIR", os.devnull)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    global _interrupted
    _interrupted = True
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Ctrl-C in a place that cannot raise would print a traceback, and be lost."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        os._exit(INTERRUPTED)
    sys.__unraisablehook__(unraisable)


def _flush() -> None:
    """Here rather than in the interpreter's last moments, where a reader that has gone is a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            _drop_output()
