"""A machine without Mosquitto, Prometheus and the like: what the installer says there, and which tests skip."""

from __future__ import annotations

import os
import subprocess
import sys

import programs
import pytest
from repository import ROOT


def without_programs(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs it where neither programs nor apt-get are found."""
    kept = {k: v for k, v in os.environ.items() if k not in ("VOLCAST_FORBID_SKIPS", "PYTEST_ADDOPTS")}
    environment = {**kept, "PATH": "/nowhere", **environment}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("names", "environment", "code"),
    [((), {}, 0), ((), {"VOLCAST_FORBID_SKIPS": "1"}, 1), (("chromium",), {}, 1)],
    ids=["may-skip", "skipping-forbidden", "asked-for"],
)
def test_what_cannot_be_installed_is_one_line(names: tuple[str, ...], environment: dict[str, str], code: int) -> None:
    done = without_programs("tests/programs.py", *names, **environment)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert "chromium" in line
    assert "apt-get install chromium" in line
    assert ("the tests that need them skip" in line.lower()) == (code == 0)


def test_exactly_the_tests_that_need_a_program_skip_and_are_counted() -> None:
    suite = ("-m", "pytest", "-q", "-p", "no:xdist", "tests/monitor/test_prometheus_rules.py")
    done = without_programs(*suite)
    assert done.returncode == 0, done.stdout
    assert "3 tests skipped because promtool is not installed: apt-get install prometheus\n" in done.stdout
    assert "3 skipped" in done.stdout
    forbidden = without_programs(*suite, VOLCAST_FORBID_SKIPS="1")
    assert forbidden.returncode == 1
    assert "3 failed" in forbidden.stdout


def test_the_count_names_each_program_and_package_once() -> None:
    # As pytest tells it: file, line, reason.
    messages = [
        str(("test_x.py", 7, f"Skipped: {program} is not installed: apt-get install {package}"))
        for program, package in programs.PACKAGES.items()
    ]
    line = programs.skipped(["no real candles", *messages, *messages])
    assert line.startswith(f"{2 * len(messages)} tests skipped because chromium, ")
    assert line.endswith(f": apt-get install {' '.join(sorted(set(programs.PACKAGES.values())))}")
    assert programs.skipped(["no real candles"]) == ""
