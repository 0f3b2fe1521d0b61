"""The worker: the one thread that uses journal and model, and the retry of a commit.

Rules of this module:
- Journal and model are used from no other thread, so a call sees the journal as the call before it left it.
- A commit is retried until the journal takes it. Nothing new is published and no candle is processed meanwhile;
  `failing` says why, and is set here only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from stream.clock import Clock
from stream.errors import JournalError
from stream.telemetry import CommitFailed, Observer

log = logging.getLogger(__name__)

T = TypeVar("T")

_COMMIT_RETRY_S = 1.0


class Worker:
    """One thread per node, shared by all that use the journal or the model."""

    def __init__(self, *, clock: Clock, observe: Observer) -> None:
        self._clock = clock
        self._observe = observe
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="work")
        self._failing: str | None = None

    @property
    def failing(self) -> str | None:
        """Why a commit fails, while it is being retried; None otherwise."""
        return self._failing

    async def call(self, function: Callable[..., T], *args: object) -> T:
        """Runs `function(*args)` on the thread and returns its result; its exceptions are raised to the caller."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def commit(self, store: Callable[[], T], failure: JournalError | None = None) -> T:
        """Calls `store` until it raises no `JournalError`, and returns its result. `failure` is the error of a first
        attempt that was made elsewhere."""
        while True:
            if failure is not None:
                if self._failing is None:
                    log.error("%s; retrying, and nothing new is published until it can be written", failure)
                self._failing = str(failure)
                self._observe(CommitFailed(str(failure)))
                await self._clock.sleep(_COMMIT_RETRY_S)
            try:
                stored = await self.call(store)
            except JournalError as error:
                failure = error
                continue
            if self._failing is not None:
                log.info("the journal can be written again")
                self._failing = None
            return stored

    def close(self) -> None:
        """Waits until the current call has ended; none may follow."""
        self._thread.shutdown()
