"""Errors, by whose fault they are. A command prints a `VolcastError` as one line; any other exception is a defect.

Packages derive their own errors from the classes below. `ValueError` and the like are among the bases so that a caller
from Python may catch what it is used to.
"""

from __future__ import annotations


class VolcastError(Exception):
    """Something could not be done. The message is one line with what, why and how to fix it."""


class RefusedError(VolcastError, RuntimeError):
    """Volcast must not run like this: settings or environment are at fault, for the person who started it to fix."""


class MisuseError(RefusedError):
    """The request makes no sense under any circumstances. A command then exits with code 2, not 1."""


class InputError(VolcastError, ValueError):
    """An input cannot be used: a file, a bundle, a policy. The message names the place and the cure."""


class UnreachableError(VolcastError, ConnectionError):
    """The exchange or the broker cannot be reached or does not answer now. Wait and try again."""


class MessageRefusedError(UnreachableError):
    """The broker refuses this one message, for the reason that it gave. It may take others."""


class HungUpError(UnreachableError):
    """The broker ended the connection instead of acknowledging, with its reason where it gave one."""


class JournalError(VolcastError, RuntimeError):
    """The journal cannot be opened, read or written: the machine's fault. The message names the file, the cause and the
    cure."""
