"""The worker: the one thread that uses journal and model, and the retry of what must be kept.

Rules of this module:
- Journal and model are used from no other thread, so a call sees the journal as the call before it left it.
- What must be kept is tried until the journal takes it. Nothing is published and nothing moves meanwhile; `failing`
  says why, and nobody else sets it.
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
    """One per node, given to everybody who needs the journal."""

    def __init__(self, *, clock: Clock, observe: Observer) -> None:
        self._clock = clock
        self._observe = observe
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="work")
        self._failing: str | None = None

    @property
    def failing(self) -> str | None:
        """Why something that must be kept cannot be, while it is tried again."""
        return self._failing

    async def call(self, function: Callable[..., T], *args: object) -> T:
        """Runs a call on the thread; its exceptions are the caller's."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def commit(self, store: Callable[[], T], failure: JournalError | None = None) -> T:
        """Tries to store something until the journal takes it. `failure` is that of a first attempt made elsewhere."""
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
        """Waits for the call in hand; none may follow."""
        self._thread.shutdown()
