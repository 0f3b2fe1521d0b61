"""What the study alters is altered as it says; and on the real candles the committed bundle's signals keep their
word."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository import ROOT

from stream import times
from stream.adapters import predictor
from stream.core.deciding.replay import to_grid
from stream.core.forecasting import drift
from stream.core.forecasting.contract import Contract
from stream.core.market.candle import HOUR_MS
from stream.testing.market import simulate_symbol
from stream.testing.sample_model import sample_model
from training.bundling import drift_rule
from training.data import dataset
from training.data.dataset import Dataset, DatasetError
from training.studies import drift_alarms, drift_changes
from training.studies.drift_alarms import Study
from training.studies.drift_changes import CHANGES, Change

START = 1_609_459_200_000  # 2021-01-01 00:00 UTC
HOURS = 7_500


@pytest.fixture(scope="module")
def data() -> Dataset:
    tape = simulate_symbol("BTCUSDT", START, HOURS, seed=5)
    del tape[2_000:2_003]
    return dataset.of_grid("BTCUSDT", *to_grid(tape))


@pytest.fixture(scope="module")
def contract(data: Dataset) -> Contract:
    until = START + 6_000 * HOUR_MS
    contract = sample_model().contract
    return msgspec.structs.replace(
        contract,
        reference=drift_rule.reference(data, START, until),
        training=msgspec.structs.replace(contract.training, trained_from=START, trained_until=until - HOUR_MS),
    )


# --- changes ------------------------------------------------------------------------------------------------------


def test_to_change_nothing_is_to_change_nothing(data: Dataset) -> None:
    ones = np.ones(HOURS)
    np.testing.assert_allclose(drift_changes.changed(data.ohlcv, ones, ones), data.ohlcv, rtol=1e-9)


@given(st.floats(0.2, 5.0), st.floats(0.1, 10.0), st.integers(1, 1_900))
def test_moves_and_volume_are_scaled_from_an_hour_on(data: Dataset, k: float, volume: float, first: int) -> None:
    ohlcv = data.ohlcv[:1_990]
    by = np.where(np.arange(1_990) >= first, k, 1.0)
    got = drift_changes.changed(ohlcv, by, np.where(np.arange(1_990) >= first, volume, 1.0))
    before, after = np.log(ohlcv[:, :4]), np.log(got[:, :4])
    np.testing.assert_allclose(np.diff(after[:, 3]), by[1:] * np.diff(before[:, 3]), atol=1e-9)
    for column in (1, 2):
        scaled = by * (before[:, column] - before[:, 0])
        np.testing.assert_allclose(after[:, column] - after[:, 0], scaled, atol=1e-9)
    np.testing.assert_allclose(got[:first], ohlcv[:first], rtol=1e-9)
    np.testing.assert_allclose(got[first:, 4], volume * ohlcv[first:, 4])
    assert (got[:, 1] >= np.maximum(got[:, 0], got[:, 3]) * (1 - 1e-12)).all()
    assert (got[:, 2] <= np.minimum(got[:, 0], got[:, 3]) * (1 + 1e-12)).all()


def test_missing_hours_stay_missing_and_changes_stand_side_by_side(data: Dataset) -> None:
    factors = np.stack([np.full(HOURS, 2.0), np.ones(HOURS)])
    got = drift_changes.changed(data.ohlcv, factors, np.ones((2, HOURS)))
    assert (np.isnan(got[0]) == np.isnan(data.ohlcv)).all()
    np.testing.assert_array_equal(got[0], drift_changes.changed(data.ohlcv, factors[0], np.ones(HOURS)))
    np.testing.assert_allclose(got[1], data.ohlcv, rtol=1e-9)


def test_a_levelled_weekend_moves_and_trades_like_the_week(data: Dataset) -> None:
    weekend = (data.open_time // HOUR_MS // 24 + 3) % 7 >= 5
    ohlcv = drift_changes.changed(data.ohlcv, np.where(weekend, 0.5, 1.0), np.where(weekend, 0.25, 1.0))
    rows = slice(6_000, 6_720)
    returns, volume = drift_changes.factors(Change("", level_weekend=True), data.open_time, ohlcv, rows)
    assert (returns[~weekend[rows]] == 1).all()
    assert (volume[~weekend[rows]] == 1).all()
    quiet = drift_changes.factors(Change("", level_weekend=True), data.open_time, data.ohlcv, rows)
    np.testing.assert_allclose(returns[weekend[rows]] / quiet[0][weekend[rows]], 2.0)
    np.testing.assert_allclose(volume[weekend[rows]] / quiet[1][weekend[rows]], 4.0)


# --- the study ----------------------------------------------------------------------------------------------------


def test_the_study_counts_what_the_monitor_would_have_said(data: Dataset, contract: Contract) -> None:
    found = drift_alarms.study(data, contract, START, START + HOURS * HOUR_MS, changes=CHANGES[:1], every=4)
    values = drift.measures(data.features, data.ohlcv)
    limits = np.array([contract.reference[name].threshold for name in drift.MEASURES])
    marks = np.array([contract.reference[name].quantiles for name in drift.MEASURES]).T
    slow = [drift.slow_distances(values, end, marks) for end in range(drift.WINDOW_HOURS, HOURS + 1, 168)]
    judged = [drift.detected(s, limits) for s in slow if s is not None]
    by_part = {q.part: q for q in found.quiet}
    assert by_part["2021"].weeks == len(judged)
    assert by_part["2021"].slow == pytest.approx(np.mean(judged))
    split = by_part["training range"], by_part["after it"]
    assert sum(q.weeks for q in split) == len(judged)
    assert sum(q.weeks * q.slow for q in split) == pytest.approx(sum(judged))
    assert found.reference == "bundle"
    assert split[0].slow <= 0.1
    assert split[0].fast <= 0.1


def test_a_change_of_nothing_is_found_as_often_as_weeks_alarm(data: Dataset, contract: Contract) -> None:
    found = drift_alarms.study(data, contract, START, START + HOURS * HOUR_MS, changes=(CHANGES[0], Change("x9", 9.0)))
    values = drift.measures(data.features, data.ohlcv)
    limits = np.array([contract.reference[name].fast_threshold for name in drift.MEASURES])
    starts = range(0, HOURS - drift.WINDOW_HOURS + 1, 168)
    fast = [drift.fast_distances(values, s + drift.FAST_HOURS) for s in starts if s >= drift.LOOKBACK_HOURS - 1]
    judged = [drift.detected(s, limits) for s in fast if s is not None]
    nothing, ninefold = found.power
    assert nothing.starts == len(judged)
    assert nothing.fast == pytest.approx(np.mean(judged))
    assert ninefold.fast == 1.0
    assert ninefold.unseen_starts > 0
    assert ninefold.fast_unseen == 1.0


def test_a_symbol_that_the_bundle_does_not_describe_is_held_against_its_own_past(
    data: Dataset, contract: Contract
) -> None:
    other = dataset.of_grid("ETHUSDT", data.open_time, data.ohlcv * [9, 9, 9, 9, 40])
    found = drift_alarms.study(other, contract, START, START + HOURS * HOUR_MS, changes=CHANGES[:1], every=4)
    assert found.reference == "own"
    # Forty times the volume of what the bundle knows: against the bundle every week would alarm.
    assert sum(q.weeks * q.slow for q in found.quiet[-2:]) < 0.5 * sum(q.weeks for q in found.quiet[-2:])
    assert found.shuffled_slow <= 0.02


def test_a_period_too_short_to_judge_is_refused(data: Dataset, contract: Contract) -> None:
    with pytest.raises(DatasetError, match="100 days"):
        drift_alarms.study(data, contract, START, START + 1_500 * HOUR_MS)


# --- the committed bundle -----------------------------------------------------------------------------------------


@cache
def studied(candles: Path) -> Study:
    contract = predictor.load(ROOT / "export" / "models" / "btcusdt-1h.onnx").model.contract
    data = dataset.load(candles, "BTCUSDT")
    period = times.parse("2019-01-01"), times.parse("2025-01-01")
    return drift_alarms.study(data, drift_alarms.calibrated_before(data, contract, times.parse("2024-01-01")), *period)


@pytest.fixture
def study(real_data: Path) -> Study:
    return studied(real_data / "btcusdt_1h.parquet")


@pytest.mark.real_data
def test_the_bundles_signals_are_quiet_in_quiet_years_and_hear_what_they_must(study: Study) -> None:
    trained, unseen = study.quiet[-2:]
    assert (trained.part, unseen.part) == ("training range", "after it")
    assert max(trained.slow, trained.fast) <= 0.10
    assert max(unseen.slow, unseen.fast) <= 0.15
    power = {p.change: p for p in study.power}
    assert power["returns × 3"].starts > 300
    assert power["returns × 3"].fast >= 0.80
    assert power["returns × 4"].slow >= 0.90
    assert max(study.shuffled_slow, study.shuffled_fast) <= 0.02


@pytest.mark.real_data
def test_the_page_states_what_the_study_found(study: Study) -> None:
    page = (ROOT / "docs" / "drift.md").read_text()

    def row(first: str) -> list[str]:
        (found,) = re.findall(rf"^\| {re.escape(first)} \|(.+)\|$", page, re.MULTILINE)
        return [cell.strip() for cell in found.split("|")]

    for quiet in study.quiet:
        stated = row(quiet.part)
        assert stated == [
            f"{quiet.weeks}", percent(quiet.slow), percent(quiet.default), f"{quiet.fast_weeks}", percent(quiet.fast)
        ], quiet.part  # fmt: skip
    for power in study.power:
        after = [percent(share) for share in (power.slow_unseen, power.fast_unseen) if share is not None]
        assert row(power.change) == [percent(power.slow), percent(power.fast), *after], power.change
    for measure in study.measures:
        assert row(f"`{measure.name}`")[-2:] == [f"{measure.threshold:.2f}", f"{measure.fast_threshold:.2f}"]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


@pytest.mark.real_data
def test_the_bundles_thresholds_are_those_of_its_training_range(real_data: Path) -> None:
    contract = predictor.load(ROOT / "export" / "models" / "btcusdt-1h.onnx").model.contract
    data = dataset.load(real_data / "btcusdt_1h.parquet", "BTCUSDT")
    made = drift_rule.reference(data, times.parse("2018-03-01"), times.parse("2025-01-01"))
    for name, of in contract.reference.items():
        np.testing.assert_allclose(of.quantiles, made[name].quantiles, atol=2e-6)
        assert (of.threshold, of.fast_threshold) == pytest.approx(
            (made[name].threshold, made[name].fast_threshold), abs=2e-4
        )


def test_the_figures_leave_as_plain_data_and_as_tables(data: Dataset, contract: Contract) -> None:
    from rich.console import Console

    found = drift_alarms.study(data, contract, START, START + HOURS * HOUR_MS, changes=CHANGES[:1], every=8)
    assert msgspec.convert(msgspec.to_builtins(found), Study) == found
    console = Console(width=140, record=True)
    for table in drift_alarms.tables(found):
        console.print(table)
    text = console.export_text()
    assert all(name in text for name in (*drift.MEASURES, "training range", "nothing"))
