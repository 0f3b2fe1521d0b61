"""Loads a bundle and runs its model with onnxruntime: features in, volatilities out.

Rules of this module:
- A file is checked before it runs: size, structure, foreign code and data, contract, inputs and outputs. One that
  fails raises `ContractError` with one line that begins with its path.
- A row's output does not depend on the other rows of its batch, to the last bit. Few rows are computed one by one, many
  in batches of the sizes `_BATCHES`, provided that this machine's kernels give the same bits for a batch as for a row:
  a kernel is chosen by shape and not by content, so computing the first batch of a size both ways shows it.
- The runtime has one thread and does not spin: a pool would burn a second core for calls of a fraction of a ms. Many
  rows, as in batch prediction, are shared among threads of this module.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from stream.core.forecasting import contract
from stream.core.forecasting.contract import ContractError, Model
from stream.core.forecasting.features import SEQUENCE_HOURS, SEQUENCE_NAMES, STATIC_NAMES
from stream.core.forecasting.predictions import PredictorError

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 64 * 1024 * 1024
#: From this many rows on, the machine's cores share them.
_MANY_ROWS = 512
#: Rows per call of the runtime, where there are that many: a quarter and a third of the time of as many calls.
_BATCHES = (256, 64)
#: The domains of ONNX's own operators; the first two are one. Converters declare the last out of habit.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
#: Operators that may run for ever on one row; no layer of our network is converted to one of these.
_ENDLESS = ("Loop", "Scan")


class Predictor:
    """A loaded bundle: `predictor(sequence [n, 48, F], static [n, S]) -> volatility [n, 5]`, float32.

    Raises `PredictorError` where the runtime fails, as with rows of another shape.
    """

    def __init__(self, model: Model, session: ort.InferenceSession) -> None:
        self.model = model
        self._session = session
        #: By size: whether a batch gives the bits that its rows give alone.
        self._agreed: dict[int, bool] = {}

    def __call__(self, sequence: NDArray[np.float32], static: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = len(sequence)
        out = np.empty((rows, contract.OUTPUT_WIDTH), np.float32)
        size = next((n for n in _BATCHES if rows >= n and self._agree(sequence[:n], static[:n])), 1)
        # The last batch is as large as the others, and computes some rows a second time.
        starts = [min(first, rows - size) for first in range(0, rows, size)]

        def fill(chosen: Sequence[int]) -> None:
            for first in chosen:
                part = slice(first, first + size)
                out[part] = self._run(sequence[part], static[part])

        workers = os.cpu_count() or 1
        if rows < _MANY_ROWS or workers == 1:
            fill(starts)
            return out
        marks = [len(starts) * k // workers for k in range(workers + 1)]
        # The runtime releases the interpreter's lock while it computes.
        with ThreadPoolExecutor(workers) as pool:
            for done in [pool.submit(fill, starts[a:b]) for a, b in pairwise(marks)]:
                done.result()
        return out

    def _agree(self, sequence: NDArray[np.float32], static: NDArray[np.float32]) -> bool:
        """Returns whether batches of this size give the bits that their rows give alone, as the first one shows."""
        size = len(sequence)
        if size not in self._agreed:
            alone = [self._run(sequence[k : k + 1], static[k : k + 1]) for k in range(size)]
            agree = np.array_equal(self._run(sequence, static), np.concatenate(alone), equal_nan=True)
            self._agreed[size] = bool(agree)
            if not agree:
                log.warning(
                    "the model gives a batch of %d other bits than its rows on this machine: rows are computed in "
                    "smaller batches or one by one",
                    size,
                    extra={"rows": size},
                )
        return self._agreed[size]

    def _run(self, sequence: NDArray[np.float32], static: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            (volatility,) = self._session.run(
                [contract.OUTPUT], {contract.INPUT_SEQUENCE: sequence, contract.INPUT_STATIC: static}
            )
        except Exception as error:
            raise PredictorError(f"the model's runtime failed: {_first_line(error)}") from None
        answer: NDArray[np.float32] = volatility
        return answer


def load(path: Path) -> Predictor:
    """Loads and checks the bundle in `path`. Raises `ContractError` with one line where it fails a check."""
    return parse(read(Path(path)), str(path))


def parse(data: bytes, name: str) -> Predictor:
    """Does what `load` does for a bundle's bytes; `name` begins the message of a `ContractError`."""
    try:
        _refuse_foreign(data)
        session = _session(data)
        agreed = contract.read(session.get_modelmeta().custom_metadata_map.get(contract.METADATA_KEY))
        _refuse_other_shapes(session)
    except ContractError as error:
        raise ContractError(f"{name}: {error}") from None
    return Predictor(Model(agreed, hashlib.sha256(data).hexdigest()), session)


