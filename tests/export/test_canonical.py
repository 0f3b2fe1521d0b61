"""Canonical graphs: names, order and duplicates do not matter, weights and structure do."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.canonical import canonical, to_bytes


def graph(seed: int, scale: float = 1.0) -> onnx.ModelProto:
    """y = tanh(x·A + b) + relu(x·A + b): equal whatever the seed, which chooses names, order and duplicates."""
    chance = np.random.default_rng(seed)
    labels = iter(f"v{k}" for k in chance.permutation(100))
    a, b, b2, z, s, t, r = (next(labels) for _ in range(7))
    weights = np.arange(15, dtype=np.float32).reshape(3, 5) * scale
    bias = np.linspace(0, 1, 5, dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", a], [z], name=next(labels)),
        helper.make_node("Add", [z, b], [s]),
        helper.make_node("Add", [z, b2], ["again"]),
        helper.make_node("Tanh", [s], [t], doc_string="noise"),
        helper.make_node("Relu", ["again"], [r]),
        helper.make_node("Add", [t, r], ["y"]),
    ]
    branches = [nodes[1], nodes[3]], [nodes[2], nodes[4]]
    first, second = branches if seed % 2 else branches[::-1]
    tensors = [numpy_helper.from_array(v, n) for v, n in ((weights, a), (bias, b), (bias, b2), (bias * 9, "unused"))]
    body = helper.make_graph(
        [nodes[0], *first, *second, nodes[5]],
        next(labels),
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [f"unk_{seed}", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 5])],
        [tensors[k] for k in chance.permutation(4)],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], producer_version=str(seed))
    model.ir_version = 8
    return model


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_equal_computations_have_equal_bytes(seed):
    assert to_bytes(canonical(graph(seed))) == to_bytes(canonical(graph(0)))


def test_other_weights_have_other_bytes():
    assert to_bytes(canonical(graph(0, scale=2.0))) != to_bytes(canonical(graph(0)))


def test_the_canonical_form_is_its_own_canonical_form_and_says_the_same():
    once = canonical(graph(5))
    assert to_bytes(canonical(once)) == to_bytes(once)
    assert [n.op_type for n in once.graph.node].count("Add") == 2, "equal values are one value"
    assert len(once.graph.initializer) == 2
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    before, after = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (graph(5), once))
    np.testing.assert_array_equal(before, after)
    assert once.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_graphs_within_graphs_and_foreign_operators_are_refused():
    model = graph(1)
    model.graph.node[0].domain = "com.example"
    with pytest.raises(ValueError, match="standard operators"):
        canonical(model)
    model = graph(1)
    model.graph.node[0].attribute.append(helper.make_attribute("body", model.graph))
    with pytest.raises(ValueError, match="holds a graph"):
        canonical(model)
