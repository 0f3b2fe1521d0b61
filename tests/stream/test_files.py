"""The one writer of files: a file is whole, whatever happens while it is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stream import files


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    files.write(path, b"one")
    files.write(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_there_stays_where_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(b"before")

    def write() -> None:
        with files.replacing(path) as temporary:
            # Libraries choose a format by the suffix, and other programs list the folder meanwhile.
            assert (temporary.suffix, temporary.parent, temporary.name[0]) == (".keras", tmp_path, ".")
            temporary.write_bytes(b"half")
            raise ValueError("the library gave up")

    with pytest.raises(ValueError, match="gave up"):
        write()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_result_is_as_readable_as_any_file_of_the_user(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        files.write(tmp_path / "out.csv", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == mode


def test_a_named_place_is_used_again_after_a_kill(tmp_path: Path) -> None:
    (tmp_path / ".part").write_bytes(b"of a run that was killed")
    with files.replacing(tmp_path / "part", temporary=tmp_path / ".part") as temporary:
        temporary.write_bytes(b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"part": b"new"}