def read(path: Path) -> bytes:
    """Returns a bundle's bytes, unchecked. Raises `ContractError` where the file cannot be read or is too large."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ContractError(f"{path}: it has {size} bytes, a bundle at most {MAX_FILE_BYTES}: not a Volcast bundle")
        return path.read_bytes()
    except OSError as error:
        raise ContractError(
            f"{path}: the model cannot be read: {error.strerror}; make one with `volcast export`"
        ) from None


def _session(data: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what goes wrong is raised; the runtime's own lines would go to stderr
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ContractError(f"it cannot be loaded as ONNX: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    """Returns the first line of an error of the runtime, whose exceptions share no base class that it exports."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _refuse_other_shapes(session: ort.InferenceSession) -> None:
    found = {
        kind: {a.name: (a.type, tuple(a.shape[1:])) for a in arguments if a.shape and not isinstance(a.shape[0], int)}
        for kind, arguments in (("inputs", session.get_inputs()), ("outputs", session.get_outputs()))
    }
    expected = {
        "inputs": {
            contract.INPUT_SEQUENCE: ("tensor(float)", (SEQUENCE_HOURS, len(SEQUENCE_NAMES))),
            contract.INPUT_STATIC: ("tensor(float)", (len(STATIC_NAMES),)),
        },
        "outputs": {contract.OUTPUT: ("tensor(float)", (contract.OUTPUT_WIDTH,))},
    }
    for kind, wanted in expected.items():
        if found[kind] != wanted:
            raise ContractError(f"its {kind} are {found[kind]} with a free batch, a bundle's are {wanted}")


# The part of ONNX's wire format (protocol buffers) that reveals foreign code and data: field numbers of onnx.proto.
_GRAPH, _OPSET, _FUNCTIONS = 7, 8, 25
_NODE, _INITIALIZER, _SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
#: Numbers and short words of an attribute, each a field with its key in one byte: trees have a hundred thousand of
#: them, and none can hold code. `++` never goes back, so a bundle that is made to be slow to search is not.
_VALUES = re.compile(
    rb"(?:\x3d.{4}|\x40[\x80-\xff]{0,9}[\x00-\x7f]|"
    + b"|".join(b"\x4a%b.{%d}" % (re.escape(bytes([size])), size) for size in range(16))
    + rb")++",
    re.DOTALL,
)


def _refuse_foreign(data: bytes) -> None:
    """Raises `ContractError` unless the bundle is one file of standard operators: no operator of another domain, no
    loop, no tensor in another file."""
    try:
        for number, value in _fields(memoryview(data)):
            if number == _FUNCTIONS:
                raise ContractError("it defines functions of its own: not a Volcast bundle")
            if number == _OPSET:
                _refuse_domain(next((v for n, v in _fields(_message(value)) if n == 1), b""))
            if number == _GRAPH:
                _refuse_foreign_graph(_message(value))
    except (IndexError, UnicodeDecodeError, RecursionError):
        raise ContractError("it is no ONNX file; make one with `volcast export`") from None


def _refuse_foreign_graph(graph: memoryview) -> None:
    for number, value in _fields(graph):
        if number == _NODE:
            _refuse_foreign_node(_message(value))
        elif number == _INITIALIZER:
            _refuse_external(_message(value))
        elif number == _SPARSE:
            raise ContractError("it holds sparse weights: not a Volcast bundle")


def _refuse_foreign_node(node: memoryview) -> None:
    for number, value in _fields(node):
        if number == _NODE_DOMAIN:
            _refuse_domain(value)
        elif number == _NODE_OPERATOR and bytes(_message(value)).decode() in _ENDLESS:
            raise ContractError("it holds a loop, which need not end: not a Volcast bundle")
        elif number == _NODE_ATTRIBUTE:
            for kind, inner in _fields(_message(value), _VALUES):
                if kind in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                    _refuse_external(_message(inner))
                elif kind in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                    _refuse_foreign_graph(_message(inner))


def _refuse_domain(value: memoryview | bytes | int) -> None:
    domain = bytes(_message(value)).decode()
    if domain not in _DOMAINS:
        raise ContractError(f"it uses operators of {domain!r}: a bundle holds standard operators only")


def _refuse_external(tensor: memoryview) -> None:
    for number, value in _fields(tensor):
        if number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value != 0):
            raise ContractError("its weights lie in another file: a bundle is one file; export it again")


def _message(value: memoryview | bytes | int) -> memoryview:
    if isinstance(value, int):
        raise IndexError("a number stands where a message belongs")
    return memoryview(value)


def _fields(message: memoryview, skipped: re.Pattern[bytes] | None = None) -> Iterator[tuple[int, memoryview | int]]:
    """Yields (field number, value) for one message, without runs of whole fields that `skipped` matches. Raises
    `IndexError` where it is cut short or malformed."""
    at = 0
    while at < len(message):
        if skipped is not None and (run := skipped.match(message, at)):
            at = run.end()
            continue
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            number, at = _varint(message, at)
            yield key >> 3, number
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise IndexError(f"wire type {kind}")
        if at + size > len(message):
            raise IndexError("cut short")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise IndexError("an endless number")
