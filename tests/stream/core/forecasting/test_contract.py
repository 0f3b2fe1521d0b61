"""A bundle that lacks or contradicts any part of its contract is refused, and the part is named."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from stream.core.forecasting.contract import Contract, ContractError, check, read
from stream.testing.sample_model import sample_model

GOOD = sample_model().contract


def test_what_was_written_is_read() -> None:
    assert read(msgspec.json.encode(GOOD).decode()) == GOOD


def changed(path: str, value: Any) -> Contract:
    tree = msgspec.to_builtins(GOOD)
    *parents, last = path.split(".")
    node = tree
    for name in parents:
        node = node[name]
    node[last] = value
    return msgspec.convert(tree, Contract)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("contract", 1, "contract 1"),
        ("features_version", "0", "features version 0"),
        ("sequence_names", ["a"], "sequence features"),
        ("static_names", ["a"], "static features"),
        ("sequence_hours", 24, "sequence length"),
        ("horizons", [1, 2], "horizons"),
        ("har.names", ["nothing"], "har"),
        ("har.coefficients", [1.0], "har"),
        ("har.retransform", 0.0, "har"),
        ("calibration.level", 1.0, "level"),
        ("calibration.low", 0.1, "interval"),
        ("calibration.high", -0.1, "interval"),
        ("regimes.medium_from", 0.5, "regime"),
        ("reference", {}, "drift reference"),
        ("har_calibration.low", 0.1, "interval"),
        ("reference.log_max_24h.quantiles", [0.0], "log_max_24h"),
        ("reference.log_max_24h.threshold", 0.0, "log_max_24h"),
        ("reference.log_max_24h.fast_threshold", -1.0, "log_max_24h"),
        ("usual.ratio_deviation", 0.0, "usual errors"),
        ("training.symbols", [], "no symbol"),
        ("training.trained_until", 0, "training range"),
    ],
)
def test_each_contradiction_is_named(path: str, value: Any, named: str) -> None:
    with pytest.raises(ContractError, match=named):
        check(changed(path, value))


@pytest.mark.parametrize("field", [f.name for f in msgspec.structs.fields(Contract)])
def test_each_missing_part_is_named(field: str) -> None:
    tree = msgspec.to_builtins(GOOD)
    del tree[field]
    with pytest.raises(ContractError, match=field):
        read(msgspec.json.encode(tree).decode())


def test_no_metadata_and_nonsense_are_no_bundles() -> None:
    with pytest.raises(ContractError, match="not a Volcast bundle"):
        read(None)
    with pytest.raises(ContractError, match="not the contract"):
        read("{}}")
