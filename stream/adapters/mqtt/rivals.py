"""Other nodes as the broker remembers them: who is alive and publishes what we would publish.

This is courtesy, no lock: two nodes that look at the same moment see nobody. What then overlaps is harmless, because
equal candles have equal ids and equal values. What a node says of itself is retained, and the broker's word for one
that vanished is `lost`; a node whose broker died with it stays alive here until its topic is cleared.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import aiomqtt
import msgspec

from stream.adapters.mqtt.client import Client
from stream.core.messages.topics import ROOT, node_topic
from stream.errors import RefusedError

log = logging.getLogger(__name__)

#: A broker sends what it retains at once after a subscription, and does not say when that was all.
_QUIET_S = 0.25
#: However much it has to say.
_LOOK_S = 2.0
#: How long a node that vanished may take to come back before another takes its place.
_GRACE_S = 3.0
#: Why nothing can be seen where a subscription is not acknowledged.
NO_ANSWER = "it does not answer a subscription"
_GONE = ("stopped", "lost")
_PREFIX = f"{ROOT}/node/"
_TOPICS = (node_topic("+", "state"), node_topic("+", "info"))


class Rivals:
    """What is known of the other nodes on one connection."""

    def __init__(self, instance: str, symbols: Sequence[str], *, session: str = "", since_ms: int = 0) -> None:
        """`session` and `since_ms` (wall clock) are what this process says of itself."""
        self._instance = instance
        self._session, self._since_ms = session, since_ms
        #: The session that the broker names under our instance, ours aside, and since when; None where there is none.
        self.under_our_name: str | None = None
        self._later = False
        self._symbols = tuple(symbols)
        self._states: dict[str, str] = {}
        self._published: dict[str, tuple[str, ...]] = {}

    def hear(self, topic: str, payload: bytes) -> None:
        """A message of `node/+/state` or `node/+/info`, whoever wrote it."""
        name, _, leaf = topic.removeprefix(_PREFIX).partition("/")
        try:
            message: Any = msgspec.json.decode(payload) if payload else {}
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return
        if not isinstance(message, dict):
            return
        if name == self._instance:
            self._hear_our_name(leaf, message)
            return
        if leaf == "state":
            self._states[name] = str(message.get("state", "stopped"))
        elif isinstance(symbols := message.get("symbols"), list):
            self._published[name] = tuple(str(symbol) for symbol in symbols)

    def _hear_our_name(self, leaf: str, message: dict[str, Any]) -> None:
        """What another process said under our name: a later one has taken it, one from before is our own past."""
        since, session = message.get("since"), message.get("session")
        if leaf != "state" or not isinstance(since, int):
            return
        ours = session == self._session
        self.under_our_name = None if ours else str(session)
        self._later = not ours and since > self._since_ms

    def alive(self) -> dict[str, list[str]]:
        """Other live nodes, each with the symbols that are ours too."""
        shared = {
            name: [symbol for symbol in self._published.get(name, ()) if symbol in self._symbols]
            for name, state in sorted(self._states.items())
            if state not in _GONE
        }
        return {name: symbols for name, symbols in shared.items() if symbols}

    def refuse_usurper(self, predecessor: str | None = None) -> None:
        """`RefusedError` where another process has taken our name since we spoke. Not every broker says so when it
        ends a connection in favour of another one. `predecessor` had spoken before us: whatever its clock said, it is
        our own past."""
        if self._later and self.under_our_name != predecessor:
            raise RefusedError(
                f"another node has connected to the broker under the name {self._instance}: "
                "give each node its own --instance"
            )

    def refuse(self) -> None:
        """`RefusedError` where somebody publishes what we would."""
        for name, symbols in self.alive().items():
            raise RefusedError(
                f"the node {name} is alive on this broker and publishes {','.join(symbols)} too: stop it, choose other "
                f"--symbols, or wait for its end with --standby; if it is gone for good, clear the retained "
                f"{node_topic(name, 'state')}"
            )

    async def look(self, client: Client) -> str | None:
        """Listens until the broker has said what it retains of the nodes; why it does not, where it does not."""
        try:
            await client.subscribe([(topic, 0) for topic in _TOPICS])
        except aiomqtt.MqttError:
            if client.ended:
                raise
            return NO_ANSWER
        if client.denials:
            return ", ".join(dict.fromkeys(client.denials))
        now_s = asyncio.get_running_loop().time
        latest_s = now_s() + _LOOK_S
        quiet_s = now_s() + _QUIET_S
        while (wait_s := min(quiet_s, latest_s) - now_s()) > 0:
            message = await self._next(client, wait_s)
            # What others say meanwhile was not retained, and may never cease.
            if message is not None and message.retain:
                quiet_s = now_s() + _QUIET_S
        return None

    async def look_once(self, client: Client) -> str | None:
        """`look`, and no ear for what comes later."""
        blind = await self.look(client)
        # One by one: the embedded broker acknowledges each topic of a list by itself, which aiomqtt does not expect.
        for topic in _TOPICS if blind is None else ():
            try:
                await client.unsubscribe(topic)
            except aiomqtt.MqttError:
                if client.ended:
                    raise
                # It goes on telling us; what we hear is dropped.
                break
        return blind

    async def _next(self, client: Client, wait_s: float | None) -> aiomqtt.Message | None:
        """Hears one message; None where none comes in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                async for message in client.messages:
                    self.hear(str(message.topic), bytes(message.payload or b""))
                    return message
        return None

    async def all_gone(self, client: Client) -> None:
        """Returns once nobody has published ours for the length of the grace."""
        if (blind := await self.look(client)) is not None:
            log.warning("standing by: the broker does not let us see other nodes (%s): going on without", blind)
            return
        now_s = asyncio.get_running_loop().time
        logged: dict[str, list[str]] = {}
        gone_s: float | None = None
        while True:
            alive = self.alive()
            if alive != logged:
                for name, symbols in alive.items():
                    log.info("standing by: the node %s publishes %s", name, ",".join(symbols))
            if alive:
                gone_s = None
            elif gone_s is None:
                # Who was there may come back.
                gone_s = now_s() + (_GRACE_S if logged else 0.0)
            logged = alive
            wait_s = None if gone_s is None else gone_s - now_s()
            if wait_s is not None and wait_s <= 0:
                return
            await self._next(client, wait_s)
