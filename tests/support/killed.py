"""`volcast` that kills itself at a named step: `python killed.py STEP before|after N COMMAND ...`.

The steps of a candle: receive (from the feed), commit (to the journal), publish (the packet is sent), acknowledge
(the broker's answer is received), prune (the outbox drops the event). The product itself has no code for this.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from stream import node
from stream.adapters.feed.client import BinanceFeed
from stream.adapters.journal.store import SqliteJournal
from stream.adapters.mqtt import broker
from stream.core.market.binance import KlineUpdate
from stream.ports import FeedListener


class Trap:
    def __init__(self, step: str, moment: str, number: int) -> None:
        self._where, self._left = (step, moment), number

    def reached(self, step: str, moment: str) -> None:
        if (step, moment) == self._where:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


def main(step: str, moment: str, number: str, *command: str) -> None:
    trap = Trap(step, moment, int(number))

    class Listener:
        def __init__(self, listener: FeedListener) -> None:
            self._listener = listener

        def __getattr__(self, name: str) -> Any:
            return getattr(self._listener, name)

        async def closed(self, update: KlineUpdate, received_at_s: float) -> None:
            trap.reached("receive", "before")
            await self._listener.closed(update, received_at_s)
            trap.reached("receive", "after")

    class Feed(BinanceFeed):
        async def run(self, listener: FeedListener) -> None:
            await super().run(Listener(listener))

    class Journal(SqliteJournal):
        def commit(self, records: Any) -> list[int]:
            trap.reached("commit", "before")
            seqs = super().commit(records)
            trap.reached("commit", "after")
            return seqs

        def acknowledge(self, seqs: Any) -> None:
            trap.reached("prune", "before")
            super().acknowledge(seqs)
            trap.reached("prune", "after")

    class Client(broker._Client):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._events_written = False
            write = self._client.loop_write

            def loop_write() -> Any:
                done = write()
                if self._events_written:
                    trap.reached("publish", "after")
                self._events_written = False
                return done

            self._client.loop_write = loop_write

        def send(self, topic: str, payload: bytes, **options: Any) -> Any:
            if "/event/" in topic:
                trap.reached("publish", "before")
                self._events_written = True
            return super().send(topic, payload, **options)

        def _on_publish(self, client: Any, userdata: Any, mid: int, *answer: Any) -> None:
            event = "/event/" in self._client._out_messages[mid].topic
            if event:
                trap.reached("acknowledge", "before")
            super()._on_publish(client, userdata, mid, *answer)
            if event:
                trap.reached("acknowledge", "after")

    node.BinanceFeed, node.SqliteJournal, broker._Client = Feed, Journal, Client  # type: ignore[misc]
    sys.argv = ["volcast", *command]
    from stream.__main__ import main as command_line

    command_line()


if __name__ == "__main__":
    main(*sys.argv[1:])
