"""The network's arithmetic: the base exactly, members apart, their mean in one graph, and the loss's optimum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stream.core.forecasting.features import SEQUENCE_NAMES, STATIC_NAMES
from training.models import linear, lstm, training_loop
from training.models.linear import Linear

INPUTS = len(STATIC_NAMES) + len(linear.LEVELS)
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
    members = lstm.members(SCALER, base, 2)
    expected = base.log_sigma(linear.expanded(windows[1]))
    for network, shape in ((members, (16, 2, 5)), (lstm.ensemble(members, SCALER, base, 2, shrink=0.5), (16, 5))):
        output = np.asarray(network(list(windows), training=False))
        assert output.shape == shape
        np.testing.assert_allclose(
            output, np.broadcast_to(expected[:, None] if output.ndim == 3 else expected, shape), atol=2e-5
        )


def test_the_ensemble_is_the_base_and_the_shrunk_mean_of_its_members_residuals(base, windows):
    training_loop.seed_everything(1)
    members = lstm.members(SCALER, base, 3)
    chance = np.random.default_rng(3)
    for k in range(3):
        head = members.get_layer(f"residual_{k}")
        head.set_weights([chance.normal(0, 0.3, w.shape) for w in head.get_weights()])
    known = base.log_sigma(linear.expanded(windows[1]))
    each = np.asarray(members(list(windows), training=False))
    assert np.std(each, axis=1).min() > 1e-3, "members differ"
    joined = np.asarray(lstm.ensemble(members, SCALER, base, 3, shrink=0.4)(list(windows), training=False))
    np.testing.assert_allclose(joined, known + 0.4 * (each - known[:, None]).mean(axis=1), atol=2e-5)


def test_training_moves_every_member_and_never_the_base(base, windows):
    training_loop.seed_everything(1)
    members = lstm.members(SCALER, base, 2)
    frozen = {w.path: w.numpy().copy() for w in members.non_trainable_weights}
    before = {w.path: w.numpy().copy() for w in members.trainable_weights}
    assert len(before) == 2 * (3 + 2)
    members.compile(optimizer="adam", loss=training_loop.loss)
    members.fit(list(windows), np.full((16, 5), -4.0, np.float32), epochs=3, verbose=0)
    assert all((w.numpy() != before[w.path]).any() for w in members.trainable_weights)
    assert all((w.numpy() == frozen[w.path]).all() for w in members.non_trainable_weights)


def test_the_products_are_the_weekends_share_times_each_level():
    static = np.random.default_rng(4).normal(size=(7, len(STATIC_NAMES))).astype(np.float32)
    got = linear.expanded(static)
    weekend = sum(static[:, STATIC_NAMES.index(name)].astype(np.float64) for name in linear.WEEKEND)
    np.testing.assert_array_equal(got[:, : len(STATIC_NAMES)], static)
    for k, name in enumerate(linear.LEVELS):
        column = weekend * static[:, STATIC_NAMES.index(name)].astype(np.float64)
        np.testing.assert_allclose(got[:, len(STATIC_NAMES) + k], column, rtol=1e-12)


finite = st.floats(-9, -2, width=32)


@given(arrays.arrays(np.float32, (4, 5), elements=st.one_of(finite, st.just(np.nan))))
@settings(max_examples=25)
def test_the_loss_is_least_where_the_labels_are_and_an_unknown_label_weighs_nothing(labels):
    at = np.where(np.isfinite(labels), labels, -5.0).astype(np.float32)[:, None, :]
    least = np.asarray(training_loop.loss(labels, at))
    np.testing.assert_allclose(least, 0.0, atol=1e-6)
    for step in (-3.0, -0.1, 0.1, 3.0):
        moved = np.asarray(training_loop.loss(labels, at + np.float32(step)))
        known = np.isfinite(labels).any(axis=1)
        assert (moved[known] > 0).all()
        np.testing.assert_array_equal(moved[~known], 0.0)
        # Members add up.
        twice = np.asarray(training_loop.loss(labels, np.repeat(at + np.float32(step), 2, axis=1)))
        np.testing.assert_allclose(twice, 2 * moved, rtol=1e-6)
