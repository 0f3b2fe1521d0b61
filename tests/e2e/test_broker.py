"""A real broker that misbehaves: restarted empty, refusing, shared; and peers whose certificates are not valid."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from programs import need

#: More than any test plays.
HOURS = 1_500


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "ours", "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "strange", "stranger")


@pytest.fixture
def exchange(volcast: Callable[..., Any], long_candle_file: Path) -> list[str]:
    process = volcast(
        "exchange", "--candles", long_candle_file, "--from", "2024-01-01", "--hours", HOURS, "--speed", 18_000,
        "--ws-port", 0, "--rest-port", 0,
    )  # fmt: skip
    return ["--ws-url", process.find(r"--ws-url (\S+)"), "--rest-url", process.find(r"--rest-url (\S+)")]


@pytest.fixture
def start(volcast: Callable[..., Any], exchange: list[str], tmp_path: Path) -> Callable[..., Any]:
    """Starts nodes, each with its own name and data directory; the broker's URL comes from the environment."""

    def start(url: str, instance: str = "volcast", *more: object) -> Any:
        return volcast(
            "run", *exchange, "--http-port", 0, "--data-dir", tmp_path / instance, "--time-scale", 18_000,
            "--drift-period-hours", 0, "--instance", instance, *more, VOLCAST_MQTT_URL=url,
        )  # fmt: skip

    return start


