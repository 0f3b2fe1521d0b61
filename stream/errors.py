"""Errors that say whose fault they are. A command tells a `VolcastError` in one line; any other is a defect of ours.

The classes below are by whose fault it is; rooms derive their own from them. `ValueError` and the like are among the
bases so that a caller from Python may catch what it is used to.
"""

from __future__ import annotations


class VolcastError(Exception):
    """Something could not be done, and the message says in one line what, why and how to mend it."""


class RefusedError(VolcastError, RuntimeError):
    """It must not run so: the settings or the place are at fault, which is for the person who started it."""


class MisuseError(RefusedError):
    """What was asked for makes no sense, whatever the world is like: the caller's exit code is 2, not 1."""


class InputError(VolcastError, ValueError):
    """What was handed in cannot be used: a file, a bundle, a policy. Its message names the place and the cure."""


class UnreachableError(VolcastError, ConnectionError):
    """Exchange or broker cannot be reached or will not answer now. Wait and try again."""


class MessageRefusedError(UnreachableError):
    """The broker will not take this one message, in its own words. It may take others."""


class HungUpError(UnreachableError):
    """The broker ended the connection in place of an acknowledgement, in its own words where it said any."""


class JournalError(VolcastError, RuntimeError):
    """The journal cannot be opened or written, the machine's fault: its message names the file, the cause and the
    cure."""
