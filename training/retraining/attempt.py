"""One attempt, from candles to a verdict and what follows from it.

Rules of this module:
- What an attempt computes stands in its folder, each file complete or absent; a killed attempt goes on after the last
  file that is there.
- A challenger is trained from a file that ends before the gate, so that it cannot have seen the gate's days.
- The verdict is on the disk before the champion is touched. Whatever fails before that, or says no, leaves the
  champion as it was.
- The last line of an attempt is that in `judged.jsonl`: an attempt whose name is there has come to its end.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from stream import files, times
from stream.adapters import champions
from stream.adapters import predictor as predictors
from stream.adapters.candles.files import CandleTable, write_part
from stream.adapters.predictor import Predictor
from stream.core.deciding.policy import Policy
from stream.core.forecasting.contract import ContractError
from stream.core.messages.judged import Because, Outcome, Verdict
from stream.errors import RefusedError
from training.retraining import children, gate, page, plan, scored
from training.retraining.children import Make
from training.retraining.gate import Compared, Forecasts, Judgement, Window
from training.retraining.plan import VERDICT, Plan, Recipe

log = logging.getLogger(__name__)

#: Verdicts of all attempts, one a line, the newest last.
JUDGED = "judged.jsonl"
RETRAINING = "retraining"
#: What a finished attempt does not keep: it can be made anew, and is large.
_LARGE = ("learnt.parquet", "refit.parquet", "run", "refit-run")


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a retraining."""

    data_dir: Path
    #: Where the attempts' folders are.
    out: Path
    table: CandleTable
    followed: tuple[str, ...]
    now_ms: int
    because: Because
    shadow_days: int
    recipe: Recipe
    make: Make
    policy: Policy


@dataclass(frozen=True, slots=True)
class Done:
    """A verdict, and the folder of its attempt. `again`: whether it is that of an earlier call with the same inputs."""

    judged: Verdict
    folder: Path
    again: bool = False


def retrain(asked: Request) -> Done:
    """Trains a challenger, judges it, and promotes it where it passes; the caller holds `champions.retraining`.

    Raises `RefusedError` or `ContractError`, one line, where it cannot be done. The same call goes on from there.
    """
    champion = champions.champion(asked.data_dir)
    wanted = plan.planned(asked.table, asked.followed, champion.model, asked.recipe, asked.now_ms, asked.shadow_days)
    before = champions.verdicts(asked.data_dir)
    for earlier in reversed(before):
        if plan.of(asked.out / earlier.id) == wanted:
            return Done(earlier, asked.out / earlier.id, again=True)
    folder = plan.folder(asked.out, wanted, champion.model.version, (v.id for v in before), asked.now_ms)
    try:
        judged = _decided(folder)
        if judged is None:
            judged = _Attempt(asked, plan.of(folder) or wanted, folder, champion).decide()
        _follow(asked, folder, judged, champion)
        _append(asked.data_dir, judged)
    except OSError as error:
        raise RefusedError(
            f"{folder} cannot be written ({error.strerror or error}): make room and retrain again to go on"
        ) from None
    # Hidden ones are what a write that was cut short has left.
    for large in (*(folder / name for name in _LARGE), *folder.glob(".*")):
        shutil.rmtree(large, ignore_errors=True) if large.is_dir() else large.unlink(missing_ok=True)
    return Done(judged, folder)


def _append(data_dir: Path, judged: Verdict) -> None:
    every = [*champions.verdicts(data_dir), judged]
    path = champions.verdicts_path(data_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, b"".join(msgspec.json.encode(one) + b"\n" for one in every))


def _decided(folder: Path) -> Verdict | None:
    try:
        return msgspec.json.decode((folder / VERDICT).read_bytes(), type=Verdict)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _follow(asked: Request, folder: Path, judged: Verdict, champion: Predictor) -> None:
    """Does what the verdict says."""
    if judged.outcome == "refused":
        log.info("%s: the challenger is refused: %s", judged.id, "; ".join(judged.refusals))
        return
    bundle = folder / "refit.onnx"
    model = predictors.load(bundle).model
    shadow = judged.outcome == "shadow"
    new = msgspec.structs.replace(
        champions.described(model),
        promoted_at=None if shadow else judged.judged_at,
        shadow_since=judged.judged_at if shadow else None,
        because=judged.because,
        attempt=judged.id,
        gated=judged.challenger,
        gate=judged.symbols,
    )
    if shadow:
        champions.place_challenger(asked.data_dir, bundle, new)
        log.info("%s: %s runs in the shadow of %s", judged.id, model.version, judged.champion)
    elif champion.model.version != model.version:
        champions.promote(asked.data_dir, bundle, new)
        log.info("%s: %s is the champion, %s was", judged.id, model.version, judged.champion)


