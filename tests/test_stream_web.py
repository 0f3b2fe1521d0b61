"""stream.web: a real app on a real socket, and nothing of the process touched."""

import logging
import signal
import socket
from contextlib import asynccontextmanager

import httpx
import pytest
from litestar import Litestar, get

from stream import web


@get("/hello")
async def hello() -> dict[str, str]:
    return {"hello": "world"}


def client(base_url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=base_url, trust_env=False)


def app() -> Litestar:
    return Litestar([hello], openapi_config=None, logging_config=None)


async def test_serves_on_a_free_port_and_frees_it_afterwards():
    sock = web.bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    async with web.serve(app(), sock) as base_url, client(base_url) as http:
        assert base_url == f"http://127.0.0.1:{port}"
        assert (await http.get("/hello")).json() == {"hello": "world"}
    web.bind("127.0.0.1", port).close()


def test_a_taken_port_is_one_line_that_names_it():
    with web.bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(web.PortInUseError) as caught:
            web.bind("127.0.0.1", port)
    assert str(caught.value) == f"127.0.0.1:{port} is in use by another program"


def test_another_error_of_bind_stays_what_it_is():
    with pytest.raises(OSError) as caught:
        web.bind("192.0.2.1", 0)  # reserved for documentation: no machine has it
    assert not isinstance(caught.value, web.PortInUseError)


def test_small_writes_are_not_held_back():
    """asyncio disables Nagle's algorithm only on sockets that name their protocol."""
    with web.bind("127.0.0.1", 0) as sock:
        assert sock.proto == socket.IPPROTO_TCP


async def test_signal_handlers_and_log_handlers_stay_ours():
    before = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), list(logging.getLogger().handlers))
    async with web.serve(app(), web.bind("127.0.0.1", 0)) as base_url, client(base_url) as http:
        await http.get("/hello")
        now = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), list(logging.getLogger().handlers))
        assert now == before
        assert not logging.getLogger("uvicorn").handlers


async def test_lifespan_brackets_the_block():
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(_: Litestar):
        events.append("up")
        yield
        events.append("down")

    application = Litestar([hello], lifespan=[lifespan], openapi_config=None, logging_config=None)
    async with web.serve(application, web.bind("127.0.0.1", 0)):
        assert events == ["up"]
    assert events == ["up", "down"]


async def test_an_app_that_cannot_start_is_an_error_and_not_the_end_of_the_process():
    async def broken() -> None:
        raise RuntimeError("no database")

    application = Litestar([hello], on_startup=[broken], openapi_config=None, logging_config=None)
    sock = web.bind("127.0.0.1", 0)
    with pytest.raises(web.AppStartError):
        async with web.serve(application, sock):
            raise AssertionError("served a broken app")
    assert sock.fileno() == -1


async def test_an_error_in_the_block_comes_out_as_it_went_in():
    with pytest.raises(KeyError, match="mine"):
        async with web.serve(app(), web.bind("127.0.0.1", 0)):
            raise KeyError("mine")


async def test_an_idle_keepalive_connection_does_not_hold_up_the_end():
    async with client("http://127.0.0.1") as http, web.serve(app(), web.bind("127.0.0.1", 0)) as base_url:
        await http.get(f"{base_url}/hello")
