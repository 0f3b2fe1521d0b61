"""The network's arithmetic: the base exactly, the LSTM's share by its weight, and the loss's optimum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stream.core.forecasting.contract import LOG_VOLATILITY
from stream.core.forecasting.features import SEQUENCE_NAMES, STATIC_NAMES
from training.models import linear, lstm, training_loop
from training.models.linear import Linear

INPUTS = len(STATIC_NAMES) + len(linear.PRODUCTS)
SCALER = lstm.Scaler(np.zeros(len(SEQUENCE_NAMES)), np.ones(len(SEQUENCE_NAMES)))


@pytest.fixture(scope="module")
def base() -> Linear:
    chance = np.random.default_rng(1)
    return Linear(chance.normal(0, 0.1, (INPUTS, 5)), chance.normal(-5, 0.1, 5))


@pytest.fixture(scope="module")
def windows():
    chance = np.random.default_rng(2)
    sequence = chance.normal(size=(16, 48, len(SEQUENCE_NAMES))).astype(np.float32)
    return sequence, chance.normal(size=(16, len(STATIC_NAMES))).astype(np.float32)


def test_untrained_the_network_is_its_base(base, windows):
    training_loop.seed_everything(1)
    sequence, static = windows
    learner, known = lstm.learner(SCALER), base.log_sigma(static)
    np.testing.assert_array_equal(learner([sequence, known], training=False), known.astype(np.float32))
    finished = lstm.finished(learner, SCALER, base, np.ones(5))
    np.testing.assert_allclose(finished([sequence, static])[LOG_VOLATILITY], known, atol=2e-5)


def test_finished_it_is_the_base_and_the_residual_by_its_weights(base, windows):
    training_loop.seed_everything(1)
    sequence, static = windows
    learner, known = lstm.learner(SCALER), base.log_sigma(static)
    chance = np.random.default_rng(3)
    head = learner.get_layer("residual")
    head.set_weights([chance.normal(0, 0.3, w.shape) for w in head.get_weights()])
    residual = np.asarray(lstm.residual(learner)(sequence))
    assert residual.std(axis=0).min() > 1e-3
    np.testing.assert_allclose(learner([sequence, known], training=False), known + residual, atol=2e-5)
    weight = np.array([0.0, 0.25, 0.5, 1.0, 0.75])
    finished = lstm.finished(learner, SCALER, base, weight)
    np.testing.assert_allclose(finished([sequence, static])[LOG_VOLATILITY], known + weight * residual, atol=2e-5)


def test_training_moves_the_lstm_and_nothing_else(base, windows):
    training_loop.seed_everything(1)
    learner = lstm.learner(SCALER)
    assert len(learner.trainable_weights) == 3 + 2
    before = [w.numpy().copy() for w in learner.trainable_weights]
    learner.compile(optimizer="adam", loss=training_loop.loss)
    learner.fit([windows[0], base.log_sigma(windows[1])], np.full((16, 5), -4.0, np.float32), epochs=3, verbose=0)
    assert all((w.numpy() != old).any() for w, old in zip(learner.trainable_weights, before, strict=True))


def test_the_products_are_sums_of_columns_times_a_level():
    static = np.random.default_rng(4).normal(size=(7, len(STATIC_NAMES))).astype(np.float32)
    got = linear.expanded(static)
    np.testing.assert_array_equal(got[:, : len(STATIC_NAMES)], static)
    for k, (names, other, added) in enumerate(linear.PRODUCTS):
        first = sum(static[:, STATIC_NAMES.index(name)].astype(np.float64) for name in names)
        second = static[:, STATIC_NAMES.index(other)].astype(np.float64) + added
        np.testing.assert_allclose(got[:, len(STATIC_NAMES) + k], first * second, rtol=1e-12)


finite = st.floats(-9, -2, width=32)


@given(arrays.arrays(np.float32, (4, 5), elements=st.one_of(finite, st.just(np.nan))))
@settings(max_examples=25)
def test_the_loss_is_least_where_the_labels_are_and_an_unknown_label_weighs_nothing(labels):
    at = np.where(np.isfinite(labels), labels, -5.0).astype(np.float32)
    least = np.asarray(training_loop.loss(labels, at))
    np.testing.assert_allclose(least, 0.0, atol=1e-6)
    for step in (-3.0, -0.1, 0.1, 3.0):
        moved = np.asarray(training_loop.loss(labels, at + np.float32(step)))
        known = np.isfinite(labels).any(axis=1)
        assert (moved[known] > 0).all()
        np.testing.assert_array_equal(moved[~known], 0.0)
