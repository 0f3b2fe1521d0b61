"""The weights of the parts: a part that knows counts, one that is noise does not, and a level never decides."""

from __future__ import annotations

import numpy as np
import pytest

from training.models import blend


@pytest.fixture
def parts():
    """Truth, and parts of it: the base sees one half, the residual the other."""
    chance = np.random.default_rng(5)
    seen, unseen = chance.normal(0, 0.4, (2, 4_000, 5))
    labels = np.exp(-5 + seen + unseen + chance.normal(0, 0.1, seen.shape))
    return -5 + seen, unseen, labels, np.ones(len(seen))


def test_a_residual_that_knows_counts_whole_and_noise_counts_nothing(parts):
    base, unseen, labels, weight = parts
    noise = np.random.default_rng(6).normal(0, 0.4, unseen.shape)
    knowing = blend.chosen(np.stack([base, base, unseen]), labels, weight)
    np.testing.assert_array_equal(knowing.lstm, 1.0)
    useless = blend.chosen(np.stack([base, base + noise, noise]), labels, weight)
    np.testing.assert_array_equal([useless.trees, useless.lstm], 0.0)


def test_on_the_headline_a_residual_has_to_earn_more_than_luck(parts):
    base, unseen, labels, weight = parts
    little = blend.chosen(np.stack([base, base, 0.001 * unseen]), labels, weight)
    assert little.lstm[0] == 0
    np.testing.assert_array_equal(little.lstm[1:], 1.0)


def test_a_level_does_not_decide(parts):
    base, unseen, labels, weight = parts
    trees = base + 0.3 * unseen
    near, far = (blend.chosen(np.stack([base, trees + level, 0 * base]), labels, weight) for level in (0.0, 0.7))
    np.testing.assert_array_equal(near.trees, far.trees)
    assert near.trees.min() > 0


def test_unknown_labels_and_weightless_rows_do_not_count(parts):
    base, unseen, labels, weight = parts
    logs = np.stack([base, base, unseen])
    logs[2, :2_000] *= -1
    spoilt = labels.copy()
    spoilt[:1_000] = np.nan
    share = weight.copy()
    share[1_000:2_000] = 0.0
    np.testing.assert_array_equal(blend.chosen(logs, spoilt, share).lstm, 1.0)


def test_a_blend_is_the_sum_that_it_says(parts):
    base, unseen, _, _ = parts
    trees, lstm, factor = np.full(5, 0.3), np.full(5, 0.5), np.linspace(-0.1, 0.1, 5)
    got = blend.Blend(trees, lstm, factor).log_sigma(np.stack([base, base + 1, unseen]))
    np.testing.assert_allclose(got, base + 0.3 + 0.5 * unseen + factor)
