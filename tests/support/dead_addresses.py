"""A name with a dozen dead addresses and a last one that works; connecting to a dead one hangs."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

NAME = "many-addresses.test"
_DEAD = tuple(f"127.0.0.{n}" for n in range(2, 14))


@contextlib.contextmanager
def dead_addresses(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yields the name. Trying one address after the other would take longer than any timeout of the node: each dead one
    has a listener whose queue of unaccepted connections is full."""
    resolve = socket.getaddrinfo

    def every_address(host: Any, *args: Any, **options: Any) -> Any:
        if host not in (NAME, NAME.encode()):
            return resolve(host, *args, **options)
        return [found for address in (*_DEAD, "127.0.0.1") for found in resolve(address, *args, **options)]

    with contextlib.ExitStack() as stack:
        for address in _DEAD:
            listener = stack.enter_context(socket.socket())
            listener.bind((address, port))
            listener.listen(0)
            for _ in range(4):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex((address, port))
        monkeypatch.setattr(socket, "getaddrinfo", every_address)
        yield NAME
