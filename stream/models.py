"""The models of a node: the one that forecasts, one that may take over while it runs, a shadow, and what a retraining
has decided about another."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from monitor.http.server import ModelInUse
from stream.adapters import champions
from stream.adapters import predictor as predictors
from stream.adapters.bundles import ModelFile
from stream.clock import Clock
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.policy import Policy
from stream.core.forecasting.contract import ContractError, Model
from stream.core.messages.builders import model_ref
from stream.core.messages.records import Issuer
from stream.core.messages.shadows import ShadowScore
from stream.pipeline.champion import Champion
from stream.pipeline.daemon import Daemon
from stream.pipeline.processing import Processor
from stream.pipeline.shadow import Shadow
from stream.pipeline.succession import Change, Successor
from stream.pipeline.verdicts import Verdicts
from stream.ports import Journal
from stream.telemetry import Observer, ShadowScored


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


def in_use(processor: Processor, data_dir: Path) -> ModelInUse:
    """Returns which model forecasts, and where it comes from."""
    known = champions.lineage(data_dir, processor.model.version)
    return ModelInUse(model_ref(processor.model), None if known is None else msgspec.to_builtins(known))


def tasks(
    daemon: Daemon,
    *,
    data_dir: Path,
    journal: Journal,
    policy: Policy,
    present: Rules,
    champion: ModelFile | None,
    shadow: ModelFile,
    clock: Clock,
    observe: Observer,
    replaced: Callable[[Model], None],
) -> list[Callable[[], Coroutine[Any, Any, None]]]:
    """Returns what runs beside a daemon for its models: one that follows the champion's file (None: the model stays),
    one for the shadow's, and one for verdicts. `replaced` receives each model that has taken over."""
    processor, symbols = daemon.processor, daemon.symbols

    def scored(score: ShadowScore) -> None:
        daemon.shadows[score.symbol] = msgspec.json.encode(score)
        observe(ShadowScored(score))

    companion = Shadow(
        look=partial(look, shadow, policy, present, symbols),
        processor=processor,
        journal=journal,
        worker=daemon.worker,
        clock=clock,
        scored=scored,
        ended=daemon.shadows.clear,
    )
    verdicts = Verdicts(
        partial(champions.verdicts, data_dir),
        symbols=symbols,
        journal=journal,
        worker=daemon.worker,
        clock=clock,
        offer=daemon.publisher.offer,
    )
    if champion is None:
        return [companion.run, verdicts.run]
    follower = Champion(
        processor,
        look=partial(look, champion, policy, present, symbols),
        clock=clock,
        replaced=replaced,
        publish_state=daemon.publish_state,
    )
    return [follower.run, companion.run, verdicts.run]
