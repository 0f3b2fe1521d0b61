"""One HTTP server inside our own event loop: bind first, then serve, and leave the signals alone.

The socket is bound before anything else starts, so that a taken port is one line of text and not a
half-started process. The server never touches signal handlers or logging: the process owns both.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn

#: How long a request in flight may hold up a shutdown, in whole seconds (uvicorn takes no fractions).
GRACE_S = 1


class PortInUseError(OSError):
    """Somebody else listens on that address."""


class AppStartError(RuntimeError):
    """The application refused to start; its own error is in the log."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. `PortInUseError` names a taken address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio switches Nagle's algorithm off only where it reads TCP
    # there; socket.create_server leaves 0, and every second small write waits 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere the option would let two servers share the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(128)
        return sock
    except OSError as error:
        sock.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise PortInUseError(f"{address(host, port)} is in use by another program") from None


def address(host: str, port: int) -> str:
    """`host:port` as a URL wants it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bound_address(sock: socket.socket) -> str:
    """`host:port` that a bound socket really has."""
    host, port = sock.getsockname()[:2]
    return address(host, port)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()
        self.must_stop = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn would replace the process's handlers and raise the signal again when it leaves.
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            # Left alone it would go straight through the event loop and end the process.
            raise AppStartError("the HTTP application could not start") from None
        self.is_up.set()

    async def main_loop(self) -> None:
        # uvicorn polls ten times a second for its end; an idle daemon need only renew the date header.
        while not self.must_stop.is_set():
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.must_stop.wait()


@contextlib.asynccontextmanager
async def serve(app: Any, sock: socket.socket) -> AsyncIterator[str]:
    """Serves the ASGI `app` on `sock` for the length of the block; gives its base URL.

    The app must speak the lifespan protocol. On leaving, the socket is closed and requests in flight
    get `GRACE_S`. `AppStartError` if the app's start-up failed.
    """
    base_url = f"http://{bound_address(sock)}"
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        # Left out, these two are read from WEB_CONCURRENCY and FORWARDED_ALLOW_IPS, which are not meant for us.
        workers=1,
        proxy_headers=False,
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[sock]), name=f"http {base_url}")
    starting = asyncio.create_task(server.is_up.wait())
    try:
        await asyncio.wait({running, starting}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            yield base_url
    finally:
        starting.cancel()
        server.must_stop.set()
        try:
            await running
        finally:
            sock.close()
