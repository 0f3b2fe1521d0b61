"""Boosted trees on the static inputs, learnt from all pairs: what is not linear in them (LightGBM; Ke et al. 2017).

Rules of this module:
- Trees cannot forecast a level that was not in their training data, so they are trained on σ relative to the mean
  |return| of 30 days, which is an input: on its mean for the next 24 h, on that of its square for the horizons. Both by
  the Gamma deviance, which has that mean as its optimum and of squares is QLIKE.
- What LightGBM has grown becomes plain arrays. A threshold is rounded down to float32, in which the inputs are: the
  same rows go left.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting.contract import OUTPUT_WIDTH
from stream.core.forecasting.features import STATIC_NAMES
from stream.core.forecasting.windows import Array
from training.data.sample import Sample

#: Trees and learning rate of each output: the next 24 h, then 1, 6, 12 and 24 h. Every tree costs every row, and to the
#: short horizons half of them at twice the rate are worth the same.
GROWTH = ((200, 0.05), (100, 0.1), (100, 0.1), (100, 0.1), (200, 0.05))
#: Mean |return| of 30 days, as a logarithm: the sum of these inputs.
ANCHOR = ("log_sigma_720h", "log_absolute_720h")
#: LightGBM's settings for everything that is boosted here: small trees, and the same ones each time.
SHARED_SETTINGS: dict[str, Any] = {
    "objective": "gamma",
    "num_leaves": 8,
    "max_bin": 63,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "deterministic": True,
    "force_row_wise": True,
    # More threads give the same trees, and by waiting for each other took three times as long on a busy machine.
    "num_threads": 1,
    "verbose": -1,
}
_SETTINGS = SHARED_SETTINGS | {
    "min_data_in_leaf": 200,
    "feature_fraction": 0.3,
    # Neighbouring labels share 23 of 24 hours: half of them serves a tree as well.
    "bagging_fraction": 0.5,
}
_LEAF = -1


@dataclass(frozen=True, slots=True)
class Trees:
    """Trees as arrays over all their nodes; the sum of their leaves is log σ over the anchor, per output.

    `feature`: the static input that a node asks about, -1 for a leaf. A row goes to `left` where its input is at most
    `threshold`, else to `right`, both numbers of nodes. `value`: of a leaf. `root`, `output`: of each tree.
    """

    feature: NDArray[np.int64]
    threshold: NDArray[np.float32]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    value: Array
    root: NDArray[np.int64]
    output: NDArray[np.int64]

    def sums(self, static: NDArray[np.float32]) -> Array:
        """Returns the sums of the leaves, [n, 5]."""
        columns = np.ascontiguousarray(static.T)
        out = np.zeros((len(static), OUTPUT_WIDTH))
        for root, output in zip(self.root.tolist(), self.output.tolist(), strict=True):
            out[:, output] += self._leaves(columns, root)
        return out

    def _leaves(self, columns: NDArray[np.float32], node: int) -> Array:
        if self.feature[node] == _LEAF:
            return self.value[node]  # type: ignore[no-any-return]
        left, right = (self._leaves(columns, int(side[node])) for side in (self.left, self.right))
        return np.where(columns[self.feature[node]] <= self.threshold[node], left, right)

    def log_sigma(self, static: NDArray[np.float32]) -> Array:
        """Returns the natural logarithm of the hourly σ, [n, 5]."""
        return self.sums(static) + (static.astype(np.float64) @ anchor())[:, None]

    def times(self, weight: Array) -> Trees:
        """Returns the trees with the leaves of each output times its weight [5], without those whose weight is 0."""
        output = np.repeat(self.output, np.diff([*self.root.tolist(), len(self.value)]))
        kept = weight[output] != 0
        number = np.cumsum(kept) - 1

        def renumbered(nodes: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.where(nodes == _LEAF, _LEAF, number[nodes])

        trees = weight[self.output] != 0
        return Trees(
            self.feature[kept],
            self.threshold[kept],
            renumbered(self.left[kept]),
            renumbered(self.right[kept]),
            (self.value * weight[output])[kept],
            number[self.root[trees]],
            self.output[trees],
        )

    def save(self, path: Path) -> None:
        np.savez(path, **{name: getattr(self, name) for name in self.__slots__})


def load(path: Path) -> Trees:
    """Reads what `Trees.save` wrote. Raises `OSError`, `ValueError` or `KeyError` where the file is something else."""
    with np.load(path, allow_pickle=False) as archive:
        return Trees(**{name: archive[name] for name in Trees.__slots__})


def anchor() -> Array:
    """Returns the vector [S] whose product with static inputs is the logarithm of the mean |return| of 30 days."""
    out = np.zeros(len(STATIC_NAMES))
    out[[STATIC_NAMES.index(name) for name in ANCHOR]] = 1.0
    return out


def fit(sample: Sample, *, seed: int, most: int = 1_000) -> Trees:
    """Grows trees for each output, `most` at most, on the rows of all pairs whose label is known."""
    import lightgbm

    static, labels = sample.static, sample.labels
    scale = np.exp(static.astype(np.float64) @ anchor())
    nodes: list[_Node] = []
    roots, outputs = [], []
    for k, (trees, learning_rate) in enumerate(GROWTH):
        known = np.isfinite(labels[:, k])
        relative = labels[known, k] / scale[known]
        table = lightgbm.Dataset(static[known], relative if k == 0 else relative**2, weight=sample.weight[known])
        least = min(_SETTINGS["min_data_in_leaf"], int(known.sum()) // 20)
        settings = _SETTINGS | {"seed": seed, "learning_rate": learning_rate, "min_data_in_leaf": least}
        booster = lightgbm.train(settings, table, num_boost_round=min(trees, most))
        for tree in booster.dump_model()["tree_info"]:
            roots.append(len(nodes))
            outputs.append(k)
            # The logarithm of a square is twice that of σ.
            _flatten(tree["tree_structure"], 1.0 if k == 0 else 0.5, nodes)
    feature, threshold, left, right, value = zip(*nodes, strict=True)
    return Trees(
        np.array(feature),
        np.array(threshold, np.float32),
        np.array(left),
        np.array(right),
        np.array(value),
        np.array(roots),
        np.array(outputs),
    )


_Node = tuple[int, float, int, int, float]


def _flatten(structure: dict[str, Any], factor: float, nodes: list[_Node]) -> int:
    """Appends a tree's nodes, each before its children, and returns the number of its root."""
    here = len(nodes)
    if "split_feature" not in structure:
        nodes.append((_LEAF, 0.0, _LEAF, _LEAF, factor * structure["leaf_value"]))
        return here
    nodes.append((_LEAF, 0.0, _LEAF, _LEAF, 0.0))
    left = _flatten(structure["left_child"], factor, nodes)
    right = _flatten(structure["right_child"], factor, nodes)
    nodes[here] = (structure["split_feature"], _rounded_down(structure["threshold"]), left, right, 0.0)
    return here


def _rounded_down(threshold: float) -> float:
    nearest = np.float32(threshold)
    # Compared as float64: numpy would round the threshold to the nearest float32.
    return float(nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-np.inf)))
