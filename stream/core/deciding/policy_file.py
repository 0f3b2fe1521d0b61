"""Parses a policy's TOML, or names the key at fault in one line. Text in, policy out; no file is read here.

The file may have every key of `Policy`, and no other; what is left out has its default. Limits keep the policy's
memory well inside the 60 days that a decision's accumulation covers at least.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import msgspec

from stream.core.deciding.policy import SOURCES, Policy, Thresholds
from stream.errors import InputError

#: The name becomes part of ids, whose parts are separated by colons.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")
_LARGEST_EXPOSURE = 10.0
_LONGEST_HOURS = 168


class PolicyError(InputError):
    """The policy is not valid, which is its author's fault. The message names the file, the key and what is valid."""


def read(text: str, source: str) -> Policy:
    """Returns the policy in a file's text; `source` is the file's name in errors. Raises `PolicyError` if it is not
    valid."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{source} is not TOML: {error}") from None
    for key, name in _unknown(table):
        near = get_close_matches(key, name, 1)
        meant = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(name)}"
        raise PolicyError(f"{source}: {key}: there is no such key{meant}")
    _known_words(table, source)
    if "no_trade_band" in table:
        # Who names the band as a share of the wealth has no other, as before there was one.
        table = {"no_trade_band_of_exposure": 0.0} | table
    try:
        policy = msgspec.convert(table, Policy)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$.")
        key = path.rstrip("`") or "thresholds"
        raise PolicyError(f"{source}: {key}: {what[0].lower()}{what[1:]}") from None
    for key, why in _faults(policy):
        raise PolicyError(f"{source}: {key}: {why}")
    return policy


def _unknown(table: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields the unknown keys, each with the keys that there are."""
    yield from ((key, Policy.__struct_fields__) for key in table if key not in Policy.__struct_fields__)
    steps = table.get("thresholds")
    if isinstance(steps, dict):
        yield from ((key, Thresholds.__struct_fields__) for key in steps if key not in Thresholds.__struct_fields__)


def _known_words(table: Mapping[str, Any], source: str) -> None:
    forecast = table.get("forecast", "model")
    if not isinstance(forecast, str) or forecast not in SOURCES:
        raise PolicyError(f"{source}: forecast: there is no model {forecast!r}; there are {', '.join(SOURCES)}")


def _faults(policy: Policy) -> Iterator[tuple[str, str]]:
    """Yields the keys at fault, each with what is wrong. Comparisons are written so that NaN fails them."""
    if not _NAME.fullmatch(policy.name):
        yield "name", f"{policy.name!r} is no name: small letters, digits, dot, dash, underscore, at most 40"
    most, off, back = policy.max_exposure, policy.risk_off_from_annualized, policy.risk_back_below_annualized
    if not 0 < policy.target_volatility_annualized <= 10:
        yield (
            "target_volatility_annualized",
            f"{policy.target_volatility_annualized} must be above 0; 0.4 is 40 % a year",
        )
    if not 0 < most <= _LARGEST_EXPOSURE:
        yield "max_exposure", f"{most} must be above 0 and at most {_LARGEST_EXPOSURE:g}"
    if most > 1 and not policy.allow_leverage:
        yield "max_exposure", f"{most} is above 1, which is leverage: say allow_leverage = true, or lower it"
    if not 0 <= policy.no_trade_band < most:
        yield "no_trade_band", f"{policy.no_trade_band} must be at least 0 and below max_exposure ({most:g})"
    if not 0 <= policy.no_trade_band_of_exposure < 1:
        yield "no_trade_band_of_exposure", f"{policy.no_trade_band_of_exposure} must be at least 0 and below 1"
    for key in ("min_hold_hours", "calm_half_life_hours", "brake_hours"):
        if not 0 <= getattr(policy, key) <= _LONGEST_HOURS:
            yield key, f"{getattr(policy, key)} must be between 0 and {_LONGEST_HOURS}"
    if not 1 <= policy.stale_after_hours <= _LONGEST_HOURS:
        yield "stale_after_hours", f"{policy.stale_after_hours} must be between 1 and {_LONGEST_HOURS}"
    if not 0 <= policy.regime_hysteresis < 1:
        yield "regime_hysteresis", f"{policy.regime_hysteresis} must be at least 0 and below 1"
    if not 0 <= off < math.inf:
        yield "risk_off_from_annualized", f"{off} must be at least 0; 0 means never"
    if off > 0 and not 0 < back <= off:
        yield "risk_back_below_annualized", f"{back} must be above 0 and at most risk_off_from_annualized ({off:g})"
    if not 0 <= policy.brake_max_exposure <= _LARGEST_EXPOSURE:
        yield "brake_max_exposure", f"{policy.brake_max_exposure} must be between 0 and {_LARGEST_EXPOSURE:g}"
    if policy.thresholds is not None:
        yield from ((f"thresholds.{key}", why) for key, why in _faults_of_steps(policy.thresholds, most))


def _faults_of_steps(steps: Thresholds, most: float) -> Iterator[tuple[str, str]]:
    if not 0 < steps.medium_from < math.inf:
        yield "medium_from", f"{steps.medium_from} must be above 0"
    if not steps.medium_from < steps.high_from < math.inf:
        yield "high_from", f"{steps.high_from} must be above medium_from ({steps.medium_from:g})"
    for key in ("low_exposure", "medium_exposure", "high_exposure"):
        if not 0 <= getattr(steps, key) <= most:
            yield key, f"{getattr(steps, key)} must be between 0 and max_exposure ({most:g})"
