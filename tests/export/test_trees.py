"""Trees in the graph: they add what the arrays say, the same bits in every batch, and nothing where there are none."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from export import canonical, trees
from stream.core.forecasting.contract import INPUT_STATIC, LOG_VOLATILITY, OUTPUT
from training.models.trees import Trees

INPUTS = 6


def network() -> onnx.ModelProto:
    """Returns a graph as the converter makes one: -5 for every output, and both domains of operators named."""
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [INPUTS, 5], [0.0] * INPUTS * 5)
    level = helper.make_tensor("level", TensorProto.FLOAT, [5], [-5.0] * 5)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", [INPUT_STATIC, "weights"], ["zero"]),
            helper.make_node("Add", ["zero", "level"], [LOG_VOLATILITY]),
        ],
        "network",
        [helper.make_tensor_value_info(INPUT_STATIC, TensorProto.FLOAT, [None, INPUTS])],
        [helper.make_tensor_value_info(LOG_VOLATILITY, TensorProto.FLOAT, [None, 5])],
        [weights, level],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)])


def forest(count: int) -> Trees:
    """Returns trees of three leaves, each for the next output, whose thresholds are values that rows have."""
    chance = np.random.default_rng(7)
    n, root = 5 * count, 5 * np.arange(count)
    feature, left, right = np.full(n, -1), np.full(n, -1), np.full(n, -1)
    threshold, value = np.zeros(n, np.float32), np.zeros(n)
    for first in root.tolist():
        feature[[first, first + 2]] = chance.integers(0, INPUTS, 2)
        threshold[[first, first + 2]] = chance.integers(-1, 2, 2)
        left[[first, first + 2]] = first + 1, first + 3
        right[[first, first + 2]] = first + 2, first + 4
        value[[first + 1, first + 3, first + 4]] = chance.normal(0, 0.1, 3)
    return Trees(feature, threshold, left, right, value, root, np.arange(count) % 5)


def run(model: onnx.ModelProto, static: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT_STATIC: static})[0]


@pytest.mark.parametrize("count", [0, 1, 40])
def test_the_graph_adds_what_the_arrays_say_in_batches_of_any_size(count, tmp_path):
    grown = forest(count)
    grown.save(tmp_path / "trees.npz")
    model = canonical.canonical(trees.with_trees(network(), trees.read(tmp_path / "trees.npz")))
    domains = [opset.domain for opset in model.opset_import]
    assert domains == (["", "ai.onnx.ml"] if count else [""])
    # Halves, so that rows lie on thresholds.
    static = (np.random.default_rng(8).integers(-3, 4, (300, INPUTS)) / 2).astype(np.float32)
    whole = run(model, static)
    np.testing.assert_allclose(np.log(whole), -5 + grown.sums(static), atol=1e-6)
    for size in (1, 7, 64):
        parts = [run(model, static[k : k + size]) for k in range(0, 300, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_domain_that_is_named_twice_or_is_nobodys_is_refused():
    twice = network()
    twice.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    with pytest.raises(ValueError, match="names a domain of operators twice"):
        canonical.canonical(twice)
    foreign = network()
    foreign.graph.node[0].domain = "com.example"
    with pytest.raises(ValueError, match="standard operators only"):
        canonical.canonical(foreign)
