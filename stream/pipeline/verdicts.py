"""Verdicts: publishes what a retraining, which is another process, has decided about a challenger.

Each is published once, for each of the node's symbols that it judged; the journal knows which were.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from stream.clock import Clock
from stream.core.messages import judged, recording
from stream.core.messages.judged import Verdict
from stream.core.messages.records import Outgoing, Retained
from stream.errors import JournalError, RefusedError
from stream.pipeline.worker import Worker
from stream.ports import Journal

log = logging.getLogger(__name__)

_LOOK_S = 5.0


class Verdicts:
    """`read()` returns all verdicts, oldest first; it raises `RefusedError` if it cannot."""

    def __init__(
        self,
        read: Callable[[], Sequence[Verdict]],
        *,
        symbols: Sequence[str],
        journal: Journal,
        worker: Worker,
        clock: Clock,
        offer: Callable[[Sequence[Outgoing], Sequence[Retained]], None],
    ) -> None:
        self._read = read
        self._symbols = tuple(symbols)
        self._journal = journal
        self._worker = worker
        self._clock = clock
        self._offer = offer
        self._damage: str | None = None

    async def run(self) -> None:
        known: set[str] | None = None
        while True:
            await self._clock.sleep(_LOOK_S)
            try:
                found = await asyncio.to_thread(self._read)
                if known is None:
                    known = await self._worker.call(self._journal.verdicts)
                for verdict in found:
                    if verdict.id not in known:
                        await self._publish(verdict)
                        known.add(verdict.id)
            except RefusedError as error:
                if str(error) != self._damage:
                    log.error("no verdict is published: %s", error)
                self._damage = str(error)
            except JournalError as error:
                log.warning("a verdict has to wait: %s", error)

    async def _publish(self, verdict: Verdict) -> None:
        now_ms = self._clock.wall_ms()
        messages = [m for m in judged.events(verdict, now_ms) if m.symbol in self._symbols]
        events = [recording.event("model.judged", message) for message in messages]
        seqs = await self._worker.call(self._journal.post_verdict, verdict.id, events)
        self._offer([Outgoing(seq, *event) for seq, event in zip(seqs, events, strict=True)], ())
        log.info("model %s: %s", verdict.challenger, verdict.outcome, extra={"model": verdict.challenger})
