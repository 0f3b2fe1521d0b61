"""Outbound connections: the environment's proxies and authorities, and that `check` refuses what `run` refuses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from authority import Authority, openssl

from stream import node, urls
from stream.adapters import outbound
from stream.adapters.feed.client import BinanceFeed
from stream.adapters.rest.history import BinanceHistory
from stream.clock import Clock
from stream.commands import check
from stream.core.market.candle import HOUR_MS
from stream.errors import RefusedError
from stream.settings import load
from stream.telemetry import Fact, FeedConnected
from stream.testing.broker import EmbeddedBroker
from stream.testing.exchange import Exchange
from stream.testing.market import simulate

#: For the system this machine, where connections are refused at once; for the rules of proxies any other host.
HOST = "0.0.0.0"
#: The address of a proxy that does not exist.
NOBODY = "http://127.0.0.1:9"
START = 1_704_067_200_000


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or name.startswith(("SSL_CERT_", "SSLKEYLOG", "VOLCAST_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "ours", "ours")


@pytest.fixture(scope="module")
def broker_url() -> Iterator[str]:
    with EmbeddedBroker() as broker:
        yield broker.url


def proxy(url: str, **variables: str) -> str | None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        return outbound.proxy_for(urls.parse(url))


@pytest.mark.parametrize(
    ("url", "variables", "expected"),
    [
        ("https://a.example", {"HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        ("wss://a.example", {"HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        ("wss://a.example", {"HTTPS_PROXY": "http://p:1", "WSS_PROXY": "http://q:2"}, "http://q:2"),
        ("wss://a.example", {"ALL_PROXY": "http://p:3128"}, "http://p:3128"),
        ("https://a.example", {"ALL_PROXY": "socks5://s:1", "https_proxy": "p:3128"}, "http://p:3128"),
        ("https://a.example", {"HTTPS_PROXY": "", "ALL_PROXY": " http://p/ "}, "http://p:80"),
        ("https://a.example", {"HTTPS_PROXY": "https://u%40x:pw@p"}, "https://u%40x:pw@p:443"),
        ("https://a.example", {"HTTPS_PROXY": "http://token@p:1"}, "http://token:@p:1"),
        ("http://a.example", {"HTTPS_PROXY": "http://p:3128"}, None),
        ("http://a.example", {"HTTP_PROXY": "http://p:3128"}, "http://p:3128"),
        *[
            (f"{scheme}://{host}:9", {"ALL_PROXY": "socks5://p:1"}, None)
            for scheme in ("https", "wss", "http", "ws")
            for host in ("127.0.0.1", "127.8.9.1", "localhost", "LOCALHOST", "[::1]", "[::ffff:127.0.0.1]")
        ],
    ],
)
def test_which_proxy_is_meant(url: str, variables: dict[str, str], expected: str | None) -> None:
    assert proxy(url, **variables) == expected


@pytest.mark.parametrize(
    ("listed", "direct"),
    [
        ("::1", []),
        ("*", ["https://stream.example", "wss://10.1.2.3", "https://[fd00::7]"]),
        ("localhost,127.0.0.1,::1,10.0.0.0/8,.svc,.cluster.local", ["wss://10.1.2.3"]),
        ("10.0.0.0/33,fd00::/8", ["https://[fd00::7]"]),
        ("[fd00::7]", ["https://[fd00::7]"]),
        ("[fd00::7]:443", ["https://[fd00::7]"]),
        ("[fd00::7]:444", []),
        ("10.1.2.3:443", ["wss://10.1.2.3"]),
        (".example", ["https://stream.example"]),
        ("*.EXAMPLE.", ["https://stream.example"]),
        ("stream.example:443 other", ["https://stream.example"]),
        ("https://stream.example/", ["https://stream.example"]),
        ("am.example", []),
        ("[,http://[,%zz,a/b/c,::::/1,:,/", []),
    ],
)
def test_who_needs_no_proxy(listed: str, direct: list[str]) -> None:
    hosts = ["https://stream.example", "wss://10.1.2.3", "https://[fd00::7]"]
    for name in ("NO_PROXY", "no_proxy"):
        found = [url for url in hosts if proxy(url, ALL_PROXY="http://p:1", **{name: listed}) is None]
        assert found == direct


def settings_files(folder: Path, authority: Authority) -> dict[str, str]:
    """Writes the files for the table below; returns their paths by name."""
    (folder / "empty").write_text("")
    (folder / "empty-folder").mkdir()
    hashed = folder / "hashed"
    hashed.mkdir()
    (hashed / "ca.pem").write_text(authority.ca.read_text())
    openssl("rehash", hashed)
    certificate, key = authority.issue("node")
    _, other_key = authority.issue("other")
    locked = folder / "locked.key"
    openssl("ec", "-in", key, "-aes256", "-passout", "pass:geheim", "-out", locked)
    (folder / "both.pem").write_text(certificate.read_text() + key.read_text())
    return {
        "nowhere": str(folder / "nowhere" / "x"),
        "empty": str(folder / "empty"),
        "folder": str(folder / "empty-folder"),
        "hashed": str(hashed),
        "ca": str(authority.ca),
        "certificate": str(certificate),
        "key": str(key),
        "other_key": str(other_key),
        "locked": str(locked),
        "both": str(folder / "both.pem"),
    }


MQTTS = {"VOLCAST_MQTT_URL": "mqtts://127.0.0.1:9"}

#: (environment, what the refusal must name; None where the node starts)
ENVIRONMENTS: list[tuple[dict[str, str], str | None]] = [
    ({}, None),
    ({"ALL_PROXY": "socks5://127.0.0.1:9"}, "ALL_PROXY"),
    ({"all_proxy": "socks5h://u:geheim@127.0.0.1:9"}, "all_proxy"),
    ({"HTTPS_PROXY": "socks4://127.0.0.1:9"}, "HTTPS_PROXY"),
    ({"https_proxy": "ftp://127.0.0.1:9"}, "https_proxy"),
    ({"WSS_PROXY": "socks5://127.0.0.1:9"}, "WSS_PROXY"),
    ({"HTTPS_PROXY": "http://127.0.0.1:port"}, "HTTPS_PROXY"),
    ({"HTTPS_PROXY": "http://127.0.0.1:99999"}, "HTTPS_PROXY"),
    ({"HTTPS_PROXY": "http://[::1"}, "HTTPS_PROXY"),
    ({"HTTPS_PROXY": "http://u:ge#heim@127.0.0.1:9"}, "percent-encoded"),
    ({"HTTPS_PROXY": "http://u:ge/heim@127.0.0.1:9"}, "percent-encoded"),
    ({"HTTPS_PROXY": "http://127.0.0.1:9/path"}, "HTTPS_PROXY"),
    ({"HTTPS_PROXY": "http://a b"}, "HTTPS_PROXY"),
    ({"HTTPS_PROXY": "127.0.0.1:9"}, None),
    ({"HTTPS_PROXY": "http://user@127.0.0.1:9/"}, None),
    ({"HTTPS_PROXY": "https://127.0.0.1:9"}, None),
    ({"HTTPS_PROXY": "", "ALL_PROXY": "", "NO_PROXY": "", "SSL_CERT_FILE": "", "SSL_CERT_DIR": ""}, None),
    ({"ALL_PROXY": "socks5://127.0.0.1:9", "NO_PROXY": f"::1,{HOST}"}, None),
    ({"ALL_PROXY": "socks5://127.0.0.1:9", "NO_PROXY": "0.0.0.0/8"}, None),
    ({"ALL_PROXY": "socks5://127.0.0.1:9", "HTTPS_PROXY": NOBODY}, None),
    ({"HTTPS_PROXY": NOBODY, "NO_PROXY": "localhost,127.0.0.1,::1,10.0.0.0/8,[fd00::1]:8,["}, None),
    ({"SSL_CERT_FILE": "{nowhere}"}, "SSL_CERT_FILE {nowhere}"),
    ({"SSL_CERT_FILE": "{empty}"}, "SSL_CERT_FILE {empty}"),
    ({"SSL_CERT_FILE": "{key}"}, "SSL_CERT_FILE {key}"),
    ({"SSL_CERT_FILE": "{folder}"}, "SSL_CERT_FILE {folder}"),
    ({"SSL_CERT_FILE": "{ca}"}, None),
    ({"SSL_CERT_DIR": "{nowhere}"}, "SSL_CERT_DIR {nowhere}"),
    ({"SSL_CERT_DIR": "{folder}"}, "SSL_CERT_DIR {folder}"),
    ({"SSL_CERT_DIR": "{hashed}"}, None),
    ({"SSL_CERT_FILE": "{ca}", "SSL_CERT_DIR": "{nowhere}"}, None),
    ({"SSLKEYLOGFILE": "{nowhere}"}, "SSLKEYLOGFILE {nowhere}"),
    ({"WEB_CONCURRENCY": "auto"}, None),
    ({"VOLCAST_HTTP_HOST": "nowhere.invalid."}, "--http-host"),
    ({"VOLCAST_HTTP_HOST": "[::1]"}, None),
    ({**MQTTS, "VOLCAST_MQTT_CA_FILE": "{nowhere}"}, "--mqtt-ca-file {nowhere}"),
    ({**MQTTS, "VOLCAST_MQTT_CERT_FILE": "{certificate}", "VOLCAST_MQTT_KEY_FILE": "{other_key}"}, "not the cert"),
    ({**MQTTS, "VOLCAST_MQTT_CERT_FILE": "{certificate}", "VOLCAST_MQTT_KEY_FILE": "{locked}"}, "encrypted"),
    ({**MQTTS, "VOLCAST_MQTT_CERT_FILE": "{certificate}"}, "--mqtt-cert-file {certificate}"),
    ({**MQTTS, "VOLCAST_MQTT_CERT_FILE": "{nowhere}"}, "--mqtt-cert-file {nowhere}"),
    ({**MQTTS, "VOLCAST_MQTT_CERT_FILE": "{both}", "SSL_CERT_FILE": "{ca}"}, None),
]


@pytest.mark.fault(52)
@pytest.mark.parametrize(("variables", "names"), ENVIRONMENTS, ids=lambda case: str(case)[:60])
def test_check_refuses_exactly_what_run_refuses(
    variables: dict[str, str],
    names: str | None,
    authority: Authority,
    broker_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = settings_files(tmp_path, authority)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(**files))
    monkeypatch.chdir(tmp_path)
    environment = {"VOLCAST_MQTT_URL": broker_url, **os.environ}
    settings = load({"ws_url": f"wss://{HOST}:9", "rest_url": f"https://{HOST}:9", "http_port": "0"}, environment)

    async def run() -> None:
        stop = asyncio.Event()

        async def alongside(running: node.Node) -> None:
            stop.set()

        await node.run(settings, stop, alongside=alongside)

    refusals = []
    for command in (lambda: asyncio.run(run()), lambda: check.inspect(settings)):
        try:
            command()
        except RefusedError as error:
            refusals.append(str(error))
    output = capsys.readouterr().out
    assert "geheim" not in output + "".join(refusals)
    if names is None:
        assert refusals == []
        assert "run would start" in output
        return
    by_run, by_check = refusals
    assert names.format(**files) in by_run
    assert by_check == f"run would refuse to start: {by_run}"
    assert "\n" not in by_run


class Tunnel:
    """An HTTP proxy with CONNECT that records the hosts it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *error: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            target = head.split()[1]
            self.asked.append(target)
            there, to_there = await asyncio.open_connection("127.0.0.1", int(target.rpartition(":")[2]))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(self._pass(reader, to_there), self._pass(there, writer))

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                sink.write(data)
                await sink.drain()
            sink.close()


