"""What SECURITY.md promises, as far as it can be seen without running anything."""

from __future__ import annotations

import ast
import configparser
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import ROOT

from stream.adapters import predictor as predictors
from stream.adapters.bundles import packaged_model
from stream.core.forecasting.contract import ContractError
from stream.settings import SettingsError, load, mask

UNIT = ROOT / "docs" / "systemd" / "volcast.service"
RETRAIN_UNIT = UNIT.with_name("volcast-retrain.service")
SOURCES = sorted(p for package in ("stream", "training", "export", "monitor") for p in (ROOT / package).rglob("*.py"))


def names(tree: ast.AST) -> Iterator[str]:
    """What a module imports, and what it calls, by their dotted names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Call):
            yield f"{ast.unparse(node.func)}("
            yield from (f"{k.arg}={ast.unparse(k.value)}" for k in node.keywords if k.arg)


FORBIDDEN = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml",
    "eval(", "exec(", "compile(", "__import__(", "os.system(", "os.popen(", "pickle.loads(",
    "shell=True", "allow_pickle=True", "verify=False", "tls_insecure=True", "check_hostname=False",
}  # fmt: skip


def test_nothing_that_comes_from_outside_can_become_code_and_no_certificate_goes_unverified() -> None:
    assert len(SOURCES) > 50
    for source in SOURCES:
        found = FORBIDDEN.intersection(names(ast.parse(source.read_text())))
        assert not found, f"{source.relative_to(ROOT)}: {found}"


@pytest.mark.parametrize(
    "url",
    ["mqtt://u:geheim@[x", "mqtts://u:geheim@h:port", "mqtts://u:ge@heim@h", "ftp://u:geheim@h", "mqtt://u:geheim@h"],
)
@pytest.mark.parametrize("name", ["mqtt_url", "ws_url", "rest_url"])
def test_no_message_about_a_url_tells_its_password(name: str, url: str) -> None:
    assert "heim" not in mask(url)
    wrong = url.replace("mqtts://", "x://")
    for flags, environment in (({name: wrong}, {}), ({}, {f"VOLCAST_{name.upper()}": wrong})):
        with pytest.raises(SettingsError) as refused:
            load(flags, environment)
        assert "heim" not in str(refused.value)


def unit(path: Path) -> configparser.ConfigParser:
    found = configparser.ConfigParser(strict=False, interpolation=None)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read_string(path.read_text())
    return found


@pytest.mark.parametrize("path", [UNIT, RETRAIN_UNIT], ids=lambda path: path.name)
def test_a_unit_is_shut(path: Path) -> None:
    service = unit(path)["Service"]
    for shut in ("NoNewPrivileges", "DynamicUser", "PrivateDevices", "ProtectKernelTunables", "RestrictSUIDSGID"):
        assert service[shut] == "yes", shut
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert "password" not in service["Environment"]
    assert "ORT_DISABLE_TELEMETRY=1" in service["Environment"].split()


def test_the_unit_stops_later_than_the_daemon() -> None:
    of = unit(UNIT)
    service = of["Service"]
    assert int(service["TimeoutStopSec"]) > 10
    assert int(of["Unit"]["StartLimitBurst"]) * int(service["RestartSec"]) < int(of["Unit"]["StartLimitIntervalSec"])


def test_the_retraining_has_the_nodes_user_and_directory_and_lets_it_go_first() -> None:
    node, retraining = unit(UNIT)["Service"], unit(RETRAIN_UNIT)["Service"]
    # A unit without a user's name has its own.
    assert retraining["User"] == UNIT.stem
    assert retraining["StateDirectory"] == node["StateDirectory"]
    assert int(retraining["Nice"]) > 0
    assert int(retraining["OOMScoreAdjust"]) > 0
    assert unit(RETRAIN_UNIT.with_suffix(".timer"))["Install"]["WantedBy"] == "timers.target"


def test_the_image_tells_libraries_not_to_report() -> None:
    """Also a program that is run in it without Volcast."""
    assert "ORT_DISABLE_TELEMETRY=1" in (ROOT / "Dockerfile").read_text().split()


@pytest.mark.parametrize("nested", [False, True])
def test_a_model_that_need_not_end_is_refused_before_it_runs(nested: bool, tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    kinds = [("i", TensorProto.INT64, []), ("on", TensorProto.BOOL, []), ("x", TensorProto.FLOAT, [1])]
    inputs = [helper.make_tensor_value_info(*kind) for kind in kinds]
    outputs = [helper.make_tensor_value_info("on2", TensorProto.BOOL, []), helper.make_tensor_value_info("y", 1, [1])]
    steps = [helper.make_node("Identity", ["on"], ["on2"]), helper.make_node("Identity", ["x"], ["y"])]
    body = helper.make_graph(steps, "body", inputs, outputs)
    loop = helper.make_node("Loop", ["", "on", "x"], ["z"], body=body)
    if nested:
        branch = helper.make_graph([loop], "branch", [], [helper.make_tensor_value_info("z", 1, [1])])
        loop = helper.make_node("If", ["on"], ["z"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph([loop], "g", inputs[1:], [helper.make_tensor_value_info("z", 1, [1])])
    path = tmp_path / "endless.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    onnx.checker.check_model(str(path))
    with pytest.raises(ContractError, match="a loop"):
        predictors.load(path)


def test_the_packaged_model_holds_none() -> None:
    assert predictors.load(packaged_model()).model.version
