"""From a panel to figures: everybody on the same rows, undefined things null with a reason, a page of fixed bytes."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from base64 import b64decode

import msgspec
import numpy as np
import pytest
from rich.console import Console

from stream.core.market.candle import HOUR_MS
from training.data.panel import NEXT_24H, QUANTITIES, IntervalSeries, Panel
from training.evaluation.evaluate import MEANINGS
from training.pages import evaluation_page, figures, table
from training.scoring.measures import measures
from training.scoring.scores import Evaluation, Protocol, ScoredModel, common_sample, score

START = 1_609_455_600_000  # 2020-12-31 23:00 UTC: its forecast is said at 2021-01-01 00:00
DAYS = 100


def panel_of(days: int = DAYS, seed: int = 1) -> Panel:
    """A model that is right but for noise, `har` that is noisier, and a persistence that knows nothing."""
    chance = np.random.default_rng(seed)
    n = 24 * days
    true = np.exp(-5 + 0.3 * chance.standard_normal(n))
    realized = true * np.exp(0.2 * chance.standard_normal(n))
    by_forecaster = {
        "model": true,
        "har": true * np.exp(0.25 * chance.standard_normal(n)),
        "persistence": np.full(n, 0.007),
    }
    return Panel(
        symbol="BTCUSDT",
        open_time=START + HOUR_MS * np.arange(n, dtype=np.int64),
        realized=dict.fromkeys(QUANTITIES, realized),
        forecasts=dict.fromkeys(QUANTITIES, by_forecaster),
        intervals={"static": IntervalSeries(0.7 * true, 1.4 * true, 0.9)},
        notes=("persistence knows <nothing>",),
    )


def scored(panel: Panel, *, tests: bool = True) -> Evaluation:
    return score(
        panel,
        panel.forecasts[NEXT_24H]["persistence"] * np.linspace(0.5, 2, len(panel.open_time)),
        [ScoredModel("model", "abcdef012345")],
        Protocol("fixed", "As it is."),
        period=("2021-01-01", "2021-04-11"),
        data_sha256="ab" * 32,
        tests=tests,
    )


@pytest.fixture(scope="module")
def panel() -> Panel:
    return panel_of()


@pytest.fixture(scope="module")
def evaluation(panel: Panel) -> Evaluation:
    return scored(panel)


def test_the_figures_are_the_measures_of_the_panel(panel, evaluation):
    realized, forecast = panel.realized[NEXT_24H], panel.forecasts[NEXT_24H]["har"]
    assert evaluation.next_24h["har"] == measures(realized, forecast)
    assert list(evaluation.horizons) == ["1h", "6h", "12h", "24h"]
    assert (evaluation.rows, evaluation.days) == (2_400, 100)
    by_year = evaluation.groups[NEXT_24H]["year"]
    assert list(by_year) == ["2021"]
    assert by_year["2021"]["har"] == evaluation.next_24h["har"]
    assert evaluation.phases[NEXT_24H]["model"]["qlike"].keys() == {"min", "median", "max"}
    low, mid, high = evaluation.phases[NEXT_24H]["har"]["rmse"].values()
    each = [measures(realized[k::24], forecast[k::24])["rmse"] for k in range(24)]
    assert (low, mid, high) == (min(each), pytest.approx(np.median(each)), max(each))


def test_the_better_model_wins_its_tests(evaluation):
    found = evaluation.diebold_mariano["model"]["har"]
    assert found.statistic is not None
    assert found.statistic < 0
    assert evaluation.diebold_mariano.keys() == {"model"}
    assert evaluation.confidence_sets["qlike"].included == ["model"]
    assert evaluation.mincer_zarnowitz["persistence"].reason is not None  # a constant has no slope
    assert evaluation.diebold_mariano_by_year == {}


def test_everybody_is_scored_on_the_rows_that_all_of_them_said(panel):
    model, har = (panel.forecasts[NEXT_24H][n].copy() for n in ("model", "har"))
    realized = panel.realized[NEXT_24H].copy()
    model[:100], har[50:200], realized[300] = np.nan, np.nan, np.nan
    mute = np.full(len(model), np.nan)
    partly = dataclasses.replace(
        panel,
        realized={**panel.realized, NEXT_24H: realized},
        forecasts={**panel.forecasts, NEXT_24H: {"model": model, "har": har, "mute": mute}},
    )
    got = score(
        partly, model, [ScoredModel("model", "v")], Protocol("fixed", ""), period=("", ""), data_sha256="", tests=False
    )
    assert got.scored_rows[NEXT_24H] == 2_400 - 200 - 1
    assert got.silent == {NEXT_24H: ["mute"]}
    assert set(got.next_24h) == {"model", "har"}
    assert got.next_24h["model"] == measures(realized[200:], model[200:])
    assert common_sample(partly, NEXT_24H).rows.sum() == got.scored_rows[NEXT_24H]


def test_outcomes_decide_no_group(panel, evaluation):
    shuffled = np.random.default_rng(1).permutation(panel.realized[NEXT_24H])
    other = scored(dataclasses.replace(panel, realized=dict.fromkeys(QUANTITIES, shuffled)), tests=False)
    forecast = panel.forecasts[NEXT_24H]["model"]
    for kind, by_label in evaluation.groups[NEXT_24H].items():
        assert list(by_label) == list(other.groups[NEXT_24H][kind])
    # `known` rises along the rows: the terciles are the thirds of the period, whatever came.
    for thing, outcome in ((evaluation, panel.realized[NEXT_24H]), (other, shuffled)):
        low = thing.groups[NEXT_24H]["volatility before"]["low"]["model"]
        assert low == measures(outcome[:800], forecast[:800])


def test_intervals_are_measured_overall_and_by_group(panel, evaluation):
    realized, interval = panel.realized[NEXT_24H], panel.intervals["static"]
    inside = (realized >= interval.low) & (realized <= interval.high)
    got = evaluation.interval
    assert got is not None
    assert got == evaluation.intervals["static"]
    assert (got.level, got.coverage) == (0.9, pytest.approx(inside.mean()))
    assert got.width == pytest.approx(np.log(2))
    assert got.groups["volatility before"]["low"]["coverage"] == pytest.approx(inside[:800].mean())
    assert got.coverage_30d_min is not None
    assert got.coverage_30d_max is not None
    assert got.coverage_30d_min <= got.coverage <= got.coverage_30d_max


def test_the_adaptive_interval_is_the_headline_where_there_is_one(panel):
    wide = IntervalSeries(panel.intervals["static"].low / 2, panel.intervals["static"].high * 2, 0.9)
    got = scored(dataclasses.replace(panel, intervals={**panel.intervals, "adaptive": wide}), tests=False)
    assert got.interval == got.intervals["adaptive"] != got.intervals["static"]


@pytest.mark.parametrize("days", [1, 5, 29])
def test_a_short_period_is_null_with_a_reason_and_valid_json(days):
    short = panel_of(days)
    got = scored(short)
    text = json.dumps(msgspec.to_builtins(got), allow_nan=False)
    back = json.loads(text)
    assert back["diebold_mariano"]["model"]["har"]["p"] is None
    assert back["diebold_mariano"]["model"]["har"]["reason"] == "fewer than 30 days"
    assert back["confidence_sets"]["qlike"]["included"] is None
    assert back["interval"]["coverage_30d_min"] is None
    assert back["interval"]["reason"] == "the period is shorter than 30 days"
    assert table.tables(got)
    assert "fewer than 30 days" in evaluation_page.page(got, short, MEANINGS)


def test_one_forecaster_alone_is_measured_and_not_compared(panel):
    alone = dataclasses.replace(
        panel, forecasts={NEXT_24H: {"model": panel.forecasts[NEXT_24H]["model"]}}, intervals={}, notes=()
    )
    got = score(
        alone,
        alone.forecasts[NEXT_24H]["model"],
        [ScoredModel("model", "v")],
        Protocol("fixed", "As it is."),
        period=("2021-01-01", "2021-04-11"),
        data_sha256="",
    )
    assert got.diebold_mariano == {"model": {}}
    assert got.confidence_sets["qlike"].reason == "a set of one: nothing to compare"
    assert got.rolling_24h_next == {}
    assert got.interval is None
    assert got.horizons == {"1h": {}, "6h": {}, "12h": {}, "24h": {}}
    assert [t.title for t in table.tables(got)]
    assert "No forecaster said one." in evaluation_page.page(got, alone, MEANINGS)


def test_two_years_are_tested_each_by_itself():
    got = scored(panel_of(400))
    assert list(got.groups[NEXT_24H]["year"]) == ["2021", "2022"]
    assert list(got.diebold_mariano_by_year) == ["2021", "2022"]
    assert got.diebold_mariano_by_year["2022"]["model"]["har"].days == 35
    assert figures.forecast_against_actual(panel_of(400), "model").count(b'id="axes_') == 2


def test_the_table_shows_every_forecaster_and_fits_a_terminal(evaluation):
    console = Console(width=80, record=True, file=io.StringIO())
    for part in table.tables(evaluation):
        console.print(part)
    text = console.export_text()
    for name in ("model", "har", "persistence", "next 24 h, none of them known", "horizon 6h", "Newey-West"):
        assert name in text
    assert "…" not in text


def test_the_page_needs_nothing_from_anywhere_and_is_the_same_again(panel, evaluation):
    page = evaluation_page.page(evaluation, panel, MEANINGS)
    assert page == evaluation_page.page(evaluation, panel, MEANINGS)
    assert len(page) < 3_000_000
    assert "<script" not in page
    assert not re.search(r"https?:|//", re.sub(r"base64,[^\"]+", "", page))
    assert "default-src 'none'" in page
    assert 'name="referrer" content="no-referrer"' in page
    assert "knows &lt;nothing&gt;" in page
    for expected in (MEANINGS[NEXT_24H][1:], evaluation.data_sha256, "abcdef012345", "As it is.", "Harvey"):
        assert expected in page
    images = re.findall(r'<img alt="([^"]+)" src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(images) == page.count("<img") == 5
    for alt, data in images:
        assert len(alt) > 40
        svg = b64decode(data).decode()
        assert "<svg" in svg
        assert "dc:date" not in svg


@pytest.mark.parametrize(("form", "magic"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_a_figure_is_the_same_bytes_again(panel, form, magic):
    first = figures.forecast_against_actual(panel, "model", form)
    assert first.startswith(magic)
    assert first == figures.forecast_against_actual(panel, "model", form)
    other = dataclasses.replace(panel, realized=dict.fromkeys(QUANTITIES, 1.1 * panel.realized[NEXT_24H]))
    assert first != figures.forecast_against_actual(other, "model", form)
    assert len(first) < 200_000