@contextlib.asynccontextmanager
async def behind_tls(port: int, certificate: Path, key: Path) -> AsyncIterator[int]:
    """Serves TLS in front of a port of this machine; yields its own port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    tunnel = Tunnel()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(tunnel._pass(reader, to_there), tunnel._pass(there, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


class Listener:
    def connected(self) -> None: ...

    def disconnected(self, reason: str) -> None: ...

    async def closed(self, frame: object, received_at_s: float) -> None: ...

    def forming(self, frame: object, received_at_s: float) -> None: ...


async def reached(ws_url: str, rest_url: str) -> None:
    """Returns once REST has answered and the stream is open."""
    async with BinanceHistory(rest_url, clock=Clock()) as history:
        await history.server_time_ms()
    opened = asyncio.Event()

    def observe(fact: Fact) -> None:
        if isinstance(fact, FeedConnected):
            opened.set()

    feed = BinanceFeed(ws_url, ["BTCUSDT"], clock=Clock(), observe=observe, rng=random.Random(1))
    running = asyncio.create_task(feed.run(Listener()))
    async with asyncio.timeout(30):
        await opened.wait()
    running.cancel()
    await asyncio.wait([running])


def market() -> Exchange:
    return Exchange.replaying(simulate(["BTCUSDT"], START - 50 * HOUR_MS, 100, 1), START, 50, 3_600.0, seed=1)


@pytest.mark.fault(52)
async def test_an_authority_named_by_the_environment_counts_on_loopback_too(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    async with market() as exchange:
        ports = [int(url.rpartition(":")[2]) for url in (exchange.ws_url, exchange.rest_url)]
        ours = authority.certificate, authority.key
        async with behind_tls(ports[0], *ours) as ws, behind_tls(ports[1], *ours) as rest:
            await reached(f"wss://127.0.0.1:{ws}", f"https://127.0.0.1:{rest}")


@pytest.mark.fault(52)
async def test_stream_and_rest_go_through_the_proxy_that_is_named(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    tunnel = Tunnel()
    async with market() as exchange, tunnel as proxy_url:
        # Container engines set such a list.
        monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1,::1,10.0.0.0/8")
        monkeypatch.setenv("ALL_PROXY", proxy_url.removeprefix("http://"))
        ports = [int(url.rpartition(":")[2]) for url in (exchange.ws_url, exchange.rest_url)]
        # A host name that only the proxy can reach.
        ours = authority.issue("exchange", "subjectAltName=DNS:exchange.invalid")
        async with behind_tls(ports[0], *ours) as ws, behind_tls(ports[1], *ours) as rest:
            await reached(f"wss://exchange.invalid:{ws}", f"https://exchange.invalid:{rest}")
            assert tunnel.asked == [f"exchange.invalid:{rest}", f"exchange.invalid:{ws}"]
