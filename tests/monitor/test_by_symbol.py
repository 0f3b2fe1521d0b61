"""The text of very many symbols stays within a megabyte, and what it leaves out is where the pages say."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from fnmatch import fnmatch

import pytest
import yaml
from metrics_state import matured, started
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from repository import ROOT

from monitor.by_symbol import FEWEST_IN_FULL, BySymbol, Form
from monitor.metrics import Metrics

MANY = tuple(f"S{n}USDT" for n in range(1_000))
FEW = MANY[:30]
LIMIT_BYTES = 1_000_000
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: bytes) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def promised() -> dict[str, tuple[str, ...]]:
    """The contract's metrics and their labels."""
    section = (ROOT / "docs" / "contract.md").read_text().split("## 5. Metrics")[1].split("\n## ")[0]
    _, _, names = section.partition("\n")
    found = re.findall(r"`([a-z_0-9]+)(?:\{([a-z_,]+)\})?`", names)
    return {f"volcast_{name}": tuple(labels.split(",")) if labels else () for name, labels in found}


@pytest.fixture(scope="module")
def many() -> Metrics:
    return matured(MANY)


@pytest.mark.parametrize("count", [100, 150, 400, 1_000])
def test_the_text_fits_in_a_megabyte_whatever_is_known(count: int) -> None:
    assert len(started(MANY[:count]).text()) <= LIMIT_BYTES
    assert len(matured(MANY[:count]).text()) <= LIMIT_BYTES


def test_every_metric_of_the_contract_is_declared_with_its_labels(many: Metrics) -> None:
    contract = promised()
    assert len(contract) > 45
    for metrics in (started(MANY), many):
        text = metrics.text().decode()
        for name, labels in contract.items():
            assert f"# HELP {name} " in text
            assert f"# TYPE {name} " in text
            assert metrics.labels[name.removesuffix("_total")] == labels


def test_what_alerts_read_is_there_for_every_symbol(many: Metrics) -> None:
    rules = yaml.safe_load((ROOT / "monitor" / "prometheus" / "alerts.yml").read_text())["groups"]
    read = set(re.findall(r"\bvolcast_\w+", " ".join(rule["expr"] for group in rules for rule in group["rules"])))
    of_symbols = {name for name in read if "symbol" in many.labels[name.removesuffix("_total")]}
    assert len(of_symbols) > 5
    shown = {(name, dict(labels).get("symbol")) for name, labels in samples(many.text())}
    assert {(name, symbol) for name in of_symbols for symbol in MANY} <= shown


def test_the_page_says_what_the_other_symbols_have_and_lack(many: Metrics) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text().split("## Many symbols")[1].split("\nWhat is left out")[0]
    has, lacks = page.split("They lack")

    def of(symbol: str) -> set[str]:
        return {name for name, labels in samples(many.text()) if ("symbol", symbol) in labels}

    def named(text: str) -> set[str]:
        # `live_*` stands for all that begin with it.
        patterns = re.findall(r"`([a-z_]+\*?)`", text)
        return {name for name in of(MANY[0]) if any(fnmatch(name, f"volcast_{pattern}") for pattern in patterns)}

    assert named(has) == of(MANY[-1])
    assert named(lacks) == of(MANY[0]) - of(MANY[-1])


def test_the_first_symbols_have_every_line(many: Metrics) -> None:
    shown, all_there_is = samples(many.text()), samples(generate_latest(many.registry))
    assert shown.keys() < all_there_is.keys()
    for symbol in MANY[:FEWEST_IN_FULL]:
        of_symbol = {key for key in all_there_is if ("symbol", symbol) in key[1]}
        assert len(of_symbol) > 90
        assert of_symbol <= shown.keys()
    assert "have all their lines; ?name[]=METRIC" in many.text().decode()


@pytest.mark.parametrize("make", [started, matured])
def test_few_symbols_have_the_lines_that_prometheus_client_would_write(make: type[Metrics]) -> None:
    metrics = make(FEW)
    text = metrics.text()
    shown, expected = samples(text), samples(generate_latest(metrics.registry))
    assert shown.keys() == expected.keys()
    assert {key: value for key, value in shown.items() if not math.isclose(value, expected[key], rel_tol=1e-5)} == {}
    assert b"have all their lines" not in text


def test_counters_and_states_are_there_before_anything_has_happened() -> None:
    shown = samples(started(FEW).text())
    symbol = ("symbol", FEW[-1])
    for name in ("kline_missing", "drift_detected", "forecast_failures_total", "kline_revisions_total"):
        assert shown[f"volcast_{name}", frozenset({symbol})] == 0
    for provenance in ("live", "backfill"):
        assert shown["volcast_forecasts_total", frozenset({symbol, ("provenance", provenance)})] == 0
    without_value = ("live_qlike", "drift_score", "exposure_ratio", "regime", "kline_last_close_timestamp_seconds")
    assert not {f"volcast_{name}" for name in without_value} & {name for name, _ in shown}


def test_metrics_that_are_asked_for_by_name_have_every_line(many: Metrics) -> None:
    text = b"".join(many.chunks(["volcast_live_qlike", "volcast_mqtt_connected"]))
    names = [name for name, _ in samples(text)]
    assert (len(names), names.count("volcast_live_qlike")) == (15_001, 15_000)


def test_a_scrape_has_the_values_of_its_beginning() -> None:
    metrics = started(FEW)
    parts = metrics.chunks()
    text = next(parts)
    metrics.missing.set(FEW[0], 7)
    text += b"".join(parts)
    key = ("volcast_kline_missing", frozenset({("symbol", FEW[0])}))
    assert (samples(text)[key], samples(metrics.text())[key]) == (0, 7)


def one_line(value: float, form: Form, labels: Iterable[str] = ()) -> str:
    metrics = BySymbol(["BTCUSDT"], CollectorRegistry())
    words = {f"l{n}": (label,) for n, label in enumerate(labels)}
    family = metrics.add("m", "Text.", words, kind="gauge", form=form, initial=math.nan, for_all=False)
    family.set("BTCUSDT", value, *labels)
    return b"".join(metrics.chunks()).decode().splitlines()[-1]


@pytest.mark.parametrize(
    ("value", "form", "written"),
    [
        (True, Form.FLAG, "1"),
        (123_456_789, Form.COUNT, "123456789"),
        (1_704_067_200.123, Form.TIME, "1704067200"),
        (0.123456789, Form.NUMBER, "0.123457"),
        (-1.5e-7, Form.NUMBER, "-1.5e-07"),
        (math.inf, Form.NUMBER, "inf"),
    ],
)
def test_a_value_is_written_with_the_digits_that_mean_something(value: float, form: Form, written: str) -> None:
    assert one_line(value, form) == f'm{{symbol="BTCUSDT"}} {written}'


def test_a_label_can_have_any_character() -> None:
    odd = ['a"b', "c\\d", "e\nf", "100%s"]
    ((_, labels),) = samples((one_line(1, Form.FLAG, odd) + "\n").encode())
    assert [dict(labels)[f"l{n}"] for n in range(len(odd))] == odd


def test_which_symbols_have_every_line_does_not_depend_on_the_values(many: Metrics) -> None:
    def complete(metrics: Metrics) -> int:
        return sum(name == "volcast_model_info" for name, _ in samples(metrics.text()))

    assert complete(started(MANY)) == complete(many) >= FEWEST_IN_FULL
