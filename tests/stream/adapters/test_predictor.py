"""The bundle at run time: a row's output depends on that row alone, and a file that is no bundle is refused in one
line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from repository import SHIPPED_BUNDLE

from stream.adapters import predictor
from stream.core.deciding.replay import to_grid
from stream.core.forecasting.contract import METADATA_KEY, OUTPUT_WIDTH, ContractError
from stream.core.forecasting.features import SEQUENCE_HOURS, SEQUENCE_NAMES, STATIC_NAMES, VERSION, compute
from stream.core.forecasting.predictions import PredictorError
from stream.testing.market import simulate_symbol


@pytest.fixture(scope="module")
def predict():
    return predictor.load(SHIPPED_BUNDLE)


@pytest.fixture(scope="module")
def windows():
    table = compute(*to_grid(simulate_symbol("BTCUSDT", 1_609_459_200_000, 10_000, seed=3)))
    rows = np.arange(1_000, 9_192)
    return table.sequences(rows), table.static[rows]


def test_the_packaged_bundle_keeps_its_contract(predict):
    data = SHIPPED_BUNDLE.read_bytes()
    assert predict.model.sha256 == hashlib.sha256(data).hexdigest()
    assert predict.model.version == predict.model.sha256[:12]
    assert len(data) < 2_000_000
    assert str(SHIPPED_BUNDLE.parents[2]).encode() not in data


def test_answers_are_plausible_volatilities(predict, windows):
    answer = predict(windows[0][:500], windows[1][:500])
    assert answer.dtype == np.float32
    assert answer.shape == (500, OUTPUT_WIDTH)
    assert ((answer > 1e-5) & (answer < 0.5)).all()


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 7, 16, 63, 64, 65, 100, 127, 128, 600, 8_192])
def test_a_row_has_one_answer_whatever_the_batch(predict, windows, batch):
    sequence, static = windows
    whole = predict(sequence, static)
    rows = min(len(sequence), batch * 40)
    parts = [predict(sequence[first : first + batch], static[first : first + batch]) for first in range(0, rows, batch)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[: batch * len(parts)])


def test_a_row_has_one_answer_whatever_its_company_and_place(predict, windows):
    chance = np.random.default_rng(1)
    sequence, static = windows
    alone = predict(sequence[:1], static[:1])[0]
    for place, rows in [*((place, 9) for place in range(9)), *((place, 100) for place in (0, 1, 35, 36, 63, 64, 99))]:
        others = chance.normal(0, 50, (rows, SEQUENCE_HOURS, 8))
        other_static = chance.normal(0, 50, (rows, static.shape[1]))
        others[0], other_static[-1] = np.nan, np.inf
        others, other_static = others.astype(np.float32), other_static.astype(np.float32)
        others[place], other_static[place] = sequence[0], static[0]
        np.testing.assert_array_equal(predict(others, other_static)[place], alone)


def test_no_rows_are_no_answers(predict, windows):
    assert predict(windows[0][:0], windows[1][:0]).shape == (0, OUTPUT_WIDTH)


def test_rows_of_another_shape_are_the_runtimes_refusal_in_one_line(predict, windows):
    with pytest.raises(PredictorError, match="the model's runtime failed") as refusal:
        predict(windows[0][:2, :5], windows[1][:2])
    assert "\n" not in str(refusal.value)


def test_extreme_inputs_stay_finite(predict):
    for value in (0.0, 8.0, -8.0, 1e6, -1e6):
        answer = predict(
            np.full((1, SEQUENCE_HOURS, len(SEQUENCE_NAMES)), value, np.float32),
            np.full((1, len(STATIC_NAMES)), value, np.float32),
        )
        assert np.isfinite(answer).all()
        assert (answer > 0).all()


def changed(tmp_path, change) -> Path:
    """Writes the packaged bundle after `change(model, contract as dict)`."""
    model = onnx.load(SHIPPED_BUNDLE)
    entry = next(p for p in model.metadata_props if p.key == METADATA_KEY)
    agreed = json.loads(entry.value)
    change(model, agreed)
    entry.value = json.dumps(agreed)
    path = tmp_path / "changed.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def other_domain(model, _):
    model.opset_import.add(domain="com.microsoft", version=1)
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "Gelu", "com.microsoft"


def external(model, _):
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    tensor.ClearField("raw_data")


def external_in_an_attribute(model, _):
    tensor = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="elsewhere")
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))


def other_output_name(model, _):
    model.graph.node[-1].output[0] = model.graph.output[0].name = "sigma"


def no_metadata(model, _):
    model.metadata_props[0].key = "other"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (no_metadata, "no 'volcast' metadata: not a Volcast bundle"),
        (lambda _, agreed: agreed.update(features_version="0"), f"features version 0, this Volcast computes {VERSION}"),
        (lambda _, agreed: agreed.update(contract=99), "follows contract 99"),
        (lambda _, agreed: agreed.update(horizons=[1, 2]), "horizons"),
        (lambda _, agreed: agreed.pop("har"), "missing required field `har`"),
        (lambda _, agreed: agreed["calibration"].update(low=0.1), "does not contain the forecast"),
        (other_domain, "operators of 'com.microsoft'"),
        (external, "another file"),
        (external_in_an_attribute, "another file"),
        (other_output_name, "its outputs are"),
        (lambda model, _: model.functions.add(name="f", domain="mine"), "functions of its own"),
    ],
)
def test_a_bundle_that_breaks_its_contract_is_refused(tmp_path, change, cause):
    path = changed(tmp_path, change)
    with pytest.raises(ContractError, match=cause) as refusal:
        predictor.load(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"\x00" * 64, b"\xff" * 64, SHIPPED_BUNDLE.read_bytes()[:5_000], b"PAR1" * 100]
)
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ContractError) as refusal:
        predictor.load(path)
    assert str(refusal.value).startswith(f"{path}: it ")
    assert "\n" not in str(refusal.value)


def test_a_foreign_model_of_other_shapes_is_refused(tmp_path):
    agreed = next(p.value for p in onnx.load(SHIPPED_BUNDLE).metadata_props if p.key == METADATA_KEY)
    node = helper.make_node("Identity", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:]), ir_version=8)
    model.opset_import[0].version = 17
    path = tmp_path / "foreign.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ContractError, match="no 'volcast' metadata"):
        predictor.load(path)
    model.metadata_props.add(key=METADATA_KEY, value=agreed)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ContractError, match="its inputs are"):
        predictor.load(path)


def test_an_absent_file_a_folder_and_a_file_too_large(tmp_path):
    with pytest.raises(ContractError, match="No such file"):
        predictor.load(tmp_path / "nothing.onnx")
    with pytest.raises(ContractError, match="Is a directory"):
        predictor.load(tmp_path)
    large = tmp_path / "large.onnx"
    with large.open("wb") as file:
        file.truncate(predictor.MAX_FILE_BYTES + 1)
    with pytest.raises(ContractError, match="at most"):
        predictor.load(large)


def fields(message: bytes, *skipped: object) -> list[tuple[int, bytes | int]] | str:
    """Returns the fields of a message but for plain numbers and words, or what its walk raises."""
    try:
        walked = [*predictor._fields(memoryview(message), *skipped)]
    except IndexError as error:
        return str(error)
    return [(n, v if isinstance(v, int) else bytes(v)) for n, v in walked if n not in (7, 8, 9)]


#: Bytes of which many are keys of fields, lengths and numbers.
messages = st.lists(
    st.one_of(
        st.binary(max_size=6),
        st.sampled_from(
            [b"\x3d1234", b"\x40\x80\x01", b"\x4a\x04LEAF", b"\x2a\x02\x70\x01", b"\x32\x00", b"\xbd\x00123"]
        ),
    ),
    max_size=12,
).map(b"".join)


@given(messages)
@example(b"\x40" + b"\x80" * 9 + b"\x01")
@example(b"\x40" + b"\x80" * 10 + b"\x01")
@example(b"\x4a\x0f" + b"\x2a" * 15 + b"\x2a\x02\x70\x01")
@example(b"\x4a\x0f" + b"\x2a" * 14)
@example(b"\x3d123")
def test_a_quick_walk_past_numbers_sees_what_a_slow_one_sees(message: bytes) -> None:
    assert fields(message, predictor._VALUES) == fields(message)
