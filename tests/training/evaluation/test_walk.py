"""The protocol: who learns from what, that all are asked the same, and that a bundle is scored as it is served."""

from __future__ import annotations

import dataclasses
import shutil

import msgspec
import numpy as np
import pytest
from repository import SHIPPED_BUNDLE

from stream import times
from stream.adapters import predictor
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import Issued
from stream.core.deciding.policy import Policy
from stream.core.deciding.replay import replay, to_grid
from stream.core.forecasting.contract import ContractError, Training
from stream.core.market.candle import HOUR_MS
from stream.testing.market import simulate_symbol
from stream.testing.sample_model import sample_model, sample_predict
from training import forecasters
from training.data import dataset
from training.data.dataset import Dataset, DatasetError, Fold
from training.data.panel import HORIZONS, NEXT_24H, QUANTITIES, ROLLING_24H_NEXT
from training.evaluation import walk
from training.forecasters import Fitted, ForecasterError

START = 1_704_067_200_000  # 2024-01-01 00:00 UTC
HOURS = 4_200
CANDLES = simulate_symbol("BTCUSDT", START, HOURS, seed=5)
del CANDLES[3_600:3_603]


def at(hour: int) -> int:
    return START + hour * HOUR_MS


@pytest.fixture(scope="module")
def data() -> Dataset:
    return dataset.of_grid("BTCUSDT", *to_grid(CANDLES))


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle whose training range lies in the simulated market."""

    until_hour: int = 2_000
    symbols: tuple[str, ...] = ("BTCUSDT",)
    from_hour: int = 0

    @property
    def model(self):
        training = Training(self.symbols, at(self.from_hour), at(self.until_hour - 1), 1, "0" * 64, 7)
        of = sample_model()
        return msgspec.structs.replace(of, contract=msgspec.structs.replace(of.contract, training=training))

    def __call__(self, sequence, static):
        return sample_predict(sequence, static)


class Spy:
    """Says the split that it was fitted before, and keeps what it was asked."""

    needs, extra = (), ""

    def __init__(self, name: str = "spy", notes: tuple[tuple[str, ...], ...] = ()) -> None:
        self.name, self.fits, self.asked, self.notes = name, [], [], list(notes)

    def fit(self, data: Dataset, start_ms: int, end_ms: int) -> Fitted:
        self.fits.append((start_ms, end_ms))

        def forecast(data, rows):
            self.asked.append(rows)
            return {NEXT_24H: np.full(len(rows), float(end_ms))}

        return Fitted(forecast, self.notes.pop(0) if self.notes else ())


def test_each_row_is_forecast_by_who_was_fitted_before_it_and_none_is_lost_between_the_steps(data):
    folds = [Fold(START, at(1_500), at(2_500)), Fold(START, at(2_500), at(4_000))]
    spy = Spy()
    panel = walk.walk_forward(data, folds, [spy])
    assert spy.fits == [(START, at(1_500)), (START, at(2_500))]
    forecast = panel.forecasts[NEXT_24H]["spy"]
    np.testing.assert_array_equal(forecast, np.where(panel.open_time < at(2_500), at(1_500), at(2_500)))
    np.testing.assert_array_equal(panel.open_time, data.open_time[data.rows(at(1_500), at(4_000))])
    # Every hour up to the last whose 24 h end within the period, but the missing ones and the one before them.
    assert panel.open_time[[0, -1]].tolist() == [at(1_500), at(4_000 - 25)]
    assert set(np.diff(panel.open_time)) == {HOUR_MS, 5 * HOUR_MS}


def test_years_that_do_not_touch_are_two_stretches(data):
    folds = [Fold(START, at(1_500), at(2_100)), Fold(START, at(2_600), at(3_200))]
    panel = walk.walk_forward(data, folds, [Spy()])
    np.testing.assert_array_equal(
        panel.open_time, data.open_time[[*data.rows(at(1_500), at(2_100)), *data.rows(at(2_600), at(3_200))]]
    )


def test_years_are_calendar_years_learnt_from_the_start():
    first, second = walk.years([2021, 2022], start_ms=5)
    assert first == Fold(5, times.parse("2021-01-01"), times.parse("2022-01-01"))
    assert second == Fold(5, first.end, times.parse("2023-01-01"))


def test_outcomes_stand_beside_what_was_said_for_the_same_hour(data):
    panel = walk.fixed({"model": Bundle()}, data, at(2_000), at(4_000), forecasters.named(forecasters.CORE))
    rows = data.rows(at(2_000), at(4_000))
    assert set(panel.realized) == set(QUANTITIES) == set(panel.forecasts)
    np.testing.assert_array_equal(panel.realized[NEXT_24H], data.targets.next_24h[rows])
    np.testing.assert_array_equal(panel.realized[ROLLING_24H_NEXT], data.targets.rolling_24h_next[rows])
    np.testing.assert_array_equal(panel.realized[HORIZONS[1]], np.sqrt(data.targets.mean_square[6][rows]))
    for by_name in panel.forecasts.values():
        for sigma in by_name.values():
            assert sigma.shape == panel.open_time.shape
            assert np.isfinite(sigma).all()
    assert list(panel.forecasts[NEXT_24H]) == [
        "model", "served", "persistence", "ewma", "rolling_mean", "log_har", "har", "linear",
    ]  # fmt: skip
    assert "rolling_mean_published" in panel.forecasts[ROLLING_24H_NEXT]
    assert any("leak" in note for note in panel.notes)


def test_a_bundle_is_scored_with_the_numbers_that_predict_gives_for_it(data):
    bundle = predictor.load(SHIPPED_BUNDLE)
    since = at(3_000)
    issued = [
        e
        for _, e in replay(Rules.of(Policy(), bundle.model.contract), "BTCUSDT", CANDLES, bundle.model, bundle, since)
        if isinstance(e, Issued)
    ]
    panel = walk.fixed(
        walk.bundles([SHIPPED_BUNDLE]), data, since, at(HOURS), forecasters.named(["persistence", "ewma", "har"])
    )
    served = {e.prediction.open_time: e for e in issued}
    events = [served[t] for t in panel.open_time.tolist()]
    assert len(events) > 1_000
    # While `har` is served its numbers are said; what the model says beside it is known of the headline.
    own = np.array([e.serving == "model" for e in events])
    assert own.sum() > 400
    np.testing.assert_array_equal(panel.forecasts[NEXT_24H]["model"], [e.model_volatility for e in events])
    for quantity, name, field in (
        (NEXT_24H, "model", "volatility"),
        (NEXT_24H, "persistence", "baseline_persistence"),
        (NEXT_24H, "ewma", "baseline_ewma"),
        (NEXT_24H, "har", "baseline_har"),
        *((horizon, "model", horizon) for horizon in HORIZONS),
        (ROLLING_24H_NEXT, "model", "rolling_24h_next"),
    ):
        served_now = np.array([getattr(e.prediction, field) for e in events])
        np.testing.assert_array_equal(panel.forecasts[quantity][name][own], served_now[own], err_msg=quantity + name)
    adaptive = panel.intervals["adaptive"]
    np.testing.assert_allclose(adaptive.low[own], np.array([e.interval.low for e in events])[own], rtol=1e-9)
    np.testing.assert_allclose(adaptive.high[own], np.array([e.interval.high for e in events])[own], rtol=1e-9)
    calibration = bundle.model.contract.calibration
    static = panel.intervals["static"]
    np.testing.assert_allclose(static.low, panel.forecasts[NEXT_24H]["model"] * np.exp(calibration.low))
    np.testing.assert_allclose(static.high, panel.forecasts[NEXT_24H]["model"] * np.exp(calibration.high))
    assert static.level == calibration.level


def test_baselines_learn_from_the_bundles_own_range(data):
    spy = Spy()
    walk.fixed({"model": Bundle(until_hour=1_800, from_hour=100)}, data, at(2_000), at(3_000), [spy])
    assert spy.fits == [(at(100), at(1_800))]


def test_the_bundles_har_is_the_one_it_carries(data):
    panel = walk.fixed({"model": Bundle()}, data, at(2_000), at(3_000), forecasters.named(["har"]))
    rows = data.rows(at(2_000), at(3_000))
    expected = forecasters.of_har(sample_model().contract.har).forecast(data, rows)[NEXT_24H]
    np.testing.assert_array_equal(panel.forecasts[NEXT_24H]["har"], expected)


def test_a_baseline_whose_range_the_file_lacks_is_left_out_aloud(data):
    panel = walk.fixed({"model": Bundle(until_hour=100)}, data, at(2_000), at(3_000), forecasters.named(["linear"]))
    assert "linear" not in panel.forecasts[NEXT_24H]
    (note,) = panel.notes
    assert note.startswith("linear is left out: only ")


def test_what_makes_it_no_test_is_noted(data):
    models = {"a": Bundle(until_hour=2_500, symbols=("ETHUSDT",)), "b": Bundle(until_hour=1_900)}
    panel = walk.fixed(models, data, at(2_000), at(3_000), ())
    seen, other, differs = panel.notes
    assert seen == "a learnt from candles up to 2024-04-14: no test of the hours before"
    assert other == "a learnt from ETHUSDT, not from BTCUSDT"
    assert differs == "b learnt from another range than a; the baselines learn from a's"
    assert set(panel.forecasts[NEXT_24H]) == {"a", "b"}
    assert set(panel.intervals) == {"adaptive", "static", "adaptive of b", "static of b"}


def test_baselines_that_can_only_learn_from_less_than_the_bundle_are_noted(data):
    panel = walk.fixed({"model": Bundle(from_hour=-1_000)}, data, at(2_000), at(3_000), ())
    (note,) = panel.notes
    assert note.startswith("the file begins on 2024-01-01: the baselines learn from less than model did")


def test_what_a_fit_notes_is_said_once_or_with_its_date(data):
    folds = [Fold(START, at(1_500), at(2_500)), Fold(START, at(2_500), at(4_000))]
    spy = Spy(notes=(("always",), ("always", "this once")))
    assert walk.walk_forward(data, folds, [spy]).notes == ("always", "this once (fitted before 2024-04-14)")


def test_who_waits_is_told_what_is_done(data):
    steps = []
    folds = [Fold(START, at(1_500), at(2_500)), Fold(START, at(2_500), at(4_000))]
    walk.walk_forward(data, folds, [Spy("a"), Spy("b")], progress=lambda *step: steps.append(step))
    assert [done for _, done, _ in steps] == [0, 1, 2, 3, 4]
    assert {total for _, _, total in steps} == {4}
    assert steps[0][0] == "fitting a before 2024-03-03"
    steps.clear()
    walk.fixed({"model": Bundle()}, data, at(2_000), at(3_000), [Spy()], progress=lambda *step: steps.append(step))
    assert [done for _, done, _ in steps] == [0, 1]


def test_bundles_are_named_by_their_files_or_their_versions(tmp_path):
    # Bytes after a field of the format's own make another file, and so another version, of the same model.
    other = tmp_path / "b.onnx"
    other.write_bytes(SHIPPED_BUNDLE.read_bytes() + b"\x32\x01x")
    version = predictor.load(SHIPPED_BUNDLE).model.version
    assert list(walk.bundles([SHIPPED_BUNDLE])) == ["model"]
    assert list(walk.bundles([SHIPPED_BUNDLE, other])) == ["btcusdt-1h", "b"]
    same_stem = tmp_path / "btcusdt-1h.onnx"
    shutil.copy(other, same_stem)
    assert list(walk.bundles([SHIPPED_BUNDLE, same_stem])) == [version, predictor.load(other).model.version]
    with pytest.raises(ForecasterError, match="the same bundle is given twice"):
        walk.bundles([SHIPPED_BUNDLE, SHIPPED_BUNDLE])
    with pytest.raises(ContractError, match=r"none\.onnx"):
        walk.bundles([tmp_path / "none.onnx"])


def test_refusals_are_one_line(data):
    with pytest.raises(DatasetError, match="the file holds 2024-01-01 to 2024-06-2"):
        walk.fixed({"model": Bundle()}, data, at(HOURS), at(HOURS + 2_000), ())
    with pytest.raises(ForecasterError, match="no model to score"):
        walk.fixed({}, data, at(2_000), at(3_000), ())
    with pytest.raises(ForecasterError, match="two forecasters are called har"):
        walk.fixed({"har": Bundle()}, data, at(2_000), at(3_000), forecasters.named(["har"]))
    folds = [Fold(START, at(2_500), at(3_500)), Fold(START, at(1_500), at(2_500))]
    with pytest.raises(DatasetError, match="in order"):
        walk.walk_forward(data, folds, [Spy()])
    with pytest.raises(DatasetError, match="only "):
        walk.walk_forward(data, [Fold(START, at(200), at(2_500))], [Spy()])


@pytest.mark.real_data
def test_the_baselines_of_2023_are_as_good_as_they_were_measured(real_data):
    data = dataset.load(real_data / "btcusdt_1h.parquet", "BTCUSDT")
    names = ("persistence", "rolling_mean_published", "rolling_mean", "log_har", "har", "garch_t")
    panel = walk.walk_forward(data, walk.years([2023], start_ms=times.parse("2019-01-01")), forecasters.named(names))

    def rmse(quantity: str, name: str) -> float:
        return float(np.sqrt(np.nanmean((panel.realized[quantity] - panel.forecasts[quantity][name]) ** 2)))

    assert rmse(ROLLING_24H_NEXT, "persistence") == pytest.approx(0.000453, abs=1e-6)
    # The leak is worth 6 %, and with it the mean still errs three times as much as saying nothing new.
    assert rmse(ROLLING_24H_NEXT, "rolling_mean_published") == pytest.approx(0.001443, abs=1e-6)
    assert rmse(ROLLING_24H_NEXT, "rolling_mean") == pytest.approx(0.001540, abs=1e-6)
    assert rmse(NEXT_24H, "persistence") == pytest.approx(0.002637, abs=1e-6)
    assert rmse(NEXT_24H, "har") < rmse(NEXT_24H, "log_har") < rmse(NEXT_24H, "garch_t") < rmse(NEXT_24H, "persistence")
