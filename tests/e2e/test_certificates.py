"""A broker that asks its clients for certificates: a real Mosquitto, with a test authority."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from authority import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "ours", "ours")


@pytest.fixture
def demanding(mosquitto: Any, authority: Authority, tmp_path: Path) -> Iterator[Any]:
    """Mosquitto over TLS: clients need a certificate of the test authority, whose common name is the user."""
    folder = tmp_path / "demanding"
    folder.mkdir()
    (folder / "acl").write_text("user node-7\ntopic readwrite volcast/#\n")
    broker = type(mosquitto)(folder)
    with broker._config.open("a") as config:
        config.write(f"cafile {authority.ca}\ncertfile {authority.certificate}\nkeyfile {authority.key}\n")
        config.write(f"require_certificate true\nuse_identity_as_username true\nacl_file {folder}/acl\n")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def start(volcast: Callable[..., Any], candle_file: Path, tmp_path: Path) -> Callable[..., Any]:
    exchange = volcast(
        "exchange", "--candles", candle_file, "--from", "2024-01-01", "--hours", 20, "--ws-port", 0, "--rest-port", 0
    )
    urls = ["--ws-url", exchange.find(r"--ws-url (\S+)"), "--rest-url", exchange.find(r"--rest-url (\S+)")]

    def start(**variables: object) -> Any:
        return volcast(
            "run", *urls, "--http-port", 0, "--data-dir", tmp_path / "var", "--time-scale", 3_600,
            "--drift-period-hours", 0, **{f"VOLCAST_MQTT_{name.upper()}": str(v) for name, v in variables.items()},
        )  # fmt: skip

    return start


@pytest.mark.fault(53)
@pytest.mark.parametrize("together", [False, True], ids=["two files", "one file"])
def test_a_node_shows_the_certificate_that_a_broker_asks_for(
    demanding: Any, start: Callable[..., Any], authority: Authority, until: Any, tmp_path: Path, together: bool
) -> None:
    certificate, key = authority.issue("node-7")
    if together:
        both = tmp_path / "both.pem"
        both.write_text(certificate.read_text() + key.read_text())
        shown = {"cert_file": both}
    else:
        shown = {"cert_file": certificate, "key_file": key}
    running = start(url=f"mqtts://127.0.0.1:{demanding.port}", ca_file=authority.ca, **shown)
    running.find("(connected to the MQTT broker)")
    http = running.find(r"(http://127\.0\.0\.1:\d+)\n")

    def published() -> bool:
        metrics = urllib.request.urlopen(f"{http}/metrics", timeout=10).read().decode()
        return re.search(r"^volcast_mqtt_publishes_total [1-9]", metrics, re.MULTILINE) is not None

    # Only the user of that name may publish.
    until(published, "an acknowledged message")
    assert running.stop() == 0
    assert "Traceback" not in running.err


@pytest.mark.fault(53)
def test_without_a_certificate_the_node_waits_and_says_so(
    demanding: Any, start: Callable[..., Any], authority: Authority
) -> None:
    running = start(url=f"mqtts://127.0.0.1:{demanding.port}", ca_file=authority.ca)
    running.find("(no connection to the MQTT broker, reconnecting: )")
    assert running.stop() == 0
    assert "connected to the MQTT broker" not in running.err
    assert "Traceback" not in running.err