@dataclass(frozen=True, slots=True)
class _Attempt:
    asked: Request
    plan: Plan
    folder: Path
    champion: Predictor

    def decide(self) -> Verdict:
        """Comes to a verdict and writes it, with its page and figures."""
        window = self.plan.window
        learnt = self._file("learnt.parquet", window.learnt_until)
        gated = self._bundle(learnt, window.learnt_until, "run", "gated.onnx")
        log.info("scoring both on %s to %s", times.day(window.from_ms), times.day(window.to_ms))
        pairs = [
            gate.compared(symbol, self._forecasts(self.champion, symbol), self._forecasts(gated, symbol))
            for symbol in self.plan.judged
        ]
        found = gate.judge(
            pairs,
            self.champion.model.contract,
            gated.model.contract,
            window,
            learnt_sha256=self._learnt_sha256(gated, window.learnt_until),
        )
        refit = None
        if not found.refusals:
            refit, refusals = self._refit(gated, pairs)
            found = Judgement(refusals, found.notes, found.symbols)
        judged = self._judged(found, gated, refit)
        self._write(judged, pairs)
        return judged

    def _refit(self, gated: Predictor, pairs: list[Compared]) -> tuple[Predictor, tuple[str, ...]]:
        """Fits the same recipe up to the newest candle, and compares the two."""
        to_ms = self.plan.window.to_ms
        log.info("the challenger passes; fitting it until %s", times.day(to_ms))
        refit = self._bundle(self._file("refit.parquet", to_ms), to_ms, "refit-run", "refit.onnx")
        sigmas = []
        for pair in pairs:
            now = self._forecasts(refit, pair.symbol)
            was = self._forecasts(gated, pair.symbol)
            sigmas.append((pair.symbol, was.sigma, now.sigma))
        refusals = gate.refit_refusals(gated.model.contract, refit.model.contract, sigmas, to_ms)
        if refit.model.contract.training.data_sha256 != self._learnt_sha256(refit, to_ms):
            refusals = (*refusals, "the refit learnt from other candles than it was given")
        return refit, refusals

    def _file(self, name: str, until_ms: int) -> Path:
        path = self.folder / name
        if not path.exists():
            write_part(self.asked.table, (self.plan.symbol, *self.plan.pool), until_ms, path)
        return path

    def _bundle(self, candles: Path, until_ms: int, run: str, bundle: str) -> Predictor:
        path = self.folder / bundle
        steps = self.asked.make(
            candles, self.plan.symbol, until_ms, pooled=bool(self.plan.pool), run=self.folder / run, bundle=path
        )
        for step in steps:
            # A bundle that is there needs no run any more.
            if not (step.product.exists() or path.exists()):
                log.info("%s until %s", step.name, times.day(until_ms))
                children.run(step)
        try:
            return predictors.load(path)
        except ContractError as error:
            # The next attempt must not begin with it.
            path.unlink(missing_ok=True)
            raise ContractError(f"what was trained is no bundle: {error}") from None

    def _learnt_sha256(self, of: Predictor, until_ms: int) -> str:
        """Returns the hash of the candles that it was given, of those symbols that it names."""
        named = of.model.contract.training.symbols
        given = [s for s in (self.plan.symbol, *self.plan.pool) if s in named]
        return plan.learnt_sha256(self.asked.table, given, self.plan.recipe, until_ms) if given else ""

    def _forecasts(self, of: Predictor, symbol: str) -> Forecasts:
        return scored.forecasts(of, self.asked.policy, symbol, self.asked.table[symbol], self.plan.window)

    def _judged(self, found: Judgement, gated: Predictor, refit: Predictor | None) -> Verdict:
        outcome: Outcome = "refused" if found.refusals else "shadow" if self.plan.shadow_days else "promoted"
        window: Window = self.plan.window
        return Verdict(
            id=self.folder.name,
            judged_at=self.asked.now_ms,
            because=self.asked.because,
            outcome=outcome,
            refusals=found.refusals,
            notes=found.notes,
            champion=self.champion.model.version,
            challenger=gated.model.version,
            refit=None if refit is None else refit.model.version,
            gate_from=window.from_ms,
            gate_to=window.to_ms,
            symbols=found.symbols,
        )

    def _write(self, judged: Verdict, pairs: list[Compared]) -> None:
        trainings = (
            self.champion.model.contract.training,
            predictors.load(self.folder / "gated.onnx").model.contract.training,
        )
        for name, content in page.files_of(judged, pairs, trainings).items():
            files.write(self.folder / name, content)
        # Last: with it the attempt is decided.
        text = msgspec.json.format(msgspec.json.encode(judged), indent=1) + b"\n"
        files.write(self.folder / VERDICT, text)
