"""Prepares a command's process before it does anything: output that takes every character, libraries that stay out of
the home directory, a clean exit on Ctrl-C. Imports only the standard library, because it runs before everything else.
"""

from __future__ import annotations

import contextlib
import ctypes
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
#: Codes of an `OSError` without a file name where our output has no reader, no terminal or no disk space any more.
_LOST = (errno.EPIPE, errno.EIO, errno.ENOSPC)
#: Thread counts of libraries: a process that runs for months alongside others computes little, and must not grow with
#: the number of cores.
_THREADS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
    "TOKIO_WORKER_THREADS": "2",  # the embedded broker's; with one, a task that blocks would hold up all others
}

#: glibc's number for how many pools of memory threads have.
_M_ARENA_MAX = -8

#: Whether this process runs one command and nothing else, as opposed to a program that calls it from Python.
is_ours = False
_interrupted = False


def share_memory_between_threads() -> None:
    """Gives all threads one pool of memory, where the C library is glibc: by itself each has its own, and what one
    thread has taken and another frees helps neither. To be called before threads start."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


@contextlib.contextmanager
def in_order() -> Iterator[None]:
    """Wraps a whole command. Ctrl-C at any moment, also while libraries load, exits with code 130 without a traceback;
    a second one no longer waits."""
    global is_ours
    is_ours = True
    _take_every_letter()
    _keep_out_of_home()
    # Where SIGINT is ignored, as in the background of a script, it stays ignored.
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
        # Some libraries turn an interruption while they load into an error of their own.
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


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Turns SIGTERM into an exception meanwhile, so that unfinished files and children go with the command."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def few_threads() -> None:
    """Limits the threads of libraries, for a process that runs long. Values that the user has set stay.

    Call it before numpy is imported.
    """
    for name, number in _THREADS.items():
        os.environ.setdefault(name, number)


def _drop_output() -> None:
    """Discards what is still to be written to stdout and stderr, so that nothing fails with it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _take_every_letter() -> None:
    """Makes stdout and stderr show ? for characters that the terminal's encoding lacks, such as σ."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _keep_out_of_home() -> None:
    # Keras would write its settings there, and read them from what it finds there.
    os.environ["KERAS_HOME"] = os.devnull
    # Matplotlib then makes itself a temporary folder, and removes it at exit; its warning about that is of no use.
    os.environ.setdefault("MPLCONFIGDIR", os.devnull)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    global _interrupted
    _interrupted = True
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Exits on a Ctrl-C in a place that cannot raise, which would print a traceback and be lost."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        os._exit(INTERRUPTED)
    sys.__unraisablehook__(unraisable)


def _flush() -> None:
    """Flushes stdout and stderr before the interpreter does, where a reader that has gone would be a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            _drop_output()
