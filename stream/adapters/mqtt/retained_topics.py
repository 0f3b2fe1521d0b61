"""Reads the retained messages on our topics before anything is published on a connection.

They show which ids another node has used for another value. A node that may publish but not subscribe publishes all
the same: this is logged once, and then nothing is known of other nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import aiomqtt

log = logging.getLogger(__name__)

#: A broker sends its retained messages right after a subscription, and does not mark the last: this silence does.
_QUIET_S = 0.25
#: The longest wait, however many it sends.
_LONGEST_S = 5.0
#: Topics in one SUBSCRIBE packet.
_AT_ONCE = 50
#: How many connections in a row the broker may end, or leave without an answer, before it is no longer asked.
_ATTEMPTS = 2


class RetainedTopicsReader:
    """Reads the retained messages of `topics` on each connection and passes them to `learn`. One per node."""

    def __init__(self, topics: Sequence[str], learn: Callable[[Mapping[str, bytes]], Awaitable[None]]) -> None:
        self._topics = list(topics)
        self._learn = learn
        self._failed = 0
        self._warned = False

    async def __call__(self, client: aiomqtt.Client) -> None:
        if self._failed < _ATTEMPTS:
            await self._learn(await self._read(client))

    async def _read(self, client: aiomqtt.Client) -> dict[str, bytes]:
        try:
            for first in range(0, len(self._topics), _AT_ONCE):
                codes = await client.subscribe([(topic, 0) for topic in self._topics[first : first + _AT_ONCE]])
                if refused := [str(code) for code in codes if getattr(code, "is_failure", False)]:
                    self._warn_once(refused[0])
            # This is acknowledged after the retained messages of the first topics, which come late on a busy machine.
            await client.subscribe(self._topics[0], 0)
            found = await self._listen(client)
            # One by one: the embedded broker acknowledges each topic of a list separately.
            for topic in self._topics:
                await client.unsubscribe(topic)
        except aiomqtt.MqttError as error:
            self._failed += 1
            if self._failed == _ATTEMPTS:
                self._warn_once(str(error))
            raise
        self._failed = 0
        return found

    async def _listen(self, client: aiomqtt.Client) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        now_s = asyncio.get_running_loop().time
        latest_s, quiet_s = now_s() + _LONGEST_S, now_s() + _QUIET_S
        wanted = set(self._topics)
        while wanted - found.keys() and (wait_s := min(latest_s, quiet_s) - now_s()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    async for message in client.messages:
                        topic = str(message.topic)
                        if message.retain and topic in wanted:
                            found[topic], quiet_s = bytes(message.payload or b""), now_s() + _QUIET_S
                        break
        return found

    def _warn_once(self, reason: str) -> None:
        if not self._warned:
            log.warning(
                "the broker does not let us read what is retained on our topics (%s): a revision that another node has "
                "used may be used again",
                reason,
            )
            self._warned = True
