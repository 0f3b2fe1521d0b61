"""The dashboard under the rules of Grafana's dashboard-linter, and some of our own, without a Grafana."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from repository import ROOT

from monitor.metrics import Metrics
from stream.core.forecasting.contract import Model

DASHBOARD = json.loads((ROOT / "grafana" / "dashboards" / "volcast.json").read_text())
PANELS: list[dict[str, Any]] = [p for p in DASHBOARD["panels"] if p["type"] != "row"]
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "monitor" / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
#: Suffixes that a metric's samples may have.
_SUFFIX = re.compile(r"_(bucket|count|sum)$")
_SELECTOR = re.compile(r"\b(volcast_\w+|up)\b(\{[^}]*\})?(\[[^\]]+\])?")


def _title(panel: dict[str, Any]) -> str:
    return str(panel["title"])


each_panel = pytest.mark.parametrize("panel", PANELS, ids=_title)


def _queries(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


def _all_queries() -> list[str]:
    notes = [a["expr"] for a in DASHBOARD["annotations"]["list"] if "expr" in a]
    return notes + [query for panel in PANELS for query in _queries(panel)]


@pytest.fixture
def types(model: Model) -> dict[str, str]:
    """Sample name to type, of everything that a node exports."""
    text = Metrics(version="0", symbols=["BTCUSDT"], model=model).text().decode()
    found = {"up": "gauge"}
    for family in text_string_to_metric_families(text):
        samples = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
        found |= {family.name + suffix: family.type for suffix in samples}
    return found


def test_it_says_what_it_is_and_cannot_be_edited() -> None:
    assert DASHBOARD["title"] == "Volcast"
    assert DASHBOARD["uid"] == "volcast"
    assert DASHBOARD["editable"] is False
    assert DASHBOARD["timezone"] == "utc"
    assert "id" not in DASHBOARD


def test_variables() -> None:
    variables = {v["name"]: v for v in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "symbol"]
    source = variables.pop("datasource")
    assert (source["type"], source["query"], source["label"]) == ("datasource", "prometheus", "Data Source")
    for name, variable in variables.items():
        assert variable["type"] == "query"
        assert variable["label"] == name.capitalize()
        assert variable["multi"] is True
        assert variable["includeAll"] is True
        assert variable["allValue"] == ".+"
        # 2: with each change of the time range, or a node that came later would be missing.
        assert variable["refresh"] == 2
        assert variable["datasource"] == DATASOURCE


def test_panels_are_told_apart_and_do_not_overlap() -> None:
    everything = DASHBOARD["panels"]
    assert len({p["id"] for p in everything}) == len(everything)
    assert len({p["title"] for p in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


@each_panel
def test_a_panel_says_what_good_looks_like_and_what_to_do(panel: dict[str, Any]) -> None:
    assert re.fullmatch(r"Good: .+\. If not: .+\.", panel["description"])


@each_panel
def test_a_panel_has_unit_targets_source_and_a_word_for_no_data(panel: dict[str, Any]) -> None:
    assert panel["datasource"] == DATASOURCE
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["fieldConfig"]["defaults"]["noValue"]
    assert panel["targets"]
    assert len({t["refId"] for t in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert target["datasource"] == DATASOURCE
        assert target["legendFormat"]


def test_queries_ask_only_for_what_a_node_exports(types: dict[str, str]) -> None:
    used = {name for query in _all_queries() for name, _, _ in _SELECTOR.findall(query)}
    assert used <= types.keys()


def test_almost_everything_that_a_node_exports_is_shown(types: dict[str, str]) -> None:
    used = {_SUFFIX.sub("", name) for query in _all_queries() for name, _, _ in _SELECTOR.findall(query)}
    exported = {_SUFFIX.sub("", name) for name in types}
    # Connections opened are the disconnects of another moment.
    assert exported - used == {"volcast_ws_connects_total"}


@pytest.mark.parametrize("query", _all_queries())
def test_a_query_keeps_to_the_chosen_job_instance_and_symbol(query: str, model: Model) -> None:
    labels = Metrics(version="0", symbols=["BTCUSDT"], model=model).labels
    for name, matchers, _ in _SELECTOR.findall(query):
        # Clauses such as `on (job, instance)` name labels, never a metric.
        assert 'job=~"$job", instance=~"$instance"' in matchers, name
        of_symbol = "symbol" in labels.get(_SUFFIX.sub("", name).removesuffix("_total"), ())
        assert ('symbol=~"$symbol"' in matchers) == of_symbol, name


@each_panel
def test_counters_are_read_as_rates_over_the_interval_that_grafana_chooses(
    panel: dict[str, Any], types: dict[str, str]
) -> None:
    # A panel with an alert's threshold looks through the alert's window, or the line would mean nothing.
    windows = {
        w for a in ALERTS if a["annotations"]["panel"] == panel["title"] for w in re.findall(r"\[\w+\]", a["expr"])
    }
    for query in _queries(panel):
        for found in _SELECTOR.finditer(query):
            name, _, window = found.groups()
            counts = types[name] == "counter" or name.endswith("_bucket")
            assert bool(window) == counts, query
            if counts:
                assert query[: found.start()].endswith(("rate(", "increase(")), query
                assert window == "[$__rate_interval]" or window in windows, query


def test_a_threshold_is_an_alerts_threshold() -> None:
    shown = {rule["annotations"]["panel"] for rule in ALERTS}
    assert shown <= {panel["title"] for panel in PANELS}
    for panel in PANELS:
        title = panel["title"].removesuffix(" over time")
        alerts = [rule for rule in ALERTS if rule["annotations"]["panel"] == title]
        limits = {float(n) for rule in alerts for n in re.findall(r"[<>]=? ([\d.]+)", rule["expr"])}
        steps = {
            float(s["value"]) for s in panel["fieldConfig"]["defaults"]["thresholds"]["steps"] if s["value"] is not None
        }
        assert steps <= limits, panel["title"]
        assert bool(steps) == bool(alerts), panel["title"]
        for rule in alerts:
            assert rule["alert"] in panel["description"], panel["title"]
