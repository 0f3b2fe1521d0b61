"""Parts in hand: what counts is whole, whatever became of the files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.data.parts import FetchError, Parts

NAME = "BTCUSDT-1h-2024-03.zip"


def test_what_is_put_is_got(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "a.parts")
    assert parts.get(NAME) is None
    assert parts.names("") == []
    parts.put(NAME, b"one")
    parts.put(NAME, b"two")
    parts.put("ETHUSDT-rest-1-2.json.gz", b"")
    assert (parts.get(NAME), parts.get("ETHUSDT-rest-1-2.json.gz")) == (b"two", b"")
    assert parts.names("BTCUSDT-") == [NAME]
    parts.drop(NAME)
    parts.drop(NAME)
    assert parts.get(NAME) is None
    assert parts.names("") == ["ETHUSDT-rest-1-2.json.gz"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=50),
    which=st.sampled_from([NAME, f"{NAME}.CHECKSUM"]),
    spoilt=st.none() | st.binary(max_size=120),
)
def test_a_part_counts_only_as_it_was_put(tmp_path: Path, content: bytes, which: str, spoilt: bytes | None) -> None:
    parts = Parts(tmp_path)
    parts.put(NAME, content)
    file = tmp_path / which
    before = file.read_bytes()
    if spoilt is None:
        file.unlink()
    else:
        file.write_bytes(spoilt)
    assert parts.get(NAME) == (content if spoilt == before else None)


def test_a_part_that_was_replaced_but_not_finished_does_not_count(tmp_path: Path) -> None:
    """A kill between the two files of a revised part."""
    parts = Parts(tmp_path)
    parts.put(NAME, b"old")
    (tmp_path / NAME).write_bytes(b"new")
    (tmp_path / f".{NAME}").write_bytes(b"n")
    assert parts.get(NAME) is None
    parts.put(NAME, b"new")
    assert parts.get(NAME) == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == [NAME, f"{NAME}.CHECKSUM"]


def test_a_place_that_will_not_do_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.parts").write_text("")
    parts = Parts(tmp_path / "a.parts")
    for act in (lambda: parts.put(NAME, b"x"), lambda: parts.get(NAME), lambda: parts.names("")):
        with pytest.raises(FetchError, match=r"a\.parts.*: cannot be (written|read): ") as error:
            act()
        assert "\n" not in str(error.value)
