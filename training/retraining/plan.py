"""What a retraining is of: its inputs, by which a killed attempt is found again, and its folder.

Rules of this module:
- An attempt is continued where everything that its result depends on is the same: the candles by their hash, the
  recipe, the code by its hash, the champion. Why it was begun, and when, is not among that.
- The gate ends with a UTC day, so that calls of one day are of the same hours.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

import msgspec

from stream import files, times
from stream.adapters.candles.files import CandleTable
from stream.core.forecasting.contract import Model
from stream.core.market.candle import HOUR_MS
from stream.errors import RefusedError
from training.data.dataset import candles_sha256, joined_sha256
from training.retraining.gate import Window

PLAN, VERDICT = "plan.json", "verdict.json"
_DAY_MS = 24 * HOUR_MS
#: Candles that end earlier than this before now are no base for a model that shall serve from now on.
_STALE_DAYS = 3
#: What forecasts are computed with.
_CODE = ("stream.core", "training", "export")


class Recipe(msgspec.Struct, frozen=True):
    """How a challenger is trained, beyond what it is trained on."""

    train_from: int
    seed: int
    epochs: int | None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of an attempt. `symbol` is the one that the model is for, `followed` those that the node follows."""

    schema: str = "volcast.retraining.plan/1"
    symbol: str
    followed: tuple[str, ...]
    #: Further pairs that it may learn from.
    pool: tuple[str, ...]
    recipe: Recipe
    window: Window
    candles_sha256: str
    code_sha256: str
    #: Version of the champion that is to be beaten.
    champion: str
    shadow_days: int

    @property
    def judged(self) -> tuple[str, ...]:
        """The symbols of the gate: the one that the model is for, then the others that are followed."""
        return (self.symbol, *(s for s in self.followed if s != self.symbol))


def planned(
    table: CandleTable, followed: tuple[str, ...], champion: Model, recipe: Recipe, now_ms: int, shadow_days: int
) -> Plan:
    """Plans an attempt from these candles.

    The model is for the symbol that the champion is for where that is followed, else for the first that is; it may
    learn from every pair that there are candles of. Raises `RefusedError` where they do not reach up to now, and
    `CandleFileError` where a followed symbol is not among them.
    """
    for each in followed:
        table.require(each)
    described = champion.contract.training.symbols[0]
    symbol = described if described in followed else followed[0]
    window = Window.ending(_end(table, symbol, now_ms))
    if recipe.train_from >= window.learnt_until:
        raise RefusedError(
            f"{table.path}: nothing lies between {times.day(recipe.train_from)}, from which on is learnt, and the "
            f"gate, which begins on {times.day(window.from_ms)}: name an earlier --from"
        )
    pool = tuple(s for s in table.symbols if s != symbol)
    return Plan(
        symbol=symbol,
        followed=followed,
        pool=pool,
        recipe=recipe,
        window=window,
        candles_sha256=learnt_sha256(table, (symbol, *pool), recipe, window.to_ms),
        code_sha256=_code_sha256(),
        champion=champion.version,
        shadow_days=shadow_days,
    )


def learnt_sha256(table: CandleTable, symbols: Iterable[str], recipe: Recipe, until_ms: int) -> str:
    """Returns the hash that a contract names for having learnt from these candles until then."""
    return joined_sha256([candles_sha256(s, *table.grid(s), recipe.train_from, until_ms) for s in symbols])


def folder(out: Path, plan: Plan, champion: str, done: Iterable[str], now_ms: int) -> Path:
    """Returns the folder of the attempt that has this plan, of one that was cut short where there is one, and a new one
    otherwise. `done`: names of the attempts that have come to their end; `champion`: the version that serves now.

    Raises `RefusedError` where it cannot be made.
    """
    finished = set(done)
    for earlier in sorted((p.parent for p in out.glob(f"*/{PLAN}")), reverse=True):
        if earlier.name not in finished and _continues(earlier, plan, champion):
            return earlier
    name = times.moment(now_ms).strftime("%Y-%m-%dT%H%M%SZ")
    new = next(p for k in range(1, 10_000) if not ((p := out / (name if k == 1 else f"{name}-{k}")) / PLAN).exists())
    try:
        # One without a plan was left by a call that came no further.
        new.mkdir(parents=True, exist_ok=True)
        files.write(new / PLAN, msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n")
    except OSError as error:
        raise RefusedError(
            f"{new} cannot be written ({error.strerror or error}): make room or choose another --out-dir"
        ) from None
    return new


def of(attempt: Path) -> Plan | None:
    """Returns the plan of an attempt; None where it has none, or one of another Volcast."""
    try:
        return msgspec.json.decode((attempt / PLAN).read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError):
        return None


def _continues(attempt: Path, plan: Plan, champion: str) -> bool:
    found = of(attempt)
    if found is None:
        return False
    # Its own promotion is the one change of the champion after which it is still to be brought to its end.
    decided = (attempt / VERDICT).exists()
    return found == plan or (
        decided and msgspec.structs.replace(found, champion=champion) == plan and _made(attempt, champion)
    )


def _made(attempt: Path, version: str) -> bool:
    try:
        return hashlib.sha256((attempt / "refit.onnx").read_bytes()).hexdigest().startswith(version)
    except OSError:
        return False


def _end(table: CandleTable, symbol: str, now_ms: int) -> int:
    """Returns the last midnight up to which there are candles."""
    newest = int(table.grid(symbol)[0][-1]) + HOUR_MS
    if newest < now_ms - _STALE_DAYS * _DAY_MS:
        raise RefusedError(
            f"{table.path}: candles of {symbol} end on {times.day(newest)}, and now is {times.day(now_ms)}: fetch "
            "more, or name the time that is meant with --now"
        )
    return min(newest, now_ms) // _DAY_MS * _DAY_MS


def _code_sha256() -> str:
    digest = hashlib.sha256()
    for name in _CODE:
        spec = importlib.util.find_spec(name)
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            for path in sorted(Path(place).rglob("*.py")):
                digest.update(str(path.relative_to(place)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
