"""The models of a node: the one that forecasts, one that may take over while it runs, and a shadow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from stream.adapters import predictor as predictors
from stream.adapters.bundles import ModelFile
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.policy import Policy
from stream.core.forecasting.contract import ContractError
from stream.core.messages.records import Issuer
from stream.pipeline.succession import Change, Successor


def load(path: Path, policy: Policy) -> Successor:
    """Loads a bundle, with what follows from it and the policy. Raises `ContractError` if it cannot be used."""
    bundle = predictors.read(path)
    predictor = predictors.parse(bundle, str(path))
    issuer = Issuer(predictor.model.version, bundle, policy.version, msgspec.json.encode(policy))
    return Successor(predictor, Rules.of(policy, predictor.model.contract), issuer)


def load_later(path: Path, policy: Policy, present: Rules, symbols: Sequence[str]) -> Successor:
    """Loads a bundle for a node that has started with the rules `present`. Raises `ContractError` if it cannot be used,
    also if it needs a longer history than the node has fetched."""
    loaded = load(path, policy)
    if any(loaded.rules.history_hours(symbol) > present.history_hours(symbol) for symbol in symbols):
        raise ContractError(
            f"{path}: it describes {loaded.rules.described} and the node's model {present.described}, so the node has "
            "too short a history for it: restart it with this model"
        )
    return loaded


def look(model_file: ModelFile, policy: Policy, present: Rules, symbols: Sequence[str]) -> Change | None:
    """Returns what the file holds now if that has changed. Raises what `load_later` does."""
    path = model_file.changed()
    if path is None:
        return None
    return Change(load_later(path, policy, present, symbols) if path.exists() else None)
