"""Brings an ONNX graph into a form that depends on what it computes and on nothing else: equal weights, equal bytes.

tf2onnx numbers its tensors from a process-wide counter and walks sets, so names and order differ between two runs.
Here every value gets a hash of how it is computed (operator, attributes, hashes of its inputs; a constant: its
content). Values with one hash are one value; nodes are in topological order, ties by hash; names are numbered in that
order; and what only describes the converter (value infos, docs, producer) is dropped.
"""

from __future__ import annotations

import hashlib
import heapq

import onnx
from onnx import numpy_helper

from stream.core.forecasting.contract import OUTPUT_WIDTH

BATCH = "batch"
#: The version of the file format that came with opset 17.
_IR_VERSION = 8
#: ONNX's own operators, and those of its domain for machine learning.
_DOMAINS = ("", "ai.onnx.ml")


def canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a new model that computes the same. Raises `ValueError` for a graph that has a cycle or operators with
    subgraphs or of another domain, which a bundle does not have."""
    graph = model.graph
    constants = {t.name: _constant_hash(t) for t in graph.initializer}
    tensors = {constants[t.name]: t for t in graph.initializer}
    # "" stands for an optional input that is not given.
    hashes = {"": "", **{i.name: f"input {i.name}" for i in graph.input}, **constants}
    nodes = _unique_nodes(list(graph.node), hashes)
    kept = _needed(nodes, [hashes[o.name] for o in graph.output])
    order = _topological(kept)

    used = sorted({h for n in order for h in nodes[n][1] if h in tensors})
    names = {h: f"constant_{k}" for k, h in enumerate(used)}
    names |= {"": "", **{f"input {i.name}": i.name for i in graph.input}}
    names |= {hashes[o.name]: o.name for o in graph.output}
    read = {h for n in order for h in nodes[n][1]} | {hashes[o.name] for o in graph.output}

    out = onnx.GraphProto(name="volcast")
    for k, digest in enumerate(order):
        node, inputs, outputs = nodes[digest]
        for j, value in enumerate(outputs):
            names.setdefault(value, f"{node.op_type.lower()}_{k}_{j}" if value in read else "")
        given = [names[h] for h in outputs]
        while given and not given[-1]:
            given.pop()
        fresh = out.node.add(op_type=node.op_type, name=f"{node.op_type}_{k}", input=[names[h] for h in inputs])
        if node.domain:
            fresh.domain = node.domain
        fresh.output.extend(given)
        fresh.attribute.extend(_bare(a) for a in sorted(node.attribute, key=lambda a: a.name))
    for digest in used:
        # To an array and back: one representation of the bytes, whichever field the converter chose.
        out.initializer.append(numpy_helper.from_array(numpy_helper.to_array(tensors[digest]), names[digest]))
    for values, target in ((graph.input, out.input), (graph.output, out.output)):
        for value in sorted(values, key=lambda v: v.name):
            target.append(_with_free_batch(value))
    result = onnx.ModelProto(ir_version=_IR_VERSION, producer_name="volcast", graph=out)
    used_domains = {node.domain for node in out.node} | {""}
    if len({opset.domain for opset in model.opset_import}) < len(model.opset_import):
        raise ValueError("the graph names a domain of operators twice")
    for opset in sorted(model.opset_import, key=lambda o: o.domain):
        if opset.domain in used_domains:
            result.opset_import.add(domain=opset.domain, version=opset.version)
    onnx.checker.check_model(result, full_check=True)
    return result


def to_bytes(model: onnx.ModelProto) -> bytes:
    data: bytes = model.SerializeToString(deterministic=True)
    return data


_Node = tuple[onnx.NodeProto, list[str], list[str]]


def _unique_nodes(pending: list[onnx.NodeProto], hashes: dict[str, str]) -> dict[str, _Node]:
    """Maps the hash of each node to (node, hashes of its inputs, hashes of its outputs), and adds the outputs to
    `hashes`."""
    nodes: dict[str, _Node] = {}
    while pending:
        ready = [n for n in pending if all(i in hashes for i in n.input)]
        if not ready:
            raise ValueError("the graph has a cycle or an input that nothing computes")
        for node in ready:
            inputs = [hashes[i] for i in node.input]
            digest = _node_hash(node, inputs)
            outputs = [f"{digest} {k}" for k in range(len(node.output))]
            hashes |= {name: value for name, value in zip(node.output, outputs, strict=True) if name}
            nodes[digest] = (node, inputs, outputs)
        pending = [n for n in pending if not all(o in hashes for o in n.output)]
    return nodes


def _needed(nodes: dict[str, _Node], outputs: list[str]) -> dict[str, tuple[set[str], _Node]]:
    """Returns the nodes that the outputs depend on, each with the nodes that must precede it."""
    kept: dict[str, tuple[set[str], _Node]] = {}
    todo = [value.split()[0] for value in outputs]
    while todo:
        digest = todo.pop()
        if digest in kept:
            continue
        before = {h.split()[0] for h in nodes[digest][1] if h} & nodes.keys()
        kept[digest] = (before, nodes[digest])
        todo += before
    return kept


def _topological(kept: dict[str, tuple[set[str], _Node]]) -> list[str]:
    waiting = {digest: set(before) for digest, (before, _) in kept.items()}
    ready = [digest for digest, before in waiting.items() if not before]
    heapq.heapify(ready)
    order = []
    while ready:
        digest = heapq.heappop(ready)
        order.append(digest)
        for other, before in waiting.items():
            if digest in before:
                before.remove(digest)
                if not before:
                    heapq.heappush(ready, other)
    return order


def _constant_hash(tensor: onnx.TensorProto) -> str:
    array = numpy_helper.to_array(tensor)
    return _digest(f"{array.dtype} {array.shape}".encode(), array.tobytes())


def _node_hash(node: onnx.NodeProto, inputs: list[str]) -> str:
    if node.domain not in _DOMAINS:
        raise ValueError(f"operator {node.op_type} of {node.domain!r}: a bundle holds standard operators only")
    if any(a.HasField("g") or a.graphs for a in node.attribute):
        raise ValueError(f"operator {node.op_type} holds a graph: the network was not converted to native operators")
    attributes = [_bare(a).SerializeToString(deterministic=True) for a in sorted(node.attribute, key=lambda a: a.name)]
    return _digest(node.domain.encode(), node.op_type.encode(), *attributes, *(i.encode() for i in inputs))


def _bare(attribute: onnx.AttributeProto) -> onnx.AttributeProto:
    bare = onnx.AttributeProto()
    bare.CopyFrom(attribute)
    bare.ClearField("doc_string")
    if bare.HasField("t"):
        bare.t.ClearField("name")
    return bare


def _with_free_batch(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    kind = value.type.tensor_type
    sizes = [d.dim_value for d in kind.shape.dim][1:] or [OUTPUT_WIDTH]
    return onnx.helper.make_tensor_value_info(value.name, kind.elem_type, [BATCH, *sizes])


def _digest(*parts: bytes) -> str:
    """Computes the sha256 of the parts, each with its length, so that no two lists of parts give the same bytes."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()