@pytest.fixture
def broker(mosquitto: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts further Mosquittos, each with the given lines in its configuration."""
    started: list[Any] = []

    def broker(*lines: str) -> Any:
        folder = tmp_path / f"broker{len(started)}"
        folder.mkdir()
        other = type(mosquitto)(folder)
        text = other._config.read_text()
        for line in lines:
            name = line.split()[0]
            text = "".join(kept for kept in text.splitlines(keepends=True) if not kept.startswith(f"{name} "))
        other._config.write_text(text + "".join(f"{line}\n" for line in lines))
        other.start()
        started.append(other)
        return other

    yield broker
    for each in started:
        each.stop()


@pytest.fixture
def steady(volcast: Callable[..., Any], candle_file: Path, start: Callable[..., Any]) -> Callable[..., Any]:
    """Starts a node at an hour a second, slow enough to become ready on a busy machine too."""
    slow = volcast(
        "exchange", "--candles", candle_file, "--from", "2024-01-01", "--hours", HOURS,
        "--ws-port", 0, "--rest-port", 0, "--speed", 3_600,
    )  # fmt: skip
    urls = ["--ws-url", slow.find(r"--ws-url (\S+)"), "--rest-url", slow.find(r"--rest-url (\S+)")]
    return lambda url: start(url, "volcast", *urls, "--time-scale", 3_600)


def lines(subscriber: Any) -> list[list[str]]:
    """Returns of every message whether it was retained ("1"), its topic and its payload."""
    return [line.split(" ", 2) for line in subscriber._file.read_text().splitlines()]


def topics(messages: list[list[str]]) -> set[str]:
    """Returns the last parts of the topics."""
    return {topic.rpartition("/")[2] for _, topic, *_ in messages}


@pytest.mark.fault(31)
def test_a_broker_that_comes_back_empty_is_told_everything_that_is_current(
    broker: Callable[..., Any],
    volcast: Callable[..., Any],
    start: Callable[..., Any],
    candle_file: Path,
    subscribe: Callable[..., Any],
    until: Any,
) -> None:
    # An hour a second: messages expire after two hours, which must not pass because this machine is busy.
    slow = volcast(
        "exchange", "--candles", candle_file, "--from", "2024-01-01", "--hours", HOURS,
        "--ws-port", 0, "--rest-port", 0, "--speed", 3_600,
    )  # fmt: skip
    urls = ["--ws-url", slow.find(r"--ws-url (\S+)"), "--rest-url", slow.find(r"--rest-url (\S+)")]
    forgetful = broker("persistence false")
    before = subscribe(forgetful.port, "5")
    running = start(forgetful.url, "volcast", *urls, "--time-scale", 3_600)
    until(lambda: len(before.payloads("event/forecast.issued")) >= 3, "three forecasts")
    forgetful.stop()
    running.find("(no connection to the MQTT broker, reconnecting)")
    received = len(lines(before))
    forgetful.start()
    wanted = {"state", "info", "feed", "forecast", "decision", "recent"}
    until(lambda: wanted <= topics(lines(before)[received:]), "everything on the new broker")
    before.end()
    late = subscribe(forgetful.port, "5")
    until(lambda: wanted <= topics([m for m in lines(late) if m[0] == "1"]), "everything that is current")
    assert running.stop() == 0


@pytest.mark.fault(31)
def test_wrong_credentials_are_waited_out_without_telling_the_password(
    broker: Callable[..., Any], start: Callable[..., Any], subscribe: Callable[..., Any], until: Any, tmp_path: Path
) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run([need("mosquitto_passwd"), "-b", "-c", str(passwords), "volcast", "another"], check=True)
    passwords.chmod(0o644)
    strict = broker("allow_anonymous false", f"password_file {passwords}")
    running = start(strict.url.replace("mqtt://", "mqtt://volcast:geheim@"))
    running.find("(no connection to the MQTT broker, reconnecting: MqttConnectError: .*[Nn]ot authorized)")
    running.find("(feed is live)")
    subprocess.run([need("mosquitto_passwd"), "-b", str(passwords), "volcast", "geheim"], check=True)
    strict.stop()
    strict.start()
    running.find("(connected to the MQTT broker)")
    assert running.stop() == 0
    assert "geheim" not in running.err + running.out


@pytest.mark.fault(31)
def test_a_node_that_takes_our_name_ends_us_with_one_line_instead_of_a_fight(
    start: Callable[..., Any], mosquitto: Any, until: Any, tmp_path: Path
) -> None:
    """This Mosquitto ends the older connection without a reason; the other node's own messages show it."""
    older = start(mosquitto.url)
    older.find("(node volcast is ready)")
    newer = start(mosquitto.url, "volcast", "--data-dir", tmp_path / "other")
    until(lambda: older.popen.poll() is not None, "the end")
    assert older.popen.returncode == 1
    last = older.err.splitlines()[-1]
    assert last.startswith("volcast: another")
    assert last.endswith("give each node its own --instance")
    assert "Traceback" not in older.err
    newer.find("(node volcast is ready)")
    assert newer.stop() == 0


def remarks(node: Any) -> list[str]:
    http = node.find(r"(http://127\.0\.0\.1:\d+)\n")
    try:
        with urllib.request.urlopen(f"{http}/readyz", timeout=5) as answer:
            return list(json.load(answer)["remarks"])
    except urllib.error.HTTPError as error:
        # Not ready for a moment, on a busy machine.
        return list(json.load(error)["remarks"])


@pytest.mark.fault(45)
def test_one_topic_that_the_access_list_denies_is_kept_and_the_others_go_past_it(
    steady: Callable[..., Any], broker: Callable[..., Any], subscribe: Callable[..., Any], until: Any, tmp_path: Path
) -> None:
    everything, denied = "topic readwrite #\n", "topic deny volcast/v1/binance/spot/BTCUSDT/1h/event/forecast.issued\n"
    rules = tmp_path / "rules"
    rules.write_text(everything + denied)
    strict = broker(f"acl_file {rules}")
    subscriber = subscribe(strict.port, "5")
    running = steady(strict.url)
    running.find(r"(does not take volcast/v1/binance/spot/BTCUSDT/1h/event/forecast.issued: Not authorized)")
    until(lambda: len(subscriber.payloads("event/decision.issued")) >= 10, "decisions, past the forecasts")
    assert not subscriber.payloads("event/forecast.issued")
    running.find("(node volcast is ready)")
    assert [r for r in remarks(running) if "forecast.issued: Not authorized" in r]
    warnings = [line for line in running.err.splitlines() if "WARNING" in line and "does not take" in line]
    assert len(warnings) == 1
    rules.write_text(everything)
    strict._popen.send_signal(signal.SIGHUP)
    last = subscriber.payloads("event/decision.issued")[-1]["open_time"]

    def caught_up() -> bool:
        times = [f["open_time"] for f in subscriber.payloads("event/forecast.issued")]
        return bool(times) and times[-1] >= last

    until(caught_up, "the forecasts that were kept")
    times = [f["open_time"] for f in subscriber.payloads("event/forecast.issued")]
    assert times == list(range(times[0], times[-1] + 1, 3_600_000))
    assert running.stop() == 0


@pytest.mark.fault(46)
def test_who_may_publish_but_not_subscribe_publishes(
    steady: Callable[..., Any], broker: Callable[..., Any], until: Any, tmp_path: Path
) -> None:
    # An access list only withholds messages from a subscriber; this plugin denies the subscription itself.
    (plugin,) = Path("/usr/lib").glob("*/mosquitto_dynamic_security.so")
    access = {"publishClientSend": True, "publishClientReceive": True, "subscribe": False, "unsubscribe": False}
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"defaultACLAccess": access}))
    blind = broker(f"plugin {plugin}", f"plugin_opt_config_file {rules}")
    running = steady(blind.url)
    running.find(r"(does not let us see other nodes \(Not authorized\))")
    running.find("(node volcast is ready)")
    until(lambda: metric(running, "mqtt_publishes_total") > 20, "messages that the broker took")
    assert metric(running, "mqtt_publish_failures_total") == 0
    assert running.stop() == 0
    assert "timed out" not in running.err


