"""Bundles that take a second to make: a linear model, or trees, in a graph as the daemon loads it.

How: `linear` (as it should be), `trees`, `nan`, `noise:SEED`, `constant` (far off), `longer` (its contract names a day
more than it has learnt from).
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

from export import trees as graph_trees
from stream.core.forecasting import contract as contracts
from stream.core.forecasting.contract import Contract, Training
from stream.core.forecasting.features import SEQUENCE_HOURS, SEQUENCE_NAMES, STATIC_NAMES
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from stream.testing.sample_model import sample_model
from training.bundling import describe
from training.data import dataset, sample
from training.data.dataset import Dataset
from training.models import linear, log_har, trees
from training.models.trees import Trees

INPUTS = len(STATIC_NAMES)


def write(path: Path, agreed: Contract, weights: Array, bias: Array, leaves: Trees | None = None) -> None:
    """Writes the bundle of log σ = static · weights [S, 5] + bias [5], plus the trees."""
    values = {
        "weights": weights.astype(np.float32),
        "bias": bias.astype(np.float32),
        "nothing": np.zeros((1, 1), np.float32),
        "axes": np.array([2], np.int64),
    }
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    nodes = [
        helper.make_node("MatMul", [contracts.INPUT_STATIC, "weights"], ["product"]),
        # The sequence is an input of every bundle; this one makes nothing of it.
        helper.make_node("ReduceMean", [contracts.INPUT_SEQUENCE], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "axis"], ["column"]),
        helper.make_node("Mul", ["column", "nothing"], ["zero"]),
        helper.make_node("Add", ["product", "bias"], ["linear"]),
        helper.make_node("Add", ["linear", "zero"], [contracts.LOG_VOLATILITY]),
    ]
    constants = [c for c in constants if c.name != "axes"]
    constants.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "axis"))
    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info(
                contracts.INPUT_SEQUENCE, TensorProto.FLOAT, [None, SEQUENCE_HOURS, len(SEQUENCE_NAMES)]
            ),
            helper.make_tensor_value_info(contracts.INPUT_STATIC, TensorProto.FLOAT, [None, INPUTS]),
        ],
        [helper.make_tensor_value_info(contracts.LOG_VOLATILITY, TensorProto.FLOAT, [None, contracts.OUTPUT_WIDTH])],
        constants,
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    none = graph_trees.Leaves(*(np.empty(0, np.int64),) * 7)
    model = graph_trees.with_trees(network, none if leaves is None else graph_trees.Leaves(*leaves_of(leaves)))
    entry = model.metadata_props.add()
    entry.key, entry.value = contracts.METADATA_KEY, msgspec.json.encode(agreed, order="sorted").decode()
    path.write_bytes(model.SerializeToString())


def leaves_of(of: Trees) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(getattr(of, name)) for name in graph_trees.Leaves._fields)


def contract(data: Dataset, from_ms: int, until_ms: int, sigma: Array, rows: np.ndarray) -> Contract:
    """Returns a contract that fits what was learnt, from the sample model's."""
    agreed = sample_model().contract
    first, last = dataset.trained_hours(data, from_ms, until_ms)
    return msgspec.structs.replace(
        agreed,
        har=log_har.fit(data, rows, dataset.walk_forward(from_ms, until_ms), log_har.WITH_CALENDAR),
        calibration=describe.calibration(data, rows, sigma),
        har_calibration=describe.calibration(data, rows, sigma),
        regimes=describe.regimes(data, from_ms, until_ms),
        training=Training((data.symbol,), first, last, len(rows), data.sha256(from_ms, until_ms), 7),
    )


def learn(data: Dataset, from_ms: int, until_ms: int, out: Path, how: str = "linear") -> None:
    """Fits the linear base without its products, or as `trees` the trees alone, and writes its bundle."""
    rows = dataset.require_rows(data, from_ms, until_ms)
    learnt = sample.of_range((data,), from_ms, until_ms)
    if how == "trees":
        _learn_trees(data, rows, learnt, from_ms, until_ms, out)
        return
    used = list(range(INPUTS))
    static, labels = learnt.static.astype(np.float64), learnt.labels
    weights, bias = np.zeros((INPUTS, labels.shape[1])), np.zeros(labels.shape[1])
    for k in range(labels.shape[1]):
        fit = linear.fit_qlike if k else linear.fit_log
        weights[:, k], bias[k] = fit(static, labels[:, k], ridge=np.full(len(used), 0.1), weight=learnt.weight)
    kind, _, seed = how.partition(":")
    if kind == "noise":
        weights += 0.02 * np.random.default_rng(int(seed)).standard_normal(weights.shape)
    if kind == "constant":
        weights[:] = 0.0
        bias[:] = np.log(np.nanmean(labels, axis=0)) - 1.0
    sigma = np.exp(data.features.static[rows].astype(np.float64) @ weights + bias)
    if kind != "constant":
        factor = linear.mean_ratio(data.labels[rows, 0], sigma[:, 0])
        bias[0] += np.log(factor)
        sigma[:, 0] *= factor
    # An interval has its forecast within it, also that of a model that is far off.
    level = linear.mean_ratio(data.labels[rows, 0], sigma[:, 0])
    agreed = contract(data, from_ms, until_ms, sigma[:, 0] * level, rows)
    if kind == "longer":
        until = agreed.training.trained_until + 24 * HOUR_MS
        agreed = msgspec.structs.replace(agreed, training=msgspec.structs.replace(agreed.training, trained_until=until))
    if kind == "nan":
        weights[:] = np.nan
    write(out, agreed, weights, bias)


def _learn_trees(
    data: Dataset, rows: np.ndarray, learnt: sample.Sample, from_ms: int, until_ms: int, out: Path
) -> None:
    grown = trees.fit(learnt, seed=7)
    sigma = np.exp(grown.log_sigma(data.features.static[rows])[:, 0])
    level = linear.mean_ratio(data.labels[rows, 0], sigma)
    weights = np.repeat(trees.anchor()[:, None], learnt.labels.shape[1], axis=1)
    bias = np.array([np.log(level), 0.0, 0.0, 0.0, 0.0])
    write(out, contract(data, from_ms, until_ms, sigma * level, rows), weights, bias, grown)
