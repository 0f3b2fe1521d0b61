"""The journal's file: migrated after a backup, rebuilt where it is damaged, copied while it is written to."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.adapters.journal import files
from stream.adapters.journal.database import FILE_NAME
from stream.adapters.journal.schema import MIGRATIONS
from stream.adapters.journal.store import SqliteJournal
from stream.clock import Clock
from stream.core.market.candle import HOUR_MS, Candle
from stream.errors import JournalError

T0 = 1_704_067_200_000
HOURS = 240
CLOCK = Clock(wall_ms=lambda: T0)
ASIDE = f"{FILE_NAME}.corrupt-20240101T000000Z"
TABLES = ("candles", "forecasts", "decisions", "gaps", "outbox", "retained", "operator_state")


def message(hour: int, tail: str = "") -> tuple[str, int, str, int, bytes]:
    open_time = T0 + hour * HOUR_MS
    schema = "volcast.decision/1" if tail else "volcast.forecast/1"
    key = {"id": f"binance:spot:B:1h:{open_time}:m{tail}", "revision": 0, "symbol": "B", "open_time": open_time}
    return (*key.values(), msgspec.json.encode({"schema": schema, **key, "exposure": 0.25, "padding": "x" * 600}))  # type: ignore[return-value]


def fill(db: sqlite3.Connection, hours: int = HOURS, *, holes: tuple[int, ...] = (), keep_outbox: int = 20) -> None:
    """Writes what a daemon leaves after `hours`: rows in every table of the first schema."""
    db.execute("BEGIN")
    for hour in (h for h in range(hours) if h not in holes):
        open_time = T0 + hour * HOUR_MS
        db.execute("INSERT INTO candles VALUES ('B', ?, 10, 12, 9, 11, 3, 'live')", (open_time,))
        db.execute("INSERT INTO forecasts VALUES (?, ?, ?, ?, ?)", message(hour))
        db.execute("INSERT INTO decisions VALUES (?, ?, ?, ?, ?)", message(hour, ":p"))
        db.execute("INSERT INTO outbox (topic, payload, expiry_s) VALUES (?, ?, 60)",
                   ("volcast/v1/binance/spot/B/1h/event/forecast.issued", message(hour)[-1]))  # fmt: skip
        db.execute("DELETE FROM outbox WHERE seq = (SELECT max(seq) FROM outbox) - ?", (keep_outbox,))
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'outcomes'").fetchone():
        db.execute(
            "INSERT INTO outcomes (forecast_id, revision, symbol, open_time, provenance, model_version, realized, "
            "volatility, low, high, level, persistence, ewma, har) "
            "VALUES ('f', 0, 'B', ?, 'live', 'm', .1, .1, .1, .1, .9, .1, .1, .1)",
            (T0,),
        )
    db.execute("INSERT INTO retained VALUES ('volcast/v1/binance/spot/B/1h/forecast', ?, 7200, ?)", (b"{}", T0))
    db.execute("INSERT INTO gaps VALUES ('B', ?, ?)", (T0 + 60 * HOUR_MS, T0 + 62 * HOUR_MS))
    db.execute("INSERT INTO operator_state VALUES ('B', ?, 0, 0.25, 'm', 'p')", (T0 + (hours - 1) * HOUR_MS,))
    db.execute("COMMIT")


def make(folder: Path, schema: int = len(MIGRATIONS), **what: Any) -> Path:
    path = folder / FILE_NAME
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for number in range(schema):
            db.executescript(f"BEGIN; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")
        fill(db, **what)
    return path


def rows(path: Path, table: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()


def everything(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    return {table: rows(path, table) for table in TABLES}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A journal of 240 hours, three of which the exchange never published."""
    return make(tmp_path_factory.mktemp("sound"), holes=(60, 61, 62)).read_bytes()


@pytest.fixture(scope="module")
def original(sound: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Any, ...]]]:
    path = tmp_path_factory.mktemp("original") / FILE_NAME
    path.write_bytes(sound)
    return everything(path)


