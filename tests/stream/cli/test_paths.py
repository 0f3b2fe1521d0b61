"""Every path of every command: an output is never a file that is read, nor another output."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from command_line import COMMANDS

from stream.__main__ import cli
from stream.adapters.bundles import packaged_model
from stream.cli import paths

#: Required options other than paths, so that a command gets as far as checking its paths.
VALUES = {"--from": "2024-01-01"}


def parameters(command: click.Command) -> dict[str, click.Parameter]:
    """Returns the parameters that are paths, by the name that users know them by."""
    return {p.opts[-1]: p for p in command.params if isinstance(p.type, click.Path)}


def can_meet(one: click.ParamType, other: click.ParamType) -> bool:
    """Whether a file of one may be one of the other: a candle file is never one that a data directory holds."""
    suffixes = (*getattr(one, "_suffixes", ()), *getattr(other, "_suffixes", ()))
    holds = (*one.holds, *other.holds)
    return not (suffixes and holds) or any(name.endswith(suffixes) for name in holds)


PAIRS = [
    (name, one, other)
    for name, command in COMMANDS.items()
    for one, other in combinations(parameters(command), 2)
    if any(isinstance(parameters(command)[p].type, paths.Output | paths.Folder) for p in (one, other))
    # Two parameters may name one folder: their files in it differ.
    and not all(parameters(command)[p].type.holds for p in (one, other))
    and can_meet(*(parameters(command)[p].type for p in (one, other)))
]


def refused(name: str, given: dict[str, Path]) -> str:
    """Runs the command with these paths; returns the one line with which it refuses them."""
    args: list[str] = [name]
    for parameter in COMMANDS[name].params:
        label = parameter.opts[-1]
        value = given.get(label)
        if value is None and parameter.required:
            value = VALUES[label] if label in VALUES else Path(f"other-{label.strip('-')}.csv")
        if value is not None:
            args += [str(value)] if isinstance(parameter, click.Argument) else [label, str(value)]
    done = CliRunner().invoke(cli, args)
    assert done.exit_code == 1, (done.output, done.exception)
    (line,) = done.stderr.splitlines()
    return line


def test_every_path_of_every_command_is_looked_at():
    found = {
        (name, label)
        for name, command in COMMANDS.items()
        for label, parameter in parameters(command).items()
        if not isinstance(parameter.type, paths.Given) or not isinstance(command, paths.Command)
    }
    assert found == set()


@pytest.mark.parametrize("spelling", ["same", "relative", "symlink", "hard link"])
@pytest.mark.parametrize(("name", "one", "other"), PAIRS)
def test_no_output_is_an_input_or_another_output(name, one, other, spelling, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    of = parameters(COMMANDS[name])
    holds = next((kind.holds for p in (one, other) if (kind := of[p].type).holds), None)
    file = tmp_path / (holds[0].replace("*", "x") if holds else "file.csv")
    file.write_bytes(b"precious")
    again = tmp_path / "again.csv"
    if spelling == "symlink":
        again.symlink_to(file)
    elif spelling == "hard link":
        again.hardlink_to(file)
    else:
        again = file if spelling == "same" else Path("..") / tmp_path.name / file.name
    # A parameter that is a directory is given the directory that holds the file.
    given = {p: file.parent if of[p].type.holds else again if p == one else file for p in (one, other)}
    if of[other].type.holds:
        given[one] = again
    elif of[one].type.holds:
        given[other] = again
    assert "which is the same file; choose another" in refused(name, given)
    assert file.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        (name, one, other)
        for name, one, other in PAIRS
        if all(isinstance(parameters(COMMANDS[name])[p].type, paths.Output) for p in (one, other))
    ],
)
def test_two_outputs_that_are_not_there_yet_are_told_apart_all_the_same(name, one, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "file.csv")
    for first, second in product((Path("file.csv"), tmp_path / "file.csv"), (Path("dangling.csv"), Path("./file.csv"))):
        assert "which is the same file" in refused(name, {one: first, other: second})
    assert [p.name for p in tmp_path.iterdir()] == ["dangling.csv"]


OUTPUTS = [
    (name, label)
    for name, command in COMMANDS.items()
    for label, parameter in parameters(command).items()
    if isinstance(parameter.type, paths.Output | paths.Folder)
]


@pytest.mark.parametrize(("name", "label"), OUTPUTS)
def test_an_output_that_cannot_be_is_refused_before_anything_is_read(name, label, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = isinstance(parameters(COMMANDS[name])[label].type, paths.Folder)
    (tmp_path / "file").touch()
    (tmp_path / "directory.csv").mkdir()
    wrong = {"file/x.csv": "is no directory", "x" * 300 + ".csv": "File name too long"}
    if folder:
        wrong = {"file": "is no directory", "file/x": "is no directory"}
    else:
        wrong |= {
            "directory.csv": "it is a directory; name a file",
            "nowhere/x.csv": "nowhere is no directory; make it first",
        }
    for value, cause in wrong.items():
        line = refused(name, {label: Path(value)})
        assert line.startswith(f"volcast: {label if label != 'file' else 'FILE'} {value}: cannot be written: ")
        assert cause in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["directory.csv", "file"]


@pytest.mark.parametrize(("name", "label"), [("predict", "--out"), ("report", "--out")])
def test_a_place_that_is_closed_is_refused(name, label):
    # Not even root can make a file there.
    closed = Path("/proc/x.csv")
    line = refused(name, {label: closed})
    assert line.startswith(f"volcast: {label} {closed}: cannot be written: ")
    assert line.endswith(": /proc; choose another place")


@pytest.mark.parametrize(
    ("name", "label"),
    [pair for pair in OUTPUTS if getattr(parameters(COMMANDS[pair[0]])[pair[1]].type, "stream", True)],
)
def test_a_device_is_written_to_and_never_replaced(name, label):
    """As root a rename onto /dev/null would break the machine."""
    from stream.cli import outputs

    outputs.write(label, Path("/dev/null"), b"x")
    assert Path("/dev/null").is_char_device()


def test_a_device_where_a_file_is_put_in_place_is_refused():
    assert "it is no regular file" in refused("export", {"--out": Path("/dev/null")})


def test_what_ships_with_volcast_is_an_input_too():
    before = packaged_model().read_bytes()
    assert "would write over a file that ships with Volcast" in refused("backtest", {"--json": packaged_model()})
    assert packaged_model().read_bytes() == before


def test_what_is_written_beside_an_output_counts(tmp_path):
    card = tmp_path / "model.md"
    given = {"--out": tmp_path / "model.onnx", "--evaluation": tmp_path / "e.json", "--json": card}
    assert "would write over --out (model.md)" in refused("export", given)
    given = {"--out": tmp_path / "model.md", "--evaluation": tmp_path / "e.json"}
    assert "which is the same file" in refused("export", given)


@pytest.mark.parametrize("name", ["backup", "drift", "report"])
def test_the_journal_is_spared_where_settings_say_where_it_is(name, tmp_path, monkeypatch):
    """The data directory's default is not on the command line."""
    monkeypatch.chdir(tmp_path)
    data_dir = tmp_path / "var"
    data_dir.mkdir()
    (data_dir / "journal.sqlite").touch()
    label = "FILE" if name == "backup" else "--json"
    label = next(p for p in parameters(COMMANDS[name]) if p in (label, "file"))
    assert "would write over --data-dir" in refused(name, {label: data_dir / "journal.sqlite-wal"} | period(name))


def period(name: str) -> dict[str, Path]:
    return {"--quarterly": Path("2024")} if name == "report" else {}
