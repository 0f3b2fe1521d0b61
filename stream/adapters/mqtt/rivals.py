"""Other nodes, by the broker's retained messages: which are alive and publish what this node would publish.

This is a courtesy and no lock: two nodes that look at the same moment do not see each other. Their overlap is harmless,
because equal candles have equal ids and equal values. A node's state is retained, and its will makes it `lost` when it
vanishes; a node whose broker died with it counts as alive until its topic is cleared.
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

#: A broker sends its retained messages right after a subscription, and does not mark the last: this silence does.
_QUIET_S = 0.25
#: The longest wait, however many it sends.
_LOOK_S = 2.0
#: How long a node that vanished may take to come back before another takes its place.
_GRACE_S = 3.0
#: The reason that `look` returns where a subscription is not acknowledged.
NO_ANSWER = "it does not answer a subscription"
_GONE = ("stopped", "lost")
_PREFIX = f"{ROOT}/node/"
_TOPICS = (node_topic("+", "state"), node_topic("+", "info"))


class Rivals:
    """What is known of the other nodes on one connection."""

    def __init__(self, instance: str, symbols: Sequence[str], *, session: str = "", since_ms: int = 0) -> None:
        """`session` and `since_ms` (wall clock) are what this process publishes in its own state."""
        self._instance = instance
        self._session, self._since_ms = session, since_ms
        #: Another session whose state is retained under our instance, and whether it began after ours; None without.
        self.under_our_name: str | None = None
        self._later = False
        self._symbols = tuple(symbols)
        self._states: dict[str, str] = {}
        self._published: dict[str, tuple[str, ...]] = {}

    def receive(self, topic: str, payload: bytes) -> None:
        """Takes in a message of `node/+/state` or `node/+/info`; ignores one that is malformed."""
        name, _, leaf = topic.removeprefix(_PREFIX).partition("/")
        try:
            message: Any = msgspec.json.decode(payload) if payload else {}
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return
        if not isinstance(message, dict):
            return
        if name == self._instance:
            self._receive_our_name(leaf, message)
            return
        if leaf == "state":
            self._states[name] = str(message.get("state", "stopped"))
        elif isinstance(symbols := message.get("symbols"), list):
            self._published[name] = tuple(str(symbol) for symbol in symbols)

    def _receive_our_name(self, leaf: str, message: dict[str, Any]) -> None:
        """Takes in a message under our name: a later session has taken the name, an earlier one is our own past."""
        since, session = message.get("since"), message.get("session")
        if leaf != "state" or not isinstance(since, int):
            return
        ours = session == self._session
        self.under_our_name = None if ours else str(session)
        self._later = not ours and since > self._since_ms

    def alive(self) -> dict[str, list[str]]:
        """Returns the other live nodes that publish symbols of ours, each with those symbols."""
        shared = {
            name: [symbol for symbol in self._published.get(name, ()) if symbol in self._symbols]
            for name, state in sorted(self._states.items())
            if state not in _GONE
        }
        return {name: symbols for name, symbols in shared.items() if symbols}

    def refuse_usurper(self, predecessor: str | None = None) -> None:
        """Raises `RefusedError` where another process has taken our name since we first published.

        Not every broker gives a takeover as the reason when it ends a connection in favour of another one. The session
        `predecessor` had published before us: whatever its clock showed, it is our own past.
        """
        if self._later and self.under_our_name != predecessor:
            raise RefusedError(
                f"another node has connected to the broker under the name {self._instance}: "
                "give each node its own --instance"
            )

    def refuse(self) -> None:
        """Raises `RefusedError` where another live node publishes symbols of ours."""
        for name, symbols in self.alive().items():
            raise RefusedError(
                f"the node {name} is alive on this broker and publishes {','.join(symbols)} too: stop it, choose other "
                f"--symbols, or wait for its end with --standby; if it is gone for good, clear the retained "
                f"{node_topic(name, 'state')}"
            )

    async def look(self, client: Client) -> str | None:
        """Reads what the broker retains about the nodes. Returns None, or the reason why they cannot be seen."""
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
            # What others publish meanwhile is not retained, and may never cease.
            if message is not None and message.retain:
                quiet_s = now_s() + _QUIET_S
        return None

    async def look_once(self, client: Client) -> str | None:
        """Does what `look` does, and unsubscribes from what comes later."""
        blind = await self.look(client)
        # One by one: the embedded broker acknowledges each topic of a list separately, which aiomqtt does not expect.
        for topic in _TOPICS if blind is None else ():
            try:
                await client.unsubscribe(topic)
            except aiomqtt.MqttError:
                if client.ended:
                    raise
                # The broker goes on sending; what arrives is dropped.
                break
        return blind

    async def _next(self, client: Client, wait_s: float | None) -> aiomqtt.Message | None:
        """Takes in one message and returns it; None where none arrives in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                async for message in client.messages:
                    self.receive(str(message.topic), bytes(message.payload or b""))
                    return message
        return None

    async def all_gone(self, client: Client) -> None:
        """Waits until no other live node publishes our symbols; after the last one, also for the grace period.

        Returns at once, with a warning, where the other nodes cannot be seen.
        """
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
                # A node that was there may come back.
                gone_s = now_s() + (_GRACE_S if logged else 0.0)
            logged = alive
            wait_s = None if gone_s is None else gone_s - now_s()
            if wait_s is not None and wait_s <= 0:
                return
            await self._next(client, wait_s)
