"""Policies as files: what is refused is refused in one line that names the key, and no two share a version."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.adapters import policies
from stream.core.deciding.policy import Policy
from stream.core.deciding.policy_file import PolicyError, read

STEPS = '[thresholds]\nunit = "daily"\n'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("no_trade_bnad = 0.1", "no_trade_bnad: there is no such key; did you mean no_trade_band"),
        ("no_trade_band = -0.1", "no_trade_band: -0.1"),
        ("no_trade_band = 1.0", "no_trade_band: 1.0"),
        ("no_trade_band_of_exposure = 1.0", "no_trade_band_of_exposure: 1.0"),
        ("max_exposure = 1.5", "max_exposure: 1.5 is above 1, which is leverage: say allow_leverage"),
        ("max_exposure = 0", "max_exposure: 0"),
        ('forecast = "gpt"', "forecast: there is no model 'gpt'; there are model, persistence"),
        ("forecast = 3", "forecast: there is no model 3"),
        ('no_trade_band = "wide"', "no_trade_band: expected `float`"),
        ("min_hold_hours = 1.5", "min_hold_hours: expected `int`"),
        ("min_hold_hours = 1000", "min_hold_hours: 1000 must be between"),
        ("target_volatility_annualized = nan", "target_volatility_annualized: nan"),
        ("target_volatility_annualized = 0", "target_volatility_annualized: 0"),
        ("risk_off_from_annualized = 2\nrisk_back_below_annualized = 3", "risk_back_below_annualized: 3.0"),
        ("stale_after_hours = 0", "stale_after_hours: 0"),
        ("brake_max_exposure = -1", "brake_max_exposure: -1"),
        ('name = "a:b"', "name: 'a:b' is no name"),
        (STEPS + "medium_from = 2\nhigh_from = 1", "thresholds.high_from: 1.0"),
        (STEPS + "medium_from = 1\nhigh_frm = 2", "high_frm: there is no such key; did you mean high_from"),
        (STEPS + "medium_from = 1\nhigh_from = 2\nlow_exposure = 2", "thresholds.low_exposure: 2.0"),
        ('[thresholds]\nunit = "weekly"\nmedium_from = 1\nhigh_from = 2', "thresholds.unit: "),
        ("thresholds = 3", "thresholds: expected"),
        ("a =", "is not TOML"),
    ],
)
def test_a_fault_is_one_line_that_names_file_and_key(text: str, named: str) -> None:
    with pytest.raises(PolicyError) as refused:
        read(text, "mine.toml")
    assert named in str(refused.value)
    assert str(refused.value).startswith("mine.toml")
    assert "\n" not in str(refused.value)


def test_leverage_needs_to_be_said_and_then_is_allowed() -> None:
    assert read("max_exposure = 1.5\nallow_leverage = true", "mine.toml").max_exposure == 1.5


def test_the_packaged_default_is_the_default_and_says_every_key() -> None:
    shipped = Path(policies.__file__).parents[1] / "policies" / "target-40.toml"
    assert policies.load() == Policy() == policies.load("target-40")
    assert set(tomllib.loads(shipped.read_text())) == set(Policy.__struct_fields__) - {"thresholds"}


def test_every_packaged_policy_loads_under_its_own_name() -> None:
    assert policies.packaged() == ("reference", "reference-daily", "target-40")
    for name in policies.packaged():
        assert policies.load(name).name == name


def test_a_file_comes_before_a_packaged_name_and_what_is_neither_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reference").write_text('name = "mine"')
    assert policies.load("reference").name == "mine"
    with pytest.raises(PolicyError, match=r"nowhere.toml: there is no such policy file; packaged are"):
        policies.load(Path("nowhere.toml"))
    Path("binary").write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match="binary is no text"):
        policies.load("binary")
    with pytest.raises(PolicyError, match="cannot be read"):
        policies.load(tmp_path)


def test_a_band_of_the_wealth_alone_is_the_only_band() -> None:
    assert read("", "mine.toml").no_trade_band_of_exposure == 0.28
    alone = read("no_trade_band = 0.2", "mine.toml")
    assert (alone.no_trade_band, alone.no_trade_band_of_exposure) == (0.2, 0.0)
    both = read("no_trade_band = 0.2\nno_trade_band_of_exposure = 0.1", "mine.toml")
    assert (both.no_trade_band, both.no_trade_band_of_exposure) == (0.2, 0.1)


def test_policies_without_the_newer_band_keep_their_versions() -> None:
    # As they were before the key existed; a decision's id has the version in it.
    assert policies.load("reference").version == "reference-b943f261"
    assert policies.load("reference-daily").version == "reference-daily-f0d322f9"
    assert read("no_trade_band = 0.20\ncalm_half_life_hours = 48", "mine.toml").version == "target-40-5224849b"


FIELDS = {
    "no_trade_band_of_exposure": st.floats(0, 0.9),
    "no_trade_band": st.floats(0, 0.9),
    "min_hold_hours": st.integers(0, 168),
    "target_volatility_annualized": st.floats(0.01, 2),
    "brake_hours": st.integers(0, 168),
    "forecast": st.sampled_from(["model", "har", "ewma"]),
}


def _with_one_band(changes: dict[str, object]) -> dict[str, object]:
    return ({"no_trade_band_of_exposure": 0.0} if "no_trade_band" in changes else {}) | changes


@given(st.fixed_dictionaries({}, optional=FIELDS), st.fixed_dictionaries({}, optional=FIELDS))
def test_a_version_stands_for_the_content(a: dict[str, object], b: dict[str, object]) -> None:
    one, other = (msgspec.structs.replace(Policy(), **_with_one_band(changes)) for changes in (a, b))
    assert (one.version == other.version) == (one == other)
    assert one.version.startswith("target-40-")
    text = "\n".join(f"{key} = {value!r}" for key, value in a.items())
    assert read(text, "mine.toml").version == one.version
