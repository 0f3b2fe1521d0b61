"""What the broker retains on our topics is read before anything is published on a connection.

Ids that another node has used for another value are learnt so. Who may publish and not subscribe publishes all the
same: that is told once, and then nothing is known of others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import aiomqtt

log = logging.getLogger(__name__)

#: A broker sends what it retains at once after a subscription, and does not say when that was all.
_QUIET_S = 0.25
#: However much it has to say.
_LONGEST_S = 5.0
#: Topics in one packet.
_AT_ONCE = 50
#: Connections that a broker may end, or leave without an answer, before it is no longer asked.
_ATTEMPTS = 2


class RetainedTopicsReader:
    """One per node: reads `topics` on a connection and hands them to `learn`."""

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
            # Acknowledged behind what the broker sends for the first ones: on a busy machine that comes late.
            await client.subscribe(self._topics[0], 0)
            found = await self._listen(client)
            # One by one: the embedded broker acknowledges each topic of a list by itself.
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
