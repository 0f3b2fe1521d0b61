"""The champion's file: replaced by one rename, its parents kept, and back by one call."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import small_bundles

from stream.adapters import champions, predictor
from stream.adapters.bundles import packaged_model
from stream.errors import RefusedError, VolcastError
from stream.testing.sample_model import sample_model


def bundle(path: Path, level: float) -> Path:
    """A bundle that forecasts one volatility."""
    small_bundles.write(path, sample_model().contract, np.zeros((small_bundles.INPUTS, 5)), np.full(5, np.log(level)))
    return path


def lineage(path: Path) -> champions.Lineage:
    return msgspec.structs.replace(champions.described(predictor.load(path).model), promoted_at=1, because="hand")


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [bundle(tmp_path / f"{k}.onnx", 0.001 * (k + 1)) for k in range(3)]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "var").mkdir()
    return tmp_path / "var"


def promote(data_dir: Path, path: Path) -> str:
    return champions.promote(data_dir, path, lineage(path)).version


def version(data_dir: Path) -> str:
    return champions.champion(data_dir).model.version


def test_the_first_champion_replaces_the_packaged_bundle_which_is_kept(data_dir: Path, models: list[Path]) -> None:
    packaged = predictor.load(packaged_model()).model.version
    assert version(data_dir) == packaged
    first = promote(data_dir, models[0])
    assert version(data_dir) == first
    assert (data_dir / "champion.onnx").read_bytes() == models[0].read_bytes()
    assert (data_dir / "models" / f"{packaged}.onnx").read_bytes() == packaged_model().read_bytes()
    found = champions.lineage(data_dir, first)
    assert found is not None
    assert found.parents == (packaged,)


def test_each_rollback_goes_one_further_back_until_there_is_nothing(data_dir: Path, models: list[Path]) -> None:
    packaged = version(data_dir)
    versions = [promote(data_dir, path) for path in models]
    found = champions.lineage(data_dir, versions[-1])
    assert found is not None
    assert found.parents == (versions[1], versions[0], packaged)
    for gone, back in zip(reversed(versions), [versions[1], versions[0], packaged], strict=True):
        assert champions.rollback(data_dir) == (gone, back)
        assert version(data_dir) == back
    with pytest.raises(RefusedError, match="no parent"):
        champions.rollback(data_dir)
    # What went is kept, and may come again.
    assert promote(data_dir, data_dir / "models" / f"{versions[2]}.onnx") == versions[2]
    assert champions.rollback(data_dir) == (versions[2], packaged)


def test_promoting_the_champion_again_changes_nothing_of_its_parents(data_dir: Path, models: list[Path]) -> None:
    first = promote(data_dir, models[0])
    second = promote(data_dir, models[1])
    assert promote(data_dir, models[1]) == second
    assert champions.rollback(data_dir) == (second, first)


def test_a_directory_without_a_champion_has_nothing_to_go_back_to(data_dir: Path) -> None:
    with pytest.raises(RefusedError, match="nothing was promoted"):
        champions.rollback(data_dir)


def test_a_champion_of_unknown_origin_has_no_parent(data_dir: Path, models: list[Path]) -> None:
    promote(data_dir, models[0])
    (data_dir / "champion.onnx").write_bytes(models[1].read_bytes())
    with pytest.raises(RefusedError, match="copy one of those kept") as raised:
        champions.rollback(data_dir)
    assert "\n" not in str(raised.value)


def test_a_parent_that_is_damaged_does_not_come_back(data_dir: Path, models: list[Path]) -> None:
    first, second = (promote(data_dir, path) for path in models[:2])
    kept = data_dir / "models" / f"{first}.onnx"
    kept.write_bytes(kept.read_bytes()[:-10])
    with pytest.raises(VolcastError):
        champions.rollback(data_dir)
    assert version(data_dir) == second


def test_what_is_no_bundle_is_never_promoted(data_dir: Path, models: list[Path], tmp_path: Path) -> None:
    first = promote(data_dir, models[0])
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(b"no bundle")
    with pytest.raises(VolcastError):
        champions.promote(data_dir, foreign, lineage(models[1]))
    with pytest.raises(RefusedError, match="changed meanwhile"):
        champions.promote(data_dir, models[2], lineage(models[1]))
    assert version(data_dir) == first


def test_a_challenger_stands_in_its_own_file(data_dir: Path, models: list[Path]) -> None:
    first = promote(data_dir, models[0])
    placed = champions.place_challenger(data_dir, models[1], lineage(models[1]))
    assert placed.parents[0] == first
    assert version(data_dir) == first
    assert (data_dir / "challenger.onnx").read_bytes() == models[1].read_bytes()


def test_two_retrainings_at_once_are_one_too_many(data_dir: Path) -> None:
    with champions.retraining(data_dir):
        with pytest.raises(RefusedError, match="another retraining") as raised, champions.retraining(data_dir):
            pass
        assert "\n" not in str(raised.value)
    with champions.retraining(data_dir):
        pass


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RefusedError, match="cannot be written"), champions.retraining(tmp_path / "file" / "var"):
        pass


def test_a_lineage_that_cannot_be_read_is_none(data_dir: Path, models: list[Path]) -> None:
    first = promote(data_dir, models[0])
    (data_dir / "models" / f"{first}.json").write_text("{")
    assert champions.lineage(data_dir, first) is None
    assert champions.lineage(data_dir, "nothing") is None
