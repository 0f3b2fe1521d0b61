"""Data directories on file systems that cannot lock or sync folders, left by another user, or not there yet."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from programs import need

from stream.adapters.data_dir import LOCK_NAME, DataDirLock
from stream.adapters.journal.store import SqliteJournal
from stream.errors import JournalError

#: Addresses where connections are refused at once.
NOBODY = ["--rest-url", "http://127.0.0.1:9", "--ws-url", "ws://127.0.0.1:9", "--mqtt-url", "mqtt://127.0.0.1:9"]
OTHER_USER = 65_534


def volcast(*arguments: object, failing: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command in which the system call of `failing` (call:error) fails with that error."""
    command = [sys.executable, "-m", "stream", *map(str, arguments)]
    if failing is not None:
        strace = need("strace")
        call, _, error = failing.partition(":")
        how = ["-e", f"trace={call}", "-e", f"inject={call}:error={error}"]
        command = [strace, "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", *how, "--", *command]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory with a journal in it."""
    path = tmp_path / "var"
    path.mkdir()
    SqliteJournal(path).close()
    return path


@pytest.mark.fault(56)
@pytest.mark.parametrize("error", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_file_system_without_locks_is_not_called_another_volcast(command: str, error: str, data_dir: Path) -> None:
    (data_dir / LOCK_NAME).touch()
    done = volcast(command, "--data-dir", data_dir, "--http-port", 0, *NOBODY, failing=f"flock:{error}")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("volcast: ")]
    assert "cannot be locked" in line
    assert "another volcast" not in line


@pytest.mark.parametrize("error", ["EINVAL", "EOPNOTSUPP"])
def test_a_backup_where_folders_cannot_be_synced_is_there_and_said_to_be(
    error: str, data_dir: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.sqlite"
    done = volcast("backup", copy, "--data-dir", data_dir, failing=f"fsync:{error}")
    assert done.returncode == 0, done.stderr
    assert f"{copy}: {copy.stat().st_size} bytes" in done.stdout
    with sqlite3.connect(f"{copy.as_uri()}?mode=ro", uri=True) as db:
        assert db.execute("PRAGMA quick_check").fetchone() == ("ok",)


def test_a_backup_that_a_disk_loses_is_said_not_to_be(data_dir: Path, tmp_path: Path) -> None:
    done = volcast("backup", tmp_path / "copy.sqlite", "--data-dir", data_dir, failing="fsync:EIO")
    assert done.returncode == 1
    assert "was not copied" in done.stderr


def test_check_leaves_no_trace(data_dir: Path, tmp_path: Path) -> None:
    def seen(folder: Path) -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in (folder, *folder.rglob("*"))}

    before = seen(data_dir)
    done = volcast("check", "--data-dir", data_dir, "--http-port", 0, *NOBODY)
    assert done.returncode == 0, done.stderr
    assert set(seen(data_dir)) == set(before)
    absent = tmp_path / "not" / "there"
    done = volcast("check", "--data-dir", absent, "--http-port", 0, *NOBODY)
    assert done.returncode == 0, done.stderr
    assert "no journal yet" in done.stdout
    assert not (tmp_path / "not").exists()


def test_check_still_says_who_holds_the_directory_and_where_none_can_be(data_dir: Path, tmp_path: Path) -> None:
    lock = DataDirLock(data_dir)
    try:
        done = volcast("check", "--data-dir", data_dir, "--http-port", 0, *NOBODY)
    finally:
        lock.release()
    assert done.returncode == 1
    assert "in use by another volcast" in done.stderr
    (tmp_path / "file").touch()
    done = volcast("check", "--data-dir", tmp_path / "file" / "below", "--http-port", 0, *NOBODY)
    assert done.returncode == 1
    assert "is not writable" in done.stderr


def as_another_user(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs `code`, as another user where the tests run as root; the change comes after all imports."""
    become = f"import os; os.geteuid() or (os.setgroups([]), os.setgid({OTHER_USER}), os.setuid({OTHER_USER}))\n"
    imports = "import sys; from pathlib import Path; from stream.adapters.data_dir import DataDirLock, try_lock\n"
    command = [sys.executable, "-c", f"{imports}{become}{code}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """A folder in which another user may write too."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    for above in folder.parents:
        if above.stat().st_uid == os.geteuid() and not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o011)
    return folder


@pytest.mark.parametrize("what", ["DataDirLock", "try_lock"])
def test_a_lock_that_another_user_left_does_not_block(what: str, open_folder: Path) -> None:
    (open_folder / LOCK_NAME).touch()
    (open_folder / LOCK_NAME).chmod(0o444)
    done = as_another_user(f"{what}(Path(sys.argv[1]))", open_folder)
    assert done.returncode == 0, done.stderr


def test_and_one_that_is_held_by_another_user_does(open_folder: Path) -> None:
    lock = DataDirLock(open_folder)
    try:
        (open_folder / LOCK_NAME).chmod(0o444)
        done = as_another_user("DataDirLock(Path(sys.argv[1]))", open_folder)
    finally:
        lock.release()
    assert done.returncode == 1
    assert JournalError.__name__ in done.stderr
    assert "in use by another volcast" in done.stderr


def test_a_report_needs_no_locks(candle_file: Path, tmp_path: Path) -> None:
    options = ["--candles", candle_file, "--from", "2024-01-03", "--to", "2024-01-10", "--out", tmp_path / "pages"]
    done = volcast("report", *options, failing="flock:ENOLCK")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "pages").glob("*-index.html"))
