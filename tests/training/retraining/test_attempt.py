"""An attempt: what it leaves, that it goes on where it was cut short, and that no failure touches the champion."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from retrain_stand import FROM, NOW, RECIPE, Stand, market

from stream import files, times
from stream.adapters import champions, policies, predictor
from stream.core.deciding.replay import to_grid
from stream.core.market.candle import HOUR_MS
from stream.core.messages.judged import Verdict
from stream.errors import RefusedError, VolcastError
from training.data import dataset
from training.retraining import gate, plan, scored
from training.retraining.gate import Window

WINDOW = Window.ending(times.parse("2023-12-01"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    """Candles, and bundles that have learnt from them."""
    return Stand.of(tmp_path_factory.mktemp("market") / "var", [market()])


@pytest.fixture
def stand(shared: Stand, tmp_path: Path) -> Stand:
    (tmp_path / "var").mkdir()
    return Stand(tmp_path / "var", shared.table, shared.shelf)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_better_challenger_is_promoted_and_leaves_its_lineage(stand: Stand) -> None:
    old = stand.crown()
    done = stand.retrain()
    judged = done.judged
    assert (judged.outcome, judged.refusals, judged.champion) == ("promoted", (), old)
    assert stand.version() == judged.refit
    assert names(stand.folder / "models") == {f"{v}.{end}" for v in (old, judged.refit) for end in ("onnx", "json")}
    lineage = champions.lineage(stand.folder, str(judged.refit))
    assert lineage is not None
    assert lineage.parents == (old,)
    assert (lineage.gated, lineage.attempt, lineage.because) == (judged.challenger, done.folder.name, "hand")
    assert lineage.trained_until == WINDOW.to_ms - HOUR_MS
    assert lineage.gate == judged.symbols
    assert stand.verdicts() == [judged]
    assert names(done.folder) == {
        "plan.json", "gated.onnx", "refit.onnx", "verdict.json", "verdict.html", "metrics.json", "days.csv"
    }  # fmt: skip


def test_what_is_gated_has_learnt_until_a_day_before_the_gate(stand: Stand) -> None:
    stand.crown()
    done = stand.retrain()
    training = predictor.load(done.folder / "gated.onnx").model.contract.training
    assert training.trained_until == WINDOW.learnt_until - HOUR_MS
    assert (done.judged.gate_from, done.judged.gate_to) == (WINDOW.from_ms, WINDOW.to_ms)


def test_the_pages_and_figures_are_those_of_the_verdict(stand: Stand) -> None:
    stand.crown()
    done = stand.retrain()
    page = (done.folder / "verdict.html").read_text()
    assert "becomes the champion" in page
    assert page.count("<img") == 3
    metrics = json.loads((done.folder / "metrics.json").read_bytes())
    assert metrics["promoted"] == 1
    assert metrics["BTCUSDT"]["p_better"] == done.judged.symbols[0].p_better
    lines = (done.folder / "days.csv").read_text().splitlines()
    assert lines[0].startswith("symbol,day,forecasts,qlike_champion")
    assert len(lines) == 1 + gate.DAYS
    assert msgspec.json.decode((done.folder / "verdict.json").read_bytes(), type=Verdict) == done.judged


@pytest.mark.parametrize(
    ("champion", "challenger", "names"),
    [("linear", "constant", "not better"), ("linear", "nan", "usable forecast"), ("constant", "longer", "may know")],
)
def test_what_does_not_pass_leaves_the_champion(stand: Stand, champion: str, challenger: str, names: str) -> None:
    old = stand.crown(champion)
    make = stand.training(gated=challenger)
    done = stand.retrain(make)
    assert done.judged.outcome == "refused"
    assert names in done.judged.refusals[0]
    assert make.asked == ["gated.onnx"], "what does not pass is not fitted again"
    assert stand.version() == old
    assert not (stand.folder / "models").exists()
    assert [v.outcome for v in stand.verdicts()] == ["refused"]


def test_a_challenger_that_is_the_champion_again_is_refused(stand: Stand) -> None:
    stand.crown("linear", times.day(WINDOW.learnt_until))
    done = stand.retrain()
    assert done.judged.challenger == done.judged.champion
    assert "not better" in done.judged.refusals[0]


@pytest.mark.parametrize("refit", ["constant", "nan", "longer"])
def test_a_refit_that_is_another_model_than_was_gated_is_refused(stand: Stand, refit: str) -> None:
    old = stand.crown()
    done = stand.retrain(stand.training(refit=refit))
    assert done.judged.outcome == "refused"
    assert "refit" in done.judged.refusals[0]
    assert stand.version() == old


@pytest.mark.parametrize("which", ["gated", "refit"])
@pytest.mark.parametrize(
    ("how", "names"), [("crash", "fell over"), ("killed", "signal 9"), ("nothing", "without"), ("foreign", "no bundle")]
)
def test_a_training_that_fails_touches_nothing_and_is_taken_up_again(
    stand: Stand, which: str, how: str, names: str
) -> None:
    old = stand.crown()
    with pytest.raises(VolcastError, match=names):
        stand.retrain(stand.training(**{which: how}))
    assert stand.version() == old
    assert stand.verdicts() == []
    again = stand.training()
    done = stand.retrain(again)
    assert done.judged.outcome == "promoted"
    assert len(list((stand.folder / "retraining").glob("*/plan.json"))) == 1


def test_the_same_call_again_is_answered_without_a_training(stand: Stand) -> None:
    stand.crown("linear")
    first = stand.retrain(stand.training(gated="constant"))
    make = stand.training(gated="crash")
    # Hours later of the same day: the gate ends with the same midnight.
    again = stand.retrain(make, now_ms=NOW + 3 * HOUR_MS)
    assert again.again
    assert (again.judged, again.folder) == (first.judged, first.folder)
    assert make.asked == []


def test_another_champion_another_recipe_or_other_candles_are_another_attempt(stand: Stand) -> None:
    old = stand.crown("linear")
    wanted = plan.planned(stand.table, ("BTCUSDT",), predictor.load(stand.champion).model, RECIPE, NOW, 0)
    folder = plan.folder(stand.folder, wanted, old, [], NOW)
    assert plan.folder(stand.folder, wanted, old, [], NOW + HOUR_MS) == folder
    assert plan.folder(stand.folder, wanted, old, [folder.name], NOW) != folder
    for change in (
        {"champion": "other"},
        {"candles_sha256": "other"},
        {"code_sha256": "other"},
        {"recipe": plan.Recipe(FROM, 8, None)},
        {"shadow_days": 7},
    ):
        other = msgspec.structs.replace(wanted, **change)
        assert plan.of(plan.folder(stand.folder, other, old, [], NOW)) == other


class Cut(BaseException):
    """What kills a retraining, at a chosen write."""


@pytest.mark.slow
def test_killed_before_any_write_the_champion_is_one_of_the_two_and_the_next_call_ends_it(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file is written by `stream.files.replacing`; each of its calls is a place to be killed in."""
    old = stand.crown()
    real = files.replacing
    start = tmp_path / "start"
    shutil.copytree(stand.folder, start)
    reference: list[str] = []

    def counted(path: Path, **options: object):
        reference.append(path.name)
        return real(path, **options)  # type: ignore[arg-type]

    def everywhere(replacing: object) -> None:
        monkeypatch.setattr(files, "replacing", replacing)
        monkeypatch.setattr("stream.adapters.candles.files.replacing", replacing)

    everywhere(counted)
    whole = stand.retrain().judged
    assert reference.index("verdict.json") < reference.index("champion.onnx") < reference.index("judged.jsonl")
    finished = tmp_path / "finished"
    stand.folder.rename(finished)
    for at in range(len(reference)):
        shutil.copytree(start, stand.folder)
        left = [at]

        def cut(path: Path, left: list[int] = left, **options: object):
            if not left[0]:
                raise Cut
            left[0] -= 1
            return real(path, **options)  # type: ignore[arg-type]

        # What was trained is the same each time: the trainings of the whole run are taken over.
        def make(candles: Path, symbol: str, until_ms: int, *, pooled: bool, run: Path, bundle: Path) -> list:
            shutil.copy(finished / "retraining" / whole.id / bundle.name, bundle)
            return []

        everywhere(cut)
        with pytest.raises(Cut):
            stand.retrain(make)
        everywhere(real)
        swapped = at > reference.index("champion.onnx")
        assert stand.version() == (whole.refit if swapped else old)
        assert stand.retrain(make).judged == whole
        assert stand.version() == whole.refit
        assert stand.verdicts() == [whole]
        assert champions.lineage(stand.folder, str(whole.refit)) == champions.lineage(finished, str(whole.refit))
        assert champions.rollback(stand.folder) == (whole.refit, old)
        shutil.rmtree(stand.folder)


