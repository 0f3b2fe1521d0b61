"""docker-compose.yml as Docker Compose itself reads it. No engine is needed for that, so nothing is started here."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from repository import ROOT

from stream import settings
from stream.commands import health as health_check


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Every service, those of the demo profile too."""
    program = shutil.which("docker-compose", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.fail("docker-compose is needed for this test: it comes with the dependency group dev")
    command = [program, "--profile", "*", "--file", str(ROOT / "docker-compose.yml"), "config", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The program also warns, of variables without a value for instance, and goes on.
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


def test_the_services_are_those_that_the_file_promises(services: dict[str, Any]) -> None:
    assert set(services) == {"volcast", "mosquitto", "prometheus", "grafana", "retrain", "exchange", "demo"}
    assert {name for name, service in services.items() if service.get("profiles") == ["demo"]} == {"exchange", "demo"}


def test_a_retraining_is_begun_by_name_alone_and_works_on_the_nodes_data(services: dict[str, Any]) -> None:
    retrain = services["retrain"]
    assert retrain["profiles"] == ["retrain"]
    assert retrain["command"][0] == "retrain"
    assert retrain["restart"] == "no"
    assert retrain["volumes"] == services["volcast"]["volumes"]
    assert retrain["image"] != services["volcast"]["image"]
    assert {"train", "research"} <= set(retrain["build"]["args"]["EXTRAS"].split(","))


def test_every_port_is_published_on_loopback_and_once(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    published = [port["published"] for port in ports]
    assert len(published) == len(set(published))


def test_no_service_can_gain_rights_and_ours_cannot_write(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service
        if "build" in service:
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name


def test_read_only_services_have_no_inline_config(services: dict[str, Any]) -> None:
    # Compose copies an inline config into the container, which fails at `up` and not at `config`.
    assert [name for name, service in services.items() if service.get("read_only") and service.get("configs")] == []


def test_every_volcast_variable_is_a_setting_that_run_accepts(services: dict[str, Any]) -> None:
    names = {settings.PREFIX + field.name.upper() for field in msgspec.structs.fields(settings.Settings)}
    ours = {name: s.get("environment", {}) for name, s in services.items() if "build" in s and s["command"] == ["run"]}
    assert set(ours) == {"volcast", "demo"}
    for environment in ours.values():
        assert {name for name in environment if name.startswith(settings.PREFIX)} <= names
        settings.load({}, environment)
    in_dockerfile = set(re.findall(r"\b(VOLCAST_\w+)=", (ROOT / "Dockerfile").read_text()))
    assert in_dockerfile
    assert in_dockerfile <= names


class _Health(http.server.BaseHTTPRequestHandler):
    """What a node, or an exchange, answers."""

    def do_GET(self) -> None:
        well = self.path in self.server.well  # type: ignore[attr-defined]
        self.send_response(200 if well else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def health() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Health) as server:
        server.well = {"/healthz", "/control/state"}  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def asked(command: list[str], folder: Path, **environment: str) -> int:
    """A health check as the engine runs it, in a container that is told of a proxy that nobody needs."""
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    assert command[0] == "python"
    done = subprocess.run(
        [sys.executable, *command[1:]],
        cwd=folder,
        env={**os.environ, **proxies, **environment},
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert b"Traceback" not in done.stderr
    return done.returncode


def test_the_images_health_check_finds_the_node_past_a_proxy_and_on_any_port(
    health: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    found = re.search(r"^HEALTHCHECK .*?CMD (\[.*\])$", text, re.MULTILINE)
    assert found is not None
    command, port = json.loads(found[1]), str(health.server_port)
    everywhere = {"VOLCAST_HTTP_HOST": "0.0.0.0"}
    assert asked(command, tmp_path, **everywhere, VOLCAST_HTTP_PORT=port) == 0
    (tmp_path / "volcast.toml").write_text(f"http-port = {port}\n")
    assert asked(command, tmp_path, **everywhere) == 0
    health.well = set()  # type: ignore[attr-defined]
    assert asked(command, tmp_path, **everywhere) == 1
    health.shutdown()
    health.server_close()
    assert asked(command, tmp_path, **everywhere) == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("volcast run", (None, None, None)),
        ("volcast run --http-port 9500", (None, None, "9500")),
        ("/sbin/docker-init -- python -P -m stream run --http-port=9500 --http-host ::1", (None, "::1", "9500")),
        ("volcast run --config /etc/v.toml --standby", (Path("/etc/v.toml"), None, None)),
        ("sleep infinity --http-port", (None, None, "")),
    ],
)
def test_and_by_the_flags_of_the_containers_first_process(line: str, expected: tuple[Any, ...]) -> None:
    config, flags = health_check.parse_arguments(line.split(" "))
    assert (config, flags["http_host"], flags["http_port"]) == expected


def test_the_simulated_exchanges_health_check_asks_no_proxy(
    services: dict[str, Any], health: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    _, *command = services["exchange"]["healthcheck"]["test"]
    command = [part.replace("9080", str(health.server_port)) for part in command]
    assert asked(command, tmp_path) == 0
    health.well = set()  # type: ignore[attr-defined]
    assert asked(command, tmp_path) == 1


def test_what_is_mounted_exists(services: dict[str, Any]) -> None:
    binds = [v for s in services.values() for v in s.get("volumes", []) if v["type"] == "bind"]
    assert binds
    for bind in binds:
        assert Path(bind["source"]).is_dir(), bind["source"]
        assert bind["read_only"] is True


def test_the_dockerfile_copies_what_the_wheel_is_made_of_and_the_ignore_file_lets_it_in() -> None:
    copied = {
        part
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for part in line.split()[1:-1]
    }
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert copied >= {"stream", "training", "export", "monitor", "pyproject.toml", "README.md", "LICENSE"}
    assert all((ROOT / part).exists() for part in copied)


def test_grafana_finds_what_is_provisioned(services: dict[str, Any]) -> None:
    targets = {v["target"]: Path(v["source"]) for v in services["grafana"]["volumes"]}
    provider = (ROOT / "grafana" / "provisioning" / "dashboards" / "volcast.yml").read_text()
    folder = re.search(r"path: (\S+)", provider)
    assert folder is not None
    assert (targets[folder.group(1)] / "volcast.json").is_file()
    source = (ROOT / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text()
    assert "url: http://prometheus:9090" in source
