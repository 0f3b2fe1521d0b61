"""No forecaster knows what comes after: the future is altered, and what was said before must stay as it was.

Two alterations: candles after the newest row that is forecast, and labels that do not end within the training range.
Each is also shown to find a forecaster that does look. Everyone is fitted anew on the altered file and compared to the
last bit, so the same tests hold that the same seed says the same.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import need

from stream.core.deciding.replay import to_grid
from stream.core.market.candle import HOUR_MS
from stream.testing.market import simulate_symbol
from training import forecasters
from training.data import dataset
from training.data.dataset import Dataset
from training.data.panel import HORIZONS, NEXT_24H, ROLLING_24H_NEXT
from training.forecasters import Fitted, ForecasterError, boosting, garch
from training.forecasters.arithmetic import RollingMean, RollingMeanPublished
from training.forecasters.boosting import LightGbm
from training.forecasters.network import Network
from training.forecasters.reference_lstm import ReferenceLstm
from training.models import linear

START = 1_609_459_200_000  # 2021-01-01 00:00 UTC
HOURS, SPLIT_HOUR = 2_200, 1_700
SPLIT = START + SPLIT_HOUR * HOUR_MS
CHEAP = ("persistence", "ewma", "rolling_mean", "log_har", "har", "linear", "garch_t")
#: Seconds per fit: fewer trees and epochs, and both alterations at once.
DEAR = (
    LightGbm(trees=20),
    ReferenceLstm(epochs=1),
    ReferenceLstm("reference_lstm_24h", NEXT_24H, epochs=1),
    # Twice four ensembles: most of a minute, and minutes on a machine that does other things as well.
    pytest.param(Network(epochs=1), marks=pytest.mark.timeout(900)),
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    tape = simulate_symbol("BTCUSDT", START, HOURS, seed=5)
    del tape[1_000:1_003]
    return dataset.of_grid("BTCUSDT", *to_grid(tape))


def candles_altered(data: Dataset, first: int, seed: int) -> Dataset:
    """Another market from row `first` on; one of its hours is missing."""
    chance = np.random.default_rng(seed)
    ohlcv = data.ohlcv.copy()
    coming = len(ohlcv) - first
    ohlcv[first:, :4] *= np.exp(np.cumsum(chance.normal(scale=0.05, size=coming)))[:, None]
    ohlcv[first:, 4] *= np.exp(chance.normal(size=coming))
    if coming:
        ohlcv[first + int(chance.integers(coming))] = np.nan
    return dataset.of_grid(data.symbol, data.open_time, ohlcv)


def labels_altered(data: Dataset, seed: int) -> Dataset:
    """Other outcomes for every row whose label does not end before the split."""
    # The candle's own hour and the 24 of its label.
    learnt = data.open_time + 25 * HOUR_MS <= SPLIT
    chance = np.random.default_rng(seed)
    labels, rolling = data.labels.copy(), data.targets.rolling_24h_next.copy()
    labels[~learnt] *= np.exp(chance.normal(size=labels[~learnt].shape))
    rolling[~learnt] *= np.exp(chance.normal(size=rolling[~learnt].shape))
    return dataclasses.replace(data, labels=labels, targets=dataclasses.replace(data.targets, rolling_24h_next=rolling))


def forecast_of(forecaster, data: Dataset, last: int, fitted: Fitted | None = None) -> dict[str, np.ndarray]:
    rows = np.arange(SPLIT_HOUR, last + 1)
    fitted = fitted or forecaster.fit(data, START, SPLIT)
    return dict(fitted.forecast(data, rows))


def assert_blind_to_candles(
    forecaster, data: Dataset, hours_after_split: int, seed: int, fitted: Fitted | None = None
) -> None:
    """`fitted`: on the unaltered data, where it is at hand."""
    last = SPLIT_HOUR + hours_after_split
    assert_same(
        forecast_of(forecaster, data, last, fitted),
        forecast_of(forecaster, candles_altered(data, last + 1, seed), last),
    )


def assert_blind_to_labels(forecaster, data: Dataset, seed: int) -> None:
    assert_same(
        forecast_of(forecaster, data, HOURS - 1), forecast_of(forecaster, labels_altered(data, seed), HOURS - 1)
    )


def assert_same(forecasts: dict[str, np.ndarray], again: dict[str, np.ndarray]) -> None:
    assert forecasts.keys() == again.keys()
    for quantity, sigma in forecasts.items():
        assert np.isfinite(sigma).any()
        np.testing.assert_array_equal(sigma, again[quantity], err_msg=quantity)


@pytest.fixture(scope="module")
def fitted(data) -> dict[str, Fitted]:
    return {name: forecasters.named([name])[0].fit(data, START, SPLIT) for name in CHEAP}


@pytest.mark.parametrize("name", CHEAP)
@given(after=st.integers(0, 300), seed=st.integers(0, 2**32))
@settings(max_examples=8)
def test_what_was_said_does_not_change_with_the_candles_that_follow(data, fitted, name, after, seed):
    (forecaster,) = forecasters.named([name])
    assert_blind_to_candles(forecaster, data, after, seed, fitted[name])


@pytest.mark.parametrize("name", CHEAP)
def test_nobody_learns_from_an_outcome_that_ends_after_the_split(data, name):
    (forecaster,) = forecasters.named([name])
    assert_blind_to_labels(forecaster, data, seed=3)


@pytest.mark.parametrize("forecaster", DEAR, ids=["lightgbm", "reference_lstm", "reference_lstm_24h", "model"])
def test_those_that_take_long_to_fit_know_nothing_of_the_future_either(data, forecaster):
    if forecaster.name == "lightgbm":
        need("libgomp.so.1")
    last = SPLIT_HOUR + 100
    other = labels_altered(candles_altered(data, last + 1, seed=1), seed=2)
    assert_same(forecast_of(forecaster, data, last), forecast_of(forecaster, other, last))


def test_the_published_mean_is_found_to_look_ahead(data):
    with pytest.raises(AssertionError, match=ROLLING_24H_NEXT):
        assert_blind_to_candles(RollingMeanPublished(), data, hours_after_split=20, seed=1)


class WithoutEmbargo:
    """A mistake that is easily made: it learns from every row before the split, whose labels reach over it."""

    name, needs, extra = "without_embargo", (), ""

    def fit(self, data: Dataset, start_ms: int, end_ms: int) -> Fitted:
        rows = np.nonzero((data.open_time < end_ms) & data.features.ready & np.isfinite(data.labels[:, 0]))[0]
        weights, bias = linear.fit_log(data.features.static[rows].astype(float), data.labels[rows, 0], ridge=0.1)
        return Fitted(lambda d, r: {NEXT_24H: np.exp(d.features.static[r] @ weights + bias)})


def test_learning_over_the_split_is_found(data):
    with pytest.raises(AssertionError, match=NEXT_24H):
        assert_blind_to_labels(WithoutEmbargo(), data, seed=3)
    with pytest.raises(AssertionError, match=NEXT_24H):
        assert_blind_to_candles(WithoutEmbargo(), data, hours_after_split=0, seed=1)


def test_the_published_mean_is_the_honest_one_an_hour_later(data):
    rows = np.arange(100, 200)
    published = RollingMeanPublished().fit(data, START, SPLIT)
    honest = RollingMean().fit(data, START, SPLIT).forecast(data, rows + 1)
    assert set(published.forecast(data, rows)) == {ROLLING_24H_NEXT}
    np.testing.assert_array_equal(published.forecast(data, rows)[ROLLING_24H_NEXT], honest[ROLLING_24H_NEXT])
    assert "leak" in published.notes[0]
    window = data.targets.rolling_24h_next[np.arange(100 - 23, 101)]
    assert published.forecast(data, rows)[ROLLING_24H_NEXT][0] == pytest.approx(window.mean())


def test_garch_recovers_what_its_returns_were_made_with():
    chance = np.random.default_rng(11)
    omega, alpha, beta, dof, hours = 0.02, 0.1, 0.85, 6.0, 30_000
    shocks = chance.standard_t(dof, size=hours) * np.sqrt((dof - 2) / dof)
    returns, h = np.empty(hours), omega / (1 - alpha - beta)
    for t in range(hours):
        returns[t] = np.sqrt(h) * shocks[t]
        h = omega + alpha * returns[t] ** 2 + beta * h
    found, notes = garch.fit_parameters(returns)
    assert notes == ()
    assert (found.omega, found.alpha, found.beta) == pytest.approx((omega, alpha, beta), abs=0.02)
    assert garch.variance_next_hour(returns, found)[-1] == pytest.approx(h, rel=0.1)


def test_garch_counts_a_missing_return_as_what_was_expected():
    p = garch.Parameters(omega=0.1, alpha=0.2, beta=0.7, start=1.0)
    with_hole = garch.variance_next_hour(np.array([1.0, np.nan, 2.0]), p)
    instead = garch.variance_next_hour(np.array([1.0, np.sqrt(with_hole[0]), 2.0]), p)
    np.testing.assert_allclose(with_hole, instead, rtol=1e-12)
    # By hand: 0.1 + 0.2 + 0.7, then the expectation of a market at rest, then a shock of 2.
    np.testing.assert_allclose(with_hole, [1.0, 1.0, 0.1 + 0.2 * 4 + 0.7], rtol=1e-12)


def test_a_garch_that_does_not_converge_says_so_in_one_line():
    # Prices of a market that stands still but for one hour: no parameters describe it best.
    returns = np.zeros(1_000)
    returns[500] = 1e-3
    _, notes = garch.fit_parameters(returns)
    (note,) = notes
    assert "garch_t did not converge" in note
    assert "\n" not in note


def test_trees_see_the_static_features_and_the_measured_channels_of_48_hours(data):
    rows = np.array([500, 501])
    x = boosting.inputs(data, rows)
    static = data.features.static.shape[-1]
    assert x.shape == (2, static + 48 * len(boosting.CHANNELS))
    np.testing.assert_array_equal(x[:, :static], data.features.static[rows])
    # An hour later the same hour's channels stand one hour further back.
    np.testing.assert_array_equal(x[0, static:].reshape(48, -1)[1:], x[1, static:].reshape(48, -1)[:-1])


def test_what_is_fitted_says_every_quantity_and_is_right_on_average_in_its_range(data, fitted):
    rows = data.rows(START, SPLIT)
    for name in ("linear", "garch_t"):
        forecasts = fitted[name].forecast(data, rows)
        assert set(forecasts) == {NEXT_24H, *HORIZONS, ROLLING_24H_NEXT}
        known = np.isfinite(data.labels[rows, 0])
        ratio = data.labels[rows, 0][known].mean() / forecasts[NEXT_24H][known].mean()
        assert ratio == pytest.approx(1.0, abs=0.15), name


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_the_reference_network_is_saved_as_it_forecasts(data, tmp_path):
    import keras

    path = tmp_path / "reference.keras"
    rows = np.arange(40, 60)
    forecast = ReferenceLstm(epochs=1, save_to=path).fit(data, START, SPLIT).forecast(data, rows)[ROLLING_24H_NEXT]
    # The first 47 hours have no window of 48.
    assert np.isnan(forecast[: 47 - 40]).all()
    rows, forecast = rows[47 - 40 :], forecast[47 - 40 :]
    window = np.stack([data.features.realized_24h[r - 47 : r + 1] for r in rows])[..., None]
    again = np.asarray(keras.models.load_model(path)(window.astype(np.float32)))[:, 0]
    np.testing.assert_allclose(np.maximum(again, 1e-5), forecast, rtol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["reference.keras"]
    # It is what its description says: one LSTM of 64 units on one channel, and one dense unit.
    count = 4 * 64 * (64 + 1 + 1) + 64 + 1
    assert keras.models.load_model(path).count_params() == count


def test_a_reference_network_that_cannot_be_saved_is_one_line_before_it_is_fitted(data, tmp_path):
    for path, cause in ((tmp_path / "a.h5", "rename it"), (tmp_path / "none" / "a.keras", "no such folder")):
        with pytest.raises(ForecasterError, match=cause):
            ReferenceLstm(epochs=1, save_to=path).fit(data, START, SPLIT)


def test_names_are_what_they_name():
    assert [f.name for f in forecasters.named(forecasters.NAMES)] == list(forecasters.NAMES)
    assert set(forecasters.CORE) < set(forecasters.BASELINES) < set(forecasters.NAMES)
    with pytest.raises(ForecasterError, match="no forecaster is called 'arima'; there are persistence, ewma"):
        forecasters.named(["arima"])
    with pytest.raises(ForecasterError, match="twice"):
        forecasters.named(["har", "har"])


def test_importing_them_loads_no_heavy_library():
    code = (
        "import sys, training.evaluation.walk;"
        "bad = {'tensorflow', 'keras', 'arch', 'lightgbm', 'statsmodels', 'pandas', 'scipy'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(bad)) or 0)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_library_that_is_absent_is_one_line_with_its_extra():
    code = (
        "import sys, importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda name, package=None: None if name == 'arch' else find(name, package);"
        "from training import forecasters as f\n"
        "f.require_installed(f.named(f.CORE))\n"
        "try: f.require_installed(f.named(['har', 'garch_t']))\n"
        "except f.ForecasterError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"garch_t needs arch (volcast[research]): {sys.executable} -m pip install")


@pytest.mark.parametrize("error", ["OSError('libgomp.so.1: cannot open shared object file')", "ImportError('its own')"])
def test_a_library_that_is_there_and_cannot_be_loaded_is_one_line(error, tmp_path):
    (tmp_path / "lightgbm.py").write_text(f"raise {error}")
    code = (
        "from training import forecasters as f\n"
        "try: f.require_installed(f.named(['har', 'lightgbm']))\n"
        "except f.ForecasterError as error: print(error)"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    assert line.startswith("lightgbm needs lightgbm, which is installed and cannot be loaded: ")
    assert "libgomp1" in line
