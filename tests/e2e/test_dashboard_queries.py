"""Every query of the dashboard has data on a real Prometheus that scrapes a real demo.

The alert rules are tested too: they load, evaluate, and do not fire for a demo.
"""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import need
from repository import ROOT

DASHBOARD = ROOT / "grafana" / "dashboards" / "volcast.json"
RULES = ROOT / "monitor" / "prometheus" / "alerts.yml"
VARIABLES = {"$__rate_interval": "30s", "$job": ".+", "$instance": ".+", "$symbol": "BTCUSDT"}


class Prometheus:
    """A Prometheus server that scrapes one node once a second, with Volcast's alert rules."""

    def __init__(self, target: str, folder: Path) -> None:
        program = need("prometheus")
        folder.mkdir()
        config = folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n"
            f"rule_files: [{RULES}]\n"
            f"scrape_configs: [{{job_name: volcast-demo, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._url = f"http://{address}/api/v1/"
        self._log = folder / "log.txt"
        with self._log.open("w") as log:
            self._popen = subprocess.Popen(
                [
                    program,
                    f"--config.file={config}",
                    f"--web.listen-address={address}",
                    f"--storage.tsdb.path={folder}",
                ],
                stdout=log,
                stderr=log,
            )

    def get(self, what: str, **parameters: str) -> Any:
        """Returns the answer's data; None while the server does not answer."""
        try:
            with urllib.request.urlopen(
                f"{self._url}{what}?{urllib.parse.urlencode(parameters)}", timeout=30
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return None
            pytest.fail(f"{parameters}: {error.read().decode()}")
        except OSError:
            assert self._popen.poll() is None, self._log.read_text()[-2_000:]
            return None

    def numbers(self, query: str) -> list[float]:
        """Returns the values of the query's samples that are numbers: a quantile of no observations is NaN."""
        answer = self.get("query", query=query)
        values = [float(sample["value"][1]) for sample in answer["result"]] if answer else []
        return [value for value in values if value == value]

    def end(self) -> None:
        self._popen.kill()
        self._popen.wait()


def _fill(query: str) -> str:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    assert "$" not in query, query
    return query


@pytest.fixture
def prometheus(tmp_path: Path, volcast: Callable[..., Any]) -> Iterator[Prometheus]:
    demo = volcast("demo", "--http-port", 0, "--speed", 3600, PYTHONUNBUFFERED="1", COLUMNS="200")
    target = demo.find(r"metrics\s+http://([\d.:]+)/metrics")
    server = Prometheus(target, tmp_path / "prometheus")
    yield server
    server.end()
    assert demo.stop() == 0


def test_every_panel_has_data_in_the_normal_state(prometheus: Prometheus, until: Callable[..., Any]) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    queries = {
        f"{panel['title']}: {target['expr']}": (panel["title"], _fill(target["expr"]))
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
        # A demo has no shadow, and a node without one has no line of it.
        if "volcast_shadow_qlike" not in target["expr"]
    }
    assert len(queries) > 40
    # The last data to arrive: the first drift run, in a process of its own, and two samples for each rate.
    until(lambda: prometheus.numbers("volcast_drift_runs_total > 0"), "the first drift run")
    waiting = dict(queries)

    def all_answered() -> bool:
        for name, (_, query) in list(waiting.items()):
            if prometheus.numbers(query):
                del waiting[name]
        return not waiting

    try:
        until(all_answered, "data in every panel")
    except pytest.fail.Exception:
        pytest.fail("panels without data:\n" + "\n".join(waiting))

    for note in dashboard["annotations"]["list"]:
        if "expr" in note:
            # There need be no data; `get` fails on a query that Prometheus does not understand.
            assert prometheus.get("query", query=_fill(note["expr"])) is not None

    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert rules
    assert {rule["name"]: rule["health"] for rule in rules if rule["health"] != "ok"} == {}
    # There is no job "volcast" here, so TargetMissing is about to fire; the demo itself raises no alert.
    assert {rule["name"] for rule in rules if rule["state"] != "inactive"} <= {"TargetMissing"}