# --- migration -------------------------------------------------------------------------------------------------


@pytest.mark.fault(29)
@pytest.mark.parametrize("schema", range(1, len(MIGRATIONS)))
def test_an_older_schema_is_migrated_after_a_backup_and_everything_survives(tmp_path: Path, schema: int) -> None:
    path = make(tmp_path, schema)
    before = everything(path)
    with contextlib.closing(SqliteJournal(tmp_path, clock=CLOCK)) as journal:
        assert [o.forecast_id for o in journal.outcomes("B", 0, 2**60)] == ["f"] * (schema > 1)
        assert [o.seq for o in journal.outbox()] == [row[0] for row in before["outbox"]]
    assert everything(path) == before
    kept = tmp_path / f"{FILE_NAME}.before-{len(MIGRATIONS)}"
    assert everything(kept) == before
    with contextlib.closing(sqlite3.connect(kept)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (schema,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_new_journal_and_one_of_this_schema_leave_no_backup(tmp_path: Path) -> None:
    for _ in range(2):
        SqliteJournal(tmp_path).close()
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]


def test_a_migration_without_its_backup_does_not_happen(tmp_path: Path) -> None:
    path = make(tmp_path, 1)
    (tmp_path / f"{FILE_NAME}.before-{len(MIGRATIONS)}").mkdir()
    with pytest.raises(JournalError, match="cannot be opened"):
        SqliteJournal(tmp_path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)


def test_a_newer_schema_is_refused_also_for_looking_and_also_when_damaged(tmp_path: Path) -> None:
    path = make(tmp_path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    for read_only in (False, True):
        with pytest.raises(JournalError, match="newer volcast"):
            SqliteJournal(tmp_path, read_only=read_only)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(JournalError, match="newer volcast"):
        SqliteJournal(tmp_path)
    assert not [p.name for p in tmp_path.iterdir() if "corrupt" in p.name]


def test_a_journal_that_another_process_writes_to_is_refused_in_one_line(tmp_path: Path) -> None:
    path = make(tmp_path)
    SqliteJournal(tmp_path).close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(JournalError, match="another process holds it") as refused:
            SqliteJournal(tmp_path)
    assert "\n" not in str(refused.value)


# --- damage ----------------------------------------------------------------------------------------------------


def check_rebuilt(path: Path, original: dict[str, list[tuple[Any, ...]]]) -> None:
    """Asserts the law of a rebuild: the journal works, holds nothing that it did not hold before, and its candles have
    no hole that the damage made."""
    with contextlib.closing(SqliteJournal(path.parent, clock=CLOCK)) as journal:
        done = journal.processed("B")
        newest = T0 + (HOURS - 1) * HOUR_MS
        if done is not None:
            assert done.open_time <= newest
            times = [c.open_time for c in journal.candles("B", 0, 2**60)]
            declared = {T0 + h * HOUR_MS for h in (60, 61, 62)}
            if times:
                every = set(range(times[0], done.open_time + HOUR_MS, HOUR_MS))
                assert every - set(times) <= declared
        else:
            assert journal.candles("B", 0, 2**60) == []
        (first,) = journal.post([("volcast/v1/x", b"{}", 1)], [])
        assert first > max((o.seq for o in journal.outbox()[:-1]), default=0)
        journal.acknowledge([first])
    found = everything(path)
    for table in ("forecasts", "decisions", "gaps", "outbox", "retained", "candles"):
        assert set(found[table]) <= set(original[table]), table


@pytest.mark.fault(29)
@settings(max_examples=40)
@given(
    kind=st.sampled_from(["truncate", "zero", "noise", "swap", "head"]),
    page=st.integers(0, 150),
    pages=st.integers(1, 20),
    seed=st.integers(0, 2**32),
)
def test_whatever_happens_to_the_file_it_is_rebuilt_and_nothing_is_invented(
    kind: str,
    page: int,
    pages: int,
    seed: int,
    sound: bytes,
    original: dict[str, list[tuple[Any, ...]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / FILE_NAME
    at, length = page * 4_096 % len(sound), pages * 4_096
    noise = random.Random(seed).randbytes(length)
    damaged = {
        "truncate": sound[:at],
        "zero": sound[:at] + bytes(length) + sound[at + length :],
        "noise": sound[:at] + noise + sound[at + length :],
        "swap": sound[:at] + sound[4_096 : 4_096 + length] + sound[at + length :],
        "head": noise[:100] + sound[100:],
    }[kind][: len(sound)]
    path.write_bytes(damaged)
    aside = folder / ASIDE
    if files.damage(path) is not None:
        check_rebuilt(path, original)
        assert aside.read_bytes() == damaged
    assert files.damage(path) is None
    assert not list(folder.glob("*.part*")) + list(folder.glob("*.rebuilt*"))


def test_all_of_a_sound_part_is_carried_over(sound: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(sound)
    original = everything(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        root = dict(db.execute("SELECT name, rootpage FROM sqlite_master").fetchall())
    # Only the candles are lost: everything else stays, and REST has them.
    with path.open("r+b") as file:
        file.seek((root["candles"] - 1) * 4_096)
        file.write(bytes(4_096))
    with caplog.at_level(logging.ERROR), contextlib.closing(SqliteJournal(tmp_path, clock=CLOCK)) as journal:
        assert journal.candles("B", 0, 2**60) == []
        done = journal.processed("B")
        assert done is not None
        assert done.open_time == T0 + (HOURS - 1) * HOUR_MS
    assert len(caplog.messages) == 1
    assert f"kept as {ASIDE}" in caplog.messages[0]
    for table in set(TABLES) - {"candles"}:
        assert rows(path, table) == original[table], table


def test_a_damaged_journal_of_an_older_schema_is_rebuilt_in_the_present_one(tmp_path: Path) -> None:
    path = make(tmp_path, 2)
    os.truncate(path, path.stat().st_size - 4_096)
    with contextlib.closing(SqliteJournal(tmp_path, clock=CLOCK)) as journal:
        assert [o.forecast_id for o in journal.outcomes("B", 0, 2**60)] == ["f"]
        assert len(journal.outbox()) == 20


def test_a_symbol_that_lost_its_place_goes_on_after_its_newest_decision(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(sound)
    with contextlib.closing(sqlite3.connect(path)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'operator_state'").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4_096)
        file.write(bytes(4_096))
    with contextlib.closing(SqliteJournal(tmp_path, clock=CLOCK)) as journal:
        done = journal.processed("B")
        assert done is not None
        assert (done.open_time, done.exposure, done.model_version) == (T0 + (HOURS - 1) * HOUR_MS, 0.25, "")
        assert len(journal.candles("B", 0, 2**60)) == HOURS - 3


def test_a_hole_that_the_damage_made_is_not_taken_for_one_of_the_exchanges(tmp_path: Path) -> None:
    path = make(tmp_path, holes=(60, 61, 62, 200))
    os.truncate(path, path.stat().st_size - 4_096)
    with contextlib.closing(SqliteJournal(tmp_path, clock=CLOCK)) as journal:
        times = [c.open_time for c in journal.candles("B", 0, 2**60)]
    # The rebuilt list of gaps lacks hour 200: the candles before it are fetched from the exchange again.
    assert times == [T0 + h * HOUR_MS for h in range(201, HOURS)]


def test_an_empty_file_is_set_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE_NAME).touch()
    with caplog.at_level(logging.ERROR), contextlib.closing(SqliteJournal(tmp_path, clock=CLOCK)) as journal:
        assert journal.outbox() == []
    assert "the file is empty" in caplog.text
    assert (tmp_path / ASIDE).exists()


def test_a_second_damage_in_the_same_second_does_not_replace_the_first(tmp_path: Path) -> None:
    for content in (b"first" * 999, b"second" * 999, b"third" * 999):
        (tmp_path / FILE_NAME).write_bytes(content)
        SqliteJournal(tmp_path, clock=CLOCK).close()
    kept = sorted(p for p in tmp_path.iterdir() if "corrupt" in p.name)
    assert [p.read_bytes()[:5] for p in kept] == [b"first", b"secon", b"third"]


def test_damage_that_shows_while_running_is_mended_and_the_same_commit_succeeds(sound: bytes, tmp_path: Path) -> None:
    from stream.core.messages.records import Record

    path = tmp_path / FILE_NAME
    path.write_bytes(sound)
    with contextlib.closing(SqliteJournal(tmp_path, clock=CLOCK)) as journal:
        # Written through another descriptor, so that pages in the journal's cache are unaffected.
        journal._db.execute("PRAGMA cache_size = 0")
        with path.open("r+b") as file:
            file.seek(4_096)
            file.write(b"\xff" * (len(sound) - 4_096))
        newest = Candle("B", T0 + HOURS * HOUR_MS, 10, 12, 9, 11, 3)
        record = Record(symbol="B", candles=(newest,), provenance="live", open_time=newest.open_time, exposure=0.5)
        with pytest.raises(JournalError, match="rebuilt meanwhile"):
            journal.commit([record])
        journal.commit([record])
        assert journal.processed("B") is not None
    assert (tmp_path / ASIDE).exists()


def test_looking_never_rebuilds(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(JournalError, match=FILE_NAME):
        SqliteJournal(tmp_path, read_only=True)
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]


def test_what_a_killed_process_left_unmerged_is_carried_over_too(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(sound)
    script = (
        "import os, signal, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('PRAGMA journal_mode = WAL')\n"
        "db.execute(\"INSERT INTO outbox (topic, payload, expiry_s) VALUES ('volcast/v1/late', '{}', 1)\")\n"
        'db.execute("UPDATE outbox SET payload = CAST(payload AS BLOB)")\n'
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert path.with_name(f"{FILE_NAME}-wal").stat().st_size > 0
    with path.open("r+b") as file:
        file.seek(4_096)
        file.write(bytes(4_096))
    with contextlib.closing(SqliteJournal(tmp_path, clock=CLOCK)) as journal:
        assert journal.outbox()[-1].topic == "volcast/v1/late"
    assert (tmp_path / f"{ASIDE}-wal").exists()


@pytest.mark.parametrize("step", range(1, 12))
def test_a_rebuild_that_is_killed_anywhere_is_finished_by_the_next_start(
    step: int, sound: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(sound)
    with path.open("r+b") as file:
        file.seek(4_096)
        file.write(bytes(4_096))
    left = step

    class Killed(BaseException):
        pass

    def stepping(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                raise Killed
            return call(*args, **options)

        return counted

    with monkeypatch.context() as patched:
        # Every change that a rebuild makes to the folder goes through these.
        patched.setattr(Path, "replace", stepping(Path.replace))
        patched.setattr(os, "fsync", stepping(os.fsync))
        with contextlib.suppress(Killed):
            SqliteJournal(tmp_path, clock=CLOCK).close()
    with contextlib.closing(SqliteJournal(tmp_path, clock=CLOCK)) as journal:
        assert journal.processed("B") is not None
        assert len(journal.outbox()) == 20
    assert files.damage(path) is None


# --- backup ----------------------------------------------------------------------------------------------------


def test_a_copy_is_whole_or_not_there(sound: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(sound)
    target = tmp_path / "copy.sqlite"
    with contextlib.closing(files.look(path)) as source:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(OSError):
                files.copy(source, target)
        assert sorted(p.name for p in tmp_path.iterdir()) == [FILE_NAME]
        files.copy(source, target)
    assert everything(target) == everything(path)


def test_a_damaged_journal_is_not_copied(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(sound[: len(sound) // 2])
    target = tmp_path / "copy.sqlite"
    with contextlib.closing(files.look(path)) as source, pytest.raises(sqlite3.Error):
        files.copy(source, target)
    assert not target.exists()