def test_a_full_disk_at_any_write_is_one_line_and_the_champion_stays(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = stand.crown()
    real = files.replacing
    for name in ("plan.json", "learnt.parquet", "refit.parquet", "verdict.html", "verdict.json", "champion.onnx"):

        def full(path: Path, name: str = name, **options: object):
            if path.name == name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(path, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(files, "replacing", full)
        monkeypatch.setattr("stream.adapters.candles.files.replacing", full)
        with pytest.raises(VolcastError, match="No space left") as raised:
            stand.retrain()
        assert "\n" not in str(raised.value)
        assert stand.version() == old
    monkeypatch.setattr(files, "replacing", real)
    monkeypatch.setattr("stream.adapters.candles.files.replacing", real)
    assert stand.retrain().judged.outcome == "promoted"


@pytest.mark.parametrize("damage", [b"", b"no bundle", None], ids=["empty", "foreign", "cut"])
def test_a_champion_that_is_no_bundle_is_refused_in_one_line(stand: Stand, damage: bytes | None) -> None:
    stand.crown()
    stand.champion.write_bytes(stand.champion.read_bytes()[:-100] if damage is None else damage)
    before = stand.champion.read_bytes()
    with pytest.raises(VolcastError) as raised:
        stand.retrain()
    assert "\n" not in str(raised.value)
    assert str(stand.champion) in str(raised.value)
    assert stand.champion.read_bytes() == before
    assert not (stand.folder / "retraining").exists()


def test_shadow_comes_before_promotion_where_it_is_asked_for(stand: Stand) -> None:
    old = stand.crown()
    done = stand.retrain(shadow_days=14)
    assert done.judged.outcome == "shadow"
    assert stand.version() == old
    challenger = predictor.load(stand.folder / champions.CHALLENGER).model
    assert challenger.version == done.judged.refit
    lineage = champions.lineage(stand.folder, challenger.version)
    assert lineage is not None
    assert (lineage.shadow_since, lineage.promoted_at, lineage.parents) == (NOW, None, (old,))
    # What the shadow has earned is promoted as any other, and has the same parent.
    promoted = champions.promote_challenger(stand.folder, NOW + 14 * 24 * HOUR_MS)
    assert (promoted.parents, promoted.shadow_since) == ((old,), NOW)
    assert promoted.promoted_at == NOW + 14 * 24 * HOUR_MS
    assert not (stand.folder / champions.CHALLENGER).exists()
    with pytest.raises(RefusedError, match="nothing runs"):
        champions.promote_challenger(stand.folder, NOW)
    assert champions.rollback(stand.folder) == (challenger.version, old)


def test_other_followed_symbols_are_judged_too(tmp_path: Path) -> None:
    stand = Stand.of(tmp_path / "var", [market(), market("ETHUSDT", seed=6)])
    stand.crown()
    done = stand.retrain(followed=("ETHUSDT", "BTCUSDT"))
    assert [of.symbol for of in done.judged.symbols] == ["BTCUSDT", "ETHUSDT"], "the champion's own symbol first"
    assert done.judged.outcome == "promoted"
    with pytest.raises(VolcastError, match="XRPUSDT"):
        stand.retrain(followed=("BTCUSDT", "XRPUSDT"))


def test_candles_that_end_long_before_now_are_refused(stand: Stand) -> None:
    stand.crown()
    with pytest.raises(RefusedError, match="--now"):
        stand.retrain(now_ms=NOW + 20 * 24 * HOUR_MS)


@pytest.mark.slow
def test_twenty_bundles_of_noise_are_not_promoted(stand: Stand) -> None:
    """A sound champion, and challengers whose weights have noise on them, through the whole of the scoring."""
    series, policy = stand.table["BTCUSDT"], policies.load(None)
    champion = predictor.load(stand.shelf.bundle("linear", WINDOW.learnt_until))
    own = scored.forecasts(champion, policy, "BTCUSDT", series, WINDOW)
    sha = champion.model.contract.training.data_sha256
    passed = 0
    for seed in range(20):
        noisy = predictor.load(stand.shelf.bundle(f"noise:{seed}", WINDOW.learnt_until))
        pair = gate.compared("BTCUSDT", own, scored.forecasts(noisy, policy, "BTCUSDT", series, WINDOW))
        found = gate.judge([pair], champion.model.contract, noisy.model.contract, WINDOW, learnt_sha256=sha)
        passed += not found.refusals
    assert passed <= 2


def test_a_retraining_that_is_killed_takes_its_training_with_it(tmp_path: Path) -> None:
    """`children.run` in a process that dies by SIGKILL: its child must not go on."""
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    child = f"import signal; held = open({str(alive)!r}, 'w'); signal.pause()"
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from training.retraining.children import Step, run
run(Step("training", [sys.executable, "-c", {child!r}], Path("x")))
"""
    with subprocess.Popen([sys.executable, "-c", code]) as retraining:
        # Opens once the child has; what it holds ends with it.
        with alive.open() as held:
            retraining.kill()
            assert held.read() == ""
        assert retraining.wait() == -signal.SIGKILL


def test_the_hash_of_what_was_learnt_is_that_of_the_contract(stand: Stand) -> None:
    data = dataset.of_grid("BTCUSDT", *to_grid(stand.table["BTCUSDT"]))
    expected = dataset.sha256([data], FROM, WINDOW.learnt_until)
    assert plan.learnt_sha256(stand.table, ["BTCUSDT"], RECIPE, WINDOW.learnt_until) == expected
    assert hashlib.sha256(b"").hexdigest() != expected
    assert champions.verdicts(stand.folder) == []