def metric(node: Any, name: str) -> float:
    http = node.find(r"(http://127\.0\.0\.1:\d+)\n")
    with urllib.request.urlopen(f"{http}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"volcast_{name} ")).split()[1])


@pytest.mark.fault(46)
def test_the_chatter_of_other_nodes_does_not_keep_us_from_publishing(
    steady: Callable[..., Any], mosquitto: Any, subscribe: Callable[..., Any], until: Any
) -> None:
    port, state = str(mosquitto.port), '{"state":"ready","session":"x","since":1}'
    command = ["mosquitto_pub", "-V", "5", "-p", port, "-t", "volcast/v1/node/noisy/state", "-m", state]
    noise = subprocess.Popen([*command, "--repeat", "100000", "--repeat-delay", "0.05"])
    try:
        subscriber = subscribe(mosquitto.port, "5")
        until(lambda: subscriber.messages("node/noisy/state"), "the noise")
        running = steady(mosquitto.url)
        running.find("(node volcast is ready)")
        until(lambda: len(subscriber.payloads("event/decision.issued")) >= 5, "decisions")
        assert running.stop() == 0
    finally:
        noise.terminate()
        noise.wait()


def test_a_second_node_for_the_same_symbols_is_refused_and_one_for_others_is_not(
    start: Callable[..., Any], mosquitto: Any, until: Any
) -> None:
    first = start(mosquitto.url, "a")
    first.find("(node a is ready)")
    second = start(mosquitto.url, "b")
    assert second.popen.wait(240) == 1
    assert "volcast: the node a is alive on this broker and publishes BTCUSDT too" in second.err
    assert "Traceback" not in second.err
    assert first.stop() == 0
    third = start(mosquitto.url, "b")
    third.find("(node b is ready)")
    assert third.stop() == 0


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_node_that_stands_by_takes_over_and_no_hour_is_missing(
    end: str, start: Callable[..., Any], mosquitto: Any, subscribe: Callable[..., Any], until: Any
) -> None:
    subscriber = subscribe(mosquitto.port, "5")
    first = start(mosquitto.url, "a", "--standby")
    until(lambda: len(subscriber.payloads("event/decision.issued")) >= 5, "five decisions")
    second = start(mosquitto.url, "b", "--standby")
    second.find("(standing by: the node a publishes BTCUSDT)")
    assert not subscriber.payloads("node/b/state")
    if end == "stopped":
        assert first.stop() == 0
    else:
        first.end()
    second.find("(node b is ready)")
    issued = len(subscriber.payloads("event/decision.issued"))
    until(lambda: len(subscriber.payloads("event/decision.issued")) >= issued + 5, "decisions of the other")
    assert second.stop() == 0
    # Both nodes publish the same forecast for the same hour.
    found: dict[str, float] = {}
    for forecast in subscriber.payloads("event/forecast.issued"):
        value = forecast["volatility"]["hourly"]
        assert found.setdefault(forecast["id"], value) == pytest.approx(value, rel=1e-9)


def test_who_stands_by_for_ever_still_stops_at_once(start: Callable[..., Any], mosquitto: Any) -> None:
    first = start(mosquitto.url, "a")
    first.find("(node a is ready)")
    second = start(mosquitto.url, "b", "--standby")
    second.find("(standing by)")
    assert second.stop(timeout_s=10) == 0
    assert first.stop() == 0


@pytest.mark.fault(25)
def test_a_broker_without_a_trusted_certificate_hears_nothing_and_one_with_our_authority_does(
    broker: Callable[..., Any],
    start: Callable[..., Any],
    authority: Authority,
    stranger: Authority,
    tmp_path: Path,
) -> None:
    certificate, key = tmp_path / "served.pem", tmp_path / "served.key"

    def serve(whose: Authority) -> None:
        certificate.write_bytes(whose.certificate.read_bytes())
        key.write_bytes(whose.key.read_bytes())

    serve(stranger)
    encrypted = broker(f"certfile {certificate}", f"keyfile {key}")
    url = encrypted.url.replace("mqtt://", "mqtts://")
    # No authority of the system's store has issued it, nor has `authority`.
    for more in ((), ("--mqtt-ca-file", authority.ca)):
        running = start(url, "volcast", *more)
        running.find("(no connection to the MQTT broker, reconnecting: MqttError: .*certificate verify failed)")
        assert "connected to the MQTT broker" not in running.err
        assert running.stop(timeout_s=10) == 0
    running = start(url, "volcast", "--mqtt-ca-file", authority.ca)
    running.find("(certificate verify failed)")
    encrypted.stop()
    serve(authority)
    encrypted.start()
    running.find("(connected to the MQTT broker)")
    running.find("(node volcast is ready)")
    assert running.stop() == 0


class Encrypted:
    """A TLS server in front of a port of this machine, at 127.0.0.2, which the node treats as any other host. Its
    certificate can be exchanged while it runs."""

    def __init__(self, port: int, whose: Authority) -> None:
        self._behind = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.present(whose)
        self.port = 0
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve(ready)), daemon=True)
        self._thread.start()
        ready.wait()

    def present(self, whose: Authority) -> None:
        self._context.load_cert_chain(whose.certificate, whose.key)

    async def _serve(self, ready: threading.Event) -> None:
        self._ended = asyncio.Event()
        server = await asyncio.start_server(self._relay, "127.0.0.2", 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._ended.wait()
        server.close()
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._behind)

        async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65_536):
                    target.write(data)
                    await target.drain()
            target.close()

        await asyncio.gather(pass_on(reader, inner_writer), pass_on(inner_reader, writer))

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        self._loop.close()


