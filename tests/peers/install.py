"""Makes the environments of `make peers`, one for Volcast and one for each line of requirements.txt.

Usage: install.py FOLDER. Needs nothing but the standard library. What cannot be installed is left out with a line that
says so, and is no failure; an environment that is there already stays as it is.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
#: A file in each finished environment: what was installed.
STAMP = "installed"
_CONSTRAINED = ["-c", str(ROOT / "constraints.txt")]


def environments() -> dict[str, list[str]]:
    """Returns what pip is to install, by the environment's name."""
    lines = [line.split() for line in (HERE / "requirements.txt").read_text().splitlines()]
    peers = {words[0].partition("==")[0]: words for words in lines if words and words[0] != "#"}
    return {"volcast": ["-e", str(ROOT)], **peers}


def install(folder: Path, wanted: list[str]) -> str:
    """Makes one environment. Returns what there is to report of it, or nothing."""
    stamp = folder / STAMP
    if stamp.exists() and stamp.read_text() == " ".join(wanted):
        return ""
    venv.create(folder, clear=True, with_pip=True)
    note = ""
    failed = _pip(folder, [*_CONSTRAINED, *wanted])
    if failed:
        note = f"{folder.name}: does not go with constraints.txt, so it has what it asks for itself"
        failed = _pip(folder, wanted)
    if failed:
        return f"{folder.name}: left out, it does not install: {failed}"
    stamp.write_text(" ".join(wanted))
    return note


def _pip(folder: Path, arguments: list[str]) -> str:
    """Returns the error, or nothing. Wheels are preferred; what has none is built."""
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--prefer-binary", *arguments], cwd=ROOT, capture_output=True, text=True)
    if not done.returncode:
        return ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    return errors[0] if errors else f"pip ended with {done.returncode}"


def main() -> None:
    folder = Path(sys.argv[1])
    for name, wanted in environments().items():
        if note := install(folder / name, wanted):
            print(note, flush=True)


if __name__ == "__main__":
    main()
