"""One HTTP server inside the process's own event loop: bind first, then serve, and leave the signals alone.

The socket is bound before anything else starts, so that a taken port is one line of text and not a
half-started process. The server never touches signal handlers or logging: the process owns both. Nor can clients that
send nothing, or do not read, use up the process's file handles: the number of connections and their idle time are
limited.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from stream.errors import RefusedError

#: How long a request in flight may hold up a shutdown, in whole seconds (uvicorn takes no fractions).
GRACE_S = 1
#: Connections at a time, and files that the process may open for each of them.
_CONNECTIONS, _SHARE_OF_FILES = 64, 4
#: How long a client may take to send its request, and how long it may leave its answer unread.
_REQUEST_S, _ANSWER_S = 10.0, 60.0
#: Connections accepted before the limit is applied to any: a burst must not exceed it by much.
_BACKLOG = 32


class PortInUseError(RefusedError, OSError):
    """Another program listens on that address."""


class AppStartError(RuntimeError):
    """The application refused to start; its own error is in the log."""


def bind(host: str, port: int) -> socket.socket:
    """Returns a listening socket; port 0 takes any free one. Raises `PortInUseError`, which names a taken address."""
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
    """Returns `host:port` as a URL has it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bound_address(sock: socket.socket) -> str:
    """Returns the `host:port` that a bound socket really has."""
    host, port = sock.getsockname()[:2]
    return address(host, port)


def _most_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _CONNECTIONS if files == resource.RLIM_INFINITY else max(1, min(_CONNECTIONS, files // _SHARE_OF_FILES))


class _Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's connection, which knows for how long its client has been idle.

    Where there are too many, the oldest that waits for a request is closed in favour of the newest, so that a health
    check is always answered.
    """

    #: Since when the client has not read what it is sent; None while it reads.
    deaf_since_s: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        #: When it was opened, or its last answer was complete; bytes that trickle in do not count.
        self.since_s: float = self.loop.time()
        others = [c for c in self.connections if c is not self and not c.transport.is_closing()]
        if len(others) >= _most_connections():
            min(others, key=lambda c: (c.busy, c.since_s)).transport.abort()

    def on_response_complete(self) -> None:
        self.since_s = self.loop.time()
        super().on_response_complete()

    @property
    def busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def pause_writing(self) -> None:
        self.deaf_since_s = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self.deaf_since_s = None
        super().resume_writing()

    def end_if_stuck(self) -> None:
        now_s = self.loop.time()
        mute = not self.busy and now_s - self.since_s > _REQUEST_S
        deaf = self.deaf_since_s is not None and now_s - self.deaf_since_s > _ANSWER_S
        if mute or deaf:
            self.transport.abort()


def _answering_head(app: Any) -> Any:
    """Returns an app that answers HEAD like GET everywhere; uvicorn omits the body."""

    async def answer(
        scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        await app({**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope, receive, send)

    return answer


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
            # Uncaught, it would go straight through the event loop and end the process.
            raise AppStartError("the HTTP application could not start") from None
        self.is_up.set()

    async def main_loop(self) -> None:
        # uvicorn checks ten times a second whether to stop; an idle daemon need only renew the date header.
        while not self.must_stop.is_set():
            await self.on_tick(0)
            for connection in list(self.server_state.connections):
                connection.end_if_stuck()  # type: ignore[union-attr]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.must_stop.wait()


@contextlib.asynccontextmanager
async def serve(app: Any, sock: socket.socket) -> AsyncIterator[str]:
    """Serves the ASGI `app` on `sock` for the length of the block, and yields its base URL.

    The app must support the lifespan protocol. On leaving, the socket is closed and requests in flight
    get `GRACE_S`. Raises `AppStartError` if the app's start-up failed.
    """
    base_url = f"http://{bound_address(sock)}"
    config = uvicorn.Config(
        _answering_head(app),
        http=_Connection,
        backlog=_BACKLOG,
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