@pytest.mark.fault(25)
def test_an_exchange_without_a_trusted_certificate_is_waited_for_and_everything_is_filled_in(
    exchange: list[str],
    volcast: Callable[..., Any],
    mosquitto: Any,
    subscribe: Callable[..., Any],
    authority: Authority,
    stranger: Authority,
    until: Any,
    tmp_path: Path,
) -> None:
    ports = [int(url.rpartition(":")[2].rstrip("/")) for url in (exchange[1], exchange[3])]
    stream, rest = (Encrypted(port, stranger) for port in ports)
    try:
        subscriber = subscribe(mosquitto.port, "5")
        running = volcast(
            "run", "--ws-url", f"wss://127.0.0.2:{stream.port}", "--rest-url", f"https://127.0.0.2:{rest.port}",
            "--mqtt-url", mosquitto.url, "--http-port", 0, "--data-dir", tmp_path / "var", "--time-scale", 18_000,
            "--drift-period-hours", 0, SSL_CERT_FILE=str(authority.ca), NO_PROXY="127.0.0.2",
        )  # fmt: skip
        running.find("(retrying: .*certificate verify failed)")
        running.find("(no connection to the stream, reconnecting: .*certificate verify failed)")
        http = running.find(r"(http://127\.0\.0\.1:\d+)\n")
        assert urllib.request.urlopen(f"{http}/healthz", timeout=30).status == 200
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{http}/readyz", timeout=30)
        metrics = urllib.request.urlopen(f"{http}/metrics", timeout=30).read().decode()
        assert "volcast_ws_connected 0.0" in metrics
        assert subscriber.payloads("event/forecast.issued") == []
        for relay in (stream, rest):
            relay.present(authority)
        running.find("(node volcast is ready)")
        until(lambda: len(subscriber.payloads("event/decision.issued")) >= 10, "ten decisions")
        assert running.stop(timeout_s=10) == 0
        times = [f["open_time"] for f in subscriber.payloads("event/forecast.issued")]
        assert times == list(range(times[0], times[-1] + 1, 3_600_000))
        assert "Traceback" not in running.err
    finally:
        stream.end()
        rest.end()
