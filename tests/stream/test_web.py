"""stream.web: a real app on a real socket, and no change to the state of the process."""

import asyncio
import contextlib
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


# --- clients that send nothing, or do not read -----------------------------------------------------------------


async def idle_client(url: str, first_words: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(first_words)
    return reader, writer


@pytest.mark.fault(48)
@pytest.mark.parametrize("first_words", [b"", b"GET /hello HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_hundreds_of_idle_clients_leave_room_for_one_that_asks(first_words: bytes):
    async with web.serve(app(), web.bind("127.0.0.1", 0)) as base_url, client(base_url) as http:
        clients = [await idle_client(base_url, first_words) for _ in range(300)]
        assert (await http.get("/hello", timeout=30)).status_code == 200
        gone = [asyncio.create_task(reader.read()) for reader, _ in clients]
        # The oldest were closed; the server holds no more than its limit.
        await asyncio.gather(*gone[:230], return_exceptions=True)
        for task, (_, writer) in zip(gone, clients, strict=True):
            task.cancel()
            writer.close()


@pytest.mark.fault(48)
async def test_a_client_that_never_says_what_it_wants_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web, "_REQUEST_S", 0.2)
    async with web.serve(app(), web.bind("127.0.0.1", 0)) as base_url:
        reader, writer = await idle_client(base_url, b"GET /hello HTTP/1.1\r\n")

        async def trickle() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"X: y\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        await trickling


@pytest.mark.fault(48)
async def test_a_client_that_does_not_read_its_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web, "_ANSWER_S", 0.2)
    ended = asyncio.Event()

    class Watched(web._Connection):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            ended.set()

    monkeypatch.setattr(web, "_Connection", Watched)

    @get("/large")
    async def large() -> bytes:
        return bytes(50_000_000)

    application = Litestar([large], openapi_config=None, logging_config=None)
    async with web.serve(application, web.bind("127.0.0.1", 0)) as base_url:
        port = int(base_url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as deaf:
            await asyncio.to_thread(deaf.sendall, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            await ended.wait()


async def test_head_is_answered_like_get_without_a_body():
    async with web.serve(app(), web.bind("127.0.0.1", 0)) as base_url, client(base_url) as http:
        for path, status in (("/hello", 200), ("/nothing", 404)):
            asked, answered = await http.head(path), await http.get(path)
            assert (asked.status_code, asked.content) == (status, b"")
            assert asked.headers["content-length"] == answered.headers["content-length"]
            assert asked.headers["content-type"] == answered.headers["content-type"]
