"""Puts a run's trees into the graph: one TreeEnsembleRegressor of the ONNX domain for machine learning.

The arrays of `trees.npz` are those of `training.models.trees.Trees`: a node asks whether an input is at most a
threshold, and goes left or right; what its leaves add is added to the network's log of volatility.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from stream.core.forecasting.contract import INPUT_STATIC, LOG_SIGMA_RANGE, LOG_VOLATILITY, OUTPUT, OUTPUT_WIDTH

DOMAIN = "ai.onnx.ml"
#: Of `DOMAIN`.
OPSET = 3


class Leaves(NamedTuple):
    """Trees over all their nodes; `feature` is -1 for a leaf, `root` and `output` are of each tree."""

    feature: NDArray[np.int64]
    threshold: NDArray[np.float32]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    value: NDArray[np.float64]
    root: NDArray[np.int64]
    output: NDArray[np.int64]


def read(path: Path) -> Leaves:
    """Reads a run's trees. Raises `OSError`, `ValueError` or `KeyError` where the file is something else."""
    with np.load(path, allow_pickle=False) as archive:
        return Leaves(*(archive[name] for name in Leaves._fields))


def with_trees(network: onnx.ModelProto, leaves: Leaves) -> onnx.ModelProto:
    """Returns the graph whose output is volatility: exp of the network's output plus the trees, within bounds."""
    model = onnx.ModelProto()
    model.CopyFrom(network)
    graph, log = model.graph, LOG_VOLATILITY
    if len(leaves.root):
        graph.node.append(_regressor(leaves, "trees"))
        graph.node.append(helper.make_node("Add", [log, "trees"], ["with_trees"]))
        # The converter names the domain too, in a version of its own.
        kept = [opset for opset in model.opset_import if opset.domain != DOMAIN]
        del model.opset_import[:]
        model.opset_import.extend([*kept, helper.make_opsetid(DOMAIN, OPSET)])
        log = "with_trees"
    for name, bound in zip(("least", "most"), LOG_SIGMA_RANGE, strict=True):
        graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [bound]))
    graph.node.append(helper.make_node("Clip", [log, "least", "most"], ["bounded"]))
    graph.node.append(helper.make_node("Exp", ["bounded"], [OUTPUT]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, [None, OUTPUT_WIDTH]))
    return model


def _regressor(leaves: Leaves, output: str) -> onnx.NodeProto:
    nodes = len(leaves.feature)
    tree = np.repeat(np.arange(len(leaves.root)), np.diff([*leaves.root.tolist(), nodes]))
    # Nodes are numbered within their tree.
    first = leaves.root[tree]
    leaf = leaves.feature < 0
    return helper.make_node(
        "TreeEnsembleRegressor",
        [INPUT_STATIC],
        [output],
        domain=DOMAIN,
        n_targets=OUTPUT_WIDTH,
        nodes_treeids=tree.tolist(),
        nodes_nodeids=(np.arange(nodes) - first).tolist(),
        nodes_featureids=np.where(leaf, 0, leaves.feature).tolist(),
        nodes_values=leaves.threshold.tolist(),
        nodes_modes=np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_truenodeids=np.where(leaf, 0, leaves.left - first).tolist(),
        nodes_falsenodeids=np.where(leaf, 0, leaves.right - first).tolist(),
        target_treeids=tree[leaf].tolist(),
        target_nodeids=(np.arange(nodes) - first)[leaf].tolist(),
        target_ids=leaves.output[tree[leaf]].tolist(),
        target_weights=leaves.value[leaf].tolist(),
    )
