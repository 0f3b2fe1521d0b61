"""Prometheus's own judge on our configuration, and that each alert leads somewhere: a panel and a page."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml
from programs import need
from repository import ROOT

PROMETHEUS = ROOT / "monitor" / "prometheus"


def _promtool(*args: str) -> None:
    done = subprocess.run([need("promtool"), *args], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize(
    "args",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "--lint=all", "--lint-fatal", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(args: tuple[str, ...]) -> None:
    _promtool(*args)


@pytest.mark.parametrize("rule", _rules(), ids=lambda r: r["alert"])
def test_an_alert_says_what_happened_and_where_to_go(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "ticket", "info")
    assert set(rule["annotations"]) == {"summary", "description", "runbook", "panel"}
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^### (\w+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor == rule["alert"].lower()
    assert rule["alert"] in headings


def test_no_alert_looks_at_the_demo() -> None:
    for rule in _rules():
        selectors = re.findall(r"\{([^}]*)\}", rule["expr"])
        assert selectors
        assert all('job="volcast"' in selector for selector in selectors), rule["alert"]


def test_each_alert_is_seen_firing_and_silent() -> None:
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    fired, silent = set(), set()
    for test in tests:
        alert = test["name"].partition(":")[0]
        for case in test["promql_expr_test"]:
            expected = [re.findall(r'alertname="(\w+)"', sample["labels"]) for sample in case["exp_samples"]]
            fired |= {name for names in expected for name in names}
            silent |= {alert} if not expected else set()
    alerts = {rule["alert"] for rule in _rules()}
    assert fired == alerts
    assert alerts <= silent
