"""The ledger: every look at the test year once, nothing lost, and a file that is none is named."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream import times
from training.evaluation import ledger
from training.evaluation.ledger import LedgerError, Scoring


def scoring(model: str = "a9c2ddce3981", rmse: float = 0.00195, **more: object) -> Scoring:
    figures = {"rmse": rmse, "qlike": 0.2825} | more
    return Scoring(model=model, symbol="BTCUSDT", start="2024-01-01", end="2025-01-01", protocol="fixed", **figures)


def test_the_same_scoring_twice_leaves_the_file_as_it_is(tmp_path):
    file = tmp_path / "scorings.jsonl"
    assert ledger.count(file) == 0
    assert ledger.append(file, [scoring(), scoring("b")]) == 2
    before, stamp = file.read_bytes(), file.stat().st_ino
    # The last digits of a sum are the machine's, not the forecast's.
    assert ledger.append(file, [scoring(rmse=0.00195 * (1 + 1e-12))]) == 0
    assert (file.read_bytes(), file.stat().st_ino) == (before, stamp)
    assert ledger.append(file, [scoring(rmse=0.0019501)]) == 1
    assert file.read_bytes().startswith(before)
    assert ledger.count(file) == 3
    assert [s.model for s in ledger.read(file)] == ["a9c2ddce3981", "b", "a9c2ddce3981"]


def test_one_json_line_each_and_nothing_beside_the_file(tmp_path):
    file = tmp_path / "scorings.jsonl"
    ledger.append(file, [scoring(note="first light"), scoring("b", coverage=0.93)])
    lines = file.read_text().splitlines()
    assert [msgspec.json.decode(line)["model"] for line in lines] == ["a9c2ddce3981", "b"]
    assert "coverage" not in lines[0]
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("line", ["{", '{"model": "x"}', "[]", "", '{"modell": 1}', "\x00"])
def test_a_corrupt_ledger_is_one_line_and_stays_as_it_is(tmp_path, line):
    file = tmp_path / "scorings.jsonl"
    ledger.append(file, [scoring()])
    file.write_text(file.read_text() + line + "\n")
    before = file.read_bytes()
    for act in (lambda: ledger.count(file), lambda: ledger.append(file, [scoring("b")])):
        with pytest.raises(LedgerError, match="line 2 is no scoring") as refusal:
            act()
        assert "\n" not in str(refusal.value)
    assert file.read_bytes() == before


def test_a_line_cut_short_of_its_newline_is_kept_whole(tmp_path):
    file = tmp_path / "scorings.jsonl"
    ledger.append(file, [scoring()])
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    ledger.append(file, [scoring("b")])
    assert ledger.count(file) == 2


def test_a_place_that_cannot_be_written_or_read_is_named(tmp_path):
    with pytest.raises(LedgerError, match=r"nowhere/a\.jsonl: the ledger cannot be written"):
        ledger.append(tmp_path / "nowhere" / "a.jsonl", [scoring()])
    with pytest.raises(LedgerError, match="cannot be read"):
        ledger.read(tmp_path)


def test_writers_at_the_same_time_lose_no_line(tmp_path):
    file = tmp_path / "scorings.jsonl"
    code = (
        "import sys; from pathlib import Path; from training.evaluation.ledger import Scoring, append\n"
        "for k in range(15):\n"
        "    append(Path(sys.argv[1]), [Scoring(f'{sys.argv[2]}{k}', 'BTCUSDT', '2024', '2025', 'fixed', 1.0, 1.0)])"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(file), name]) for name in "ab"]
    assert [w.wait() for w in writers] == [0, 0]
    assert ledger.count(file) == 30


@given(st.integers(2015, 2030), st.integers(2015, 2030))
def test_a_period_touches_the_test_year_if_it_has_an_hour_of_it(first, last):
    got = ledger.touches_test_year(times.parse(f"{first}-01-01"), times.parse(f"{last}-01-01"))
    assert got == (2024 in range(first, last))
