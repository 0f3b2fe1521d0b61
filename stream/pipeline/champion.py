"""Champion: has the model of the data directory take over when its file becomes another one.

The node goes on with the model that it serves until the other's states are there, and if the other cannot be used. What
waits, or why it cannot be used, is a remark of the node's state.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from stream.clock import Clock
from stream.core.forecasting.contract import ContractError, Model
from stream.errors import JournalError
from stream.pipeline.processing import Processor
from stream.pipeline.succession import Change, Successor

log = logging.getLogger(__name__)

_LOOK_S = 2.0
_REASON = "the data directory's champion has changed"


class Champion:
    """Looks for another model every two seconds, and has it take over."""

    def __init__(
        self,
        processor: Processor,
        *,
        look: Callable[[], Change | None],
        clock: Clock,
        replaced: Callable[[Model], None],
        publish_state: Callable[[], None],
    ) -> None:
        """`look()` returns what is there now if that has changed since the call before, else None. It raises
        `ContractError` if what is there cannot be used. `replaced` receives each new model once it has taken over;
        `publish_state` is called when the processor's remark about it has changed."""
        self._processor = processor
        self._look = look
        self._clock = clock
        self._replaced = replaced
        self._publish_state = publish_state

    async def run(self) -> None:
        while True:
            await self._clock.sleep(_LOOK_S)
            try:
                change = await asyncio.to_thread(self._look)
            except ContractError as error:
                present = self._processor.model.version
                self._remark(f"{error}; model {present} goes on")
                log.error("%s", self._processor.successor, extra={"model": present})
                continue
            if change is not None and change.model is not None:
                await self._take_over(change.model)

    async def _take_over(self, successor: Successor) -> None:
        """Has the successor take over, however often the journal cannot be read or written at first."""
        processor, model = self._processor, successor.predictor.model
        if model.version == processor.model.version:
            # The former file is back.
            self._remark(None)
            return
        former = processor.model.version
        self._remark(f"model {model.version} waits until its state is computed; {former} goes on until then")
        log.info("%s", processor.successor, extra={"model": former, "successor": model.version})
        while True:
            try:
                await processor.succeed(successor, await processor.prepare(successor), _REASON)
            except JournalError as error:
                log.warning("model %s has to wait: %s", model.version, error, extra={"successor": model.version})
                await self._clock.sleep(_LOOK_S)
                continue
            break
        self._remark(None)
        self._replaced(model)
        extra = {"model": model.version, "former": former}
        log.info("model %s forecasts from now on, in place of %s", model.version, former, extra=extra)

    def _remark(self, sentence: str | None) -> None:
        self._processor.successor = sentence
        self._publish_state()
