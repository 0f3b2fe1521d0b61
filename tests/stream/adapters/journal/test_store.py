"""The journal: one transaction per candle, an outbox that drops only what was acknowledged, clear refusals."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from stream.adapters.data_dir import LOCK_NAME, DataDirLock
from stream.adapters.journal.access import stranger
from stream.adapters.journal.database import FILE_NAME
from stream.adapters.journal.schema import MIGRATIONS
from stream.adapters.journal.store import SqliteJournal
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.messages.records import EventMessage, Record, Retained
from stream.errors import JournalError

T0 = 1_704_067_200_000


def candle(hour: int, symbol: str = "BTCUSDT") -> Candle:
    return Candle(symbol, T0 + hour * HOUR_MS, 1.0, 2.0, 0.5, 1.5, 3.0)


def record(hour: int, symbol: str = "BTCUSDT") -> Record:
    return Record(
        symbol=symbol,
        candles=(candle(hour, symbol),),
        provenance="live",
        events=(EventMessage(f"t/{symbol}/{hour}/a", b"a", 60), EventMessage(f"t/{symbol}/{hour}/b", b"b", 60)),
        retained=(Retained(f"r/{symbol}", f"{hour}".encode(), 60, T0),),
        open_time=T0 + hour * HOUR_MS,
        anchor=7,
        exposure=0.5,
        model_version="m",
        policy_version="p",
    )


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    with contextlib.closing(SqliteJournal(tmp_path)) as opened:
        yield opened


def test_a_commit_is_there_after_opening_again(journal: SqliteJournal, tmp_path: Path) -> None:
    seqs = journal.commit([record(0), record(0, "ETHUSDT"), record(1)])
    journal.close()
    with contextlib.closing(SqliteJournal(tmp_path)) as again:
        assert again.candles("BTCUSDT", T0, T0 + HOUR_MS) == [candle(0), candle(1)]
        done = again.processed("BTCUSDT")
        assert done is not None
        assert (done.open_time, done.anchor, done.exposure) == (T0 + HOUR_MS, 7, 0.5)
        assert [o.seq for o in again.outbox()] == seqs
        assert [o.topic for o in again.outbox()] == [
            "t/BTCUSDT/0/a",
            "t/BTCUSDT/0/b",
            "t/ETHUSDT/0/a",
            "t/ETHUSDT/0/b",
            "t/BTCUSDT/1/a",
            "t/BTCUSDT/1/b",
        ]
        assert again.retained() == [
            Retained("r/BTCUSDT", b"1", 60, T0),
            Retained("r/ETHUSDT", b"0", 60, T0),
        ]


def test_a_commit_that_fails_leaves_nothing(journal: SqliteJournal) -> None:
    journal.commit([record(0)])
    broken = msgspec.structs.replace(record(2), retained=(("r", b"x", 60, object()),))
    with pytest.raises(JournalError):
        journal.commit([record(1), broken])
    assert journal.candles("BTCUSDT", 0, 2**60) == [candle(0)]
    assert len(journal.outbox()) == 2
    journal.commit([record(1)])


def test_a_commit_whose_fate_was_unknown_can_be_made_again(journal: SqliteJournal) -> None:
    journal.commit([record(0)])
    journal.commit([record(0)])
    assert journal.candles("BTCUSDT", 0, 2**60) == [candle(0)]


def test_what_cannot_be_read_is_told_as_such(journal: SqliteJournal, tmp_path: Path) -> None:
    journal.commit([record(h) for h in range(200)])
    journal.close()
    damaged = SqliteJournal(tmp_path)
    damaged.close()
    with pytest.raises(JournalError, match="cannot be read"):
        damaged.outbox()


def test_the_outbox_forgets_what_was_acknowledged_and_never_uses_a_number_twice(journal: SqliteJournal) -> None:
    first = journal.commit([record(0)])
    journal.acknowledge(first)
    assert journal.outbox() == []
    assert min(journal.commit([record(1)])) > max(first)


def test_history_does_not_replace_what_was_used(journal: SqliteJournal) -> None:
    journal.commit([record(5)])
    journal.store_history([Candle("BTCUSDT", T0 + 5 * HOUR_MS, 9.0, 9.0, 9.0, 9.0, 9.0), candle(4)])
    assert journal.candles("BTCUSDT", T0, T0 + 9 * HOUR_MS) == [candle(4), candle(5)]
    assert journal.last_open_time("BTCUSDT") == T0 + 5 * HOUR_MS
    assert journal.last_open_time("XRPUSDT") is None


def test_a_newer_schema_is_refused_by_name(journal: SqliteJournal, tmp_path: Path) -> None:
    journal.close()
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(JournalError, match="newer volcast"):
        SqliteJournal(tmp_path)


def test_a_data_directory_belongs_to_one_daemon(tmp_path: Path) -> None:
    lock = DataDirLock(tmp_path / "var")
    with pytest.raises(JournalError, match="in use by another volcast"):
        DataDirLock(tmp_path / "var")
    lock.release()
    DataDirLock(tmp_path / "var").release()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="not writable"):
        DataDirLock(tmp_path / "file")


def test_looking_needs_a_journal_and_writes_nothing(journal: SqliteJournal, tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="no journal"):
        SqliteJournal(tmp_path / "elsewhere", read_only=True)
    with contextlib.closing(SqliteJournal(tmp_path, read_only=True)) as looking, pytest.raises(JournalError):
        looking.commit([record(0)])


# --- a file that cannot be written -----------------------------------------------------------------------------


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder of the user, where permissions count: root, for whom they do not, becomes the user nobody."""
    with tempfile.TemporaryDirectory() as folder:
        if os.geteuid() != 0:
            yield Path(folder)
            return
        os.chown(folder, 65_534, 65_534)
        os.seteuid(65_534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)


@pytest.mark.fault(50)
@pytest.mark.parametrize("asked", [True, False], ids=["while-idle", "with-the-next-commit"])
def test_a_journal_that_was_read_only_at_the_start_is_read_and_heals_by_itself(nobody: Path, asked: bool) -> None:
    with contextlib.closing(SqliteJournal(nobody)) as journal:
        journal.commit([record(0)])
    file = nobody / FILE_NAME
    file.chmod(0o444)
    with contextlib.closing(SqliteJournal(nobody)) as journal:
        newest = journal.last_open_time("BTCUSDT")
        assert newest is not None
        assert journal.stuck is not None
        with pytest.raises(JournalError, match="cannot be written"):
            journal.commit([record(1)])
        file.chmod(0o644)
        if asked:
            journal.try_again()
            assert journal.stuck is None
        journal.commit([record(1)])
        assert journal.stuck is None
        assert journal.last_open_time("BTCUSDT") == newest + HOUR_MS


@pytest.mark.fault(50)
def test_a_journal_of_another_user_is_refused_in_one_line(nobody: Path) -> None:
    if os.getuid() != 0:
        # Only root can change the owner of a file.
        assert stranger(Path("/etc/passwd")) == "/etc belongs to the user root"
        return
    SqliteJournal(nobody).close()
    os.seteuid(0)
    os.chown(nobody / FILE_NAME, 0, 0)
    os.seteuid(65_534)
    with pytest.raises(JournalError, match=r"cannot be written: .*sqlite belongs to the user root: .*--data-dir"):
        SqliteJournal(nobody)


def test_a_journal_that_was_taken_away_is_not_replaced_by_an_empty_one(nobody: Path) -> None:
    SqliteJournal(nobody).close()
    (nobody / FILE_NAME).chmod(0o444)
    with contextlib.closing(SqliteJournal(nobody)) as journal:
        (nobody / FILE_NAME).unlink()
        with pytest.raises(JournalError, match="cannot be written"):
            journal.commit([record(1)])
        assert not (nobody / FILE_NAME).exists()


def test_a_lock_that_may_not_be_written_still_locks(nobody: Path) -> None:
    DataDirLock(nobody).release()
    (nobody / LOCK_NAME).chmod(0o444)
    lock = DataDirLock(nobody)
    with pytest.raises(JournalError, match="in use by another volcast"):
        DataDirLock(nobody)
    lock.release()
