#!/usr/bin/env python3
"""The programs that tests run and pip does not bring: where they are, and on Debian their installation.

`python3 tests/programs.py` installs what is missing, as root or where sudo asks for no password; elsewhere it says in
one line what is missing, and the tests that need it skip. `python3 tests/programs.py NAME...` asks for these alone and
exits 1 where they stay missing. It runs before anything is installed, so it imports the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

#: A test that needs another program or library adds it here, with its Debian package, and asks for it with `need`.
PACKAGES = {
    "chromium": "chromium",
    "libgomp.so.1": "libgomp1",
    "mosquitto": "mosquitto",
    "mosquitto_passwd": "mosquitto",
    "mosquitto_sub": "mosquitto-clients",
    "openssl": "openssl",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "strace": "strace",
}
#: What the Makefile and CI ask for by name, and no test needs. venv: Debian's Python comes without `ensurepip`.
TOOLS = {"make": "make", "venv": f"python{sys.version_info.major}.{sys.version_info.minor}-venv"}

#: Debian keeps servers in sbin, which not every PATH has.
PATH = os.pathsep.join(
    dict.fromkeys((*os.environ.get("PATH", os.defpath).split(os.pathsep), "/usr/local/sbin", "/usr/sbin", "/sbin"))
)
#: How `need` words a skip, for the count at the end of a test run.
SKIPPED = re.compile(r"([\w.+-]+) is not installed: apt-get install ([\w.+-]+)")

_POLICY = Path("/usr/sbin/policy-rc.d")
_NO_SERVICES = "#!/bin/sh\n# For the time of an installation by tests/programs.py: no service is started.\nexit 101\n"
_APT = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120"]


def find(program: str) -> str | None:
    if ".so." in program:
        with contextlib.suppress(OSError):
            ctypes.CDLL(program)
            return program
        return None
    return shutil.which(program, path=PATH)


def need(program: str) -> str:
    """Where the program is; the test that asks skips where it is not installed."""
    import pytest

    package = PACKAGES[program]
    found = find(program)
    if found is None:
        pytest.skip(f"{program} is not installed: apt-get install {package}")
    return found


def skipped(messages: Iterable[str]) -> str:
    """One line on the tests that skipped for want of a program; empty if none did."""
    missing = [found for message in messages if (found := SKIPPED.search(message))]
    if not missing:
        return ""
    programs, packages = sorted({found[1] for found in missing}), sorted({found[2] for found in missing})
    tests = "1 test" if len(missing) == 1 else f"{len(missing)} tests"
    verb = "is" if len(programs) == 1 else "are"
    return f"{tests} skipped because {', '.join(programs)} {verb} not installed: apt-get install {' '.join(packages)}"


def is_there(name: str) -> bool:
    if name == "venv":
        importlib.invalidate_caches()
        return importlib.util.find_spec("ensurepip") is not None
    return find(name) is not None


def on_debian() -> bool:
    with contextlib.suppress(OSError):
        ids = re.findall(r"^ID(?:_LIKE)?=(.*)$", Path("/etc/os-release").read_text(), re.MULTILINE)
        return "debian" in " ".join(ids) and find("apt-get") is not None
    return False


def sudo_without_password() -> bool:
    sudo = find("sudo")
    if sudo is None:
        return False
    asked = subprocess.run([sudo, "-n", "true"], capture_output=True, stdin=subprocess.DEVNULL, check=False)
    return asked.returncode == 0


@contextlib.contextmanager
def no_services_started() -> Iterator[None]:
    """Packages' own services would take the ports. A policy that the machine has is back afterwards."""
    before = _POLICY.read_bytes() if _POLICY.exists() else None
    if before == _NO_SERVICES.encode():
        before = None  # left by a run that was killed
    mode = _POLICY.stat().st_mode if before is not None else 0o755
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        _POLICY.write_text(_NO_SERVICES)
        _POLICY.chmod(0o755)
        yield
    finally:
        if before is None:
            _POLICY.unlink(missing_ok=True)
        else:
            _POLICY.write_bytes(before)
            _POLICY.chmod(mode)


def apt(program: str, *args: str) -> str:
    """Runs apt-get or apt-cache; the last error that it told where it failed, otherwise nothing."""
    done = subprocess.run(
        [program, "-q", *args],
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", "PATH": PATH},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("E: ")]
    return (errors or [f"{program} exited {done.returncode}"])[-1]


def install(packages: Iterable[str]) -> str:
    """Installs them, as root; why not all of them are there now, otherwise nothing."""
    wanted = sorted(set(packages))
    get = ("apt-get", "install", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120")
    with no_services_started():
        if not apt(*get, *wanted):
            return ""
        # There is no list of packages yet, or it names versions that are gone.
        problem = apt("apt-get", "update") or apt(*get, *wanted)
        # One that this release does not have takes none of the others with it.
        known = [package for package in wanted if not apt("apt-cache", "show", package)] if problem else wanted
        if known and known != wanted:
            apt(*get, *known)
    return problem


def main(*names: str) -> int:
    packages = PACKAGES | TOOLS
    if unknown := set(names) - packages.keys():
        print(f"{' '.join(sorted(unknown))}: not among {' '.join(packages)}", file=sys.stderr)
        return 2
    missing, problem = [name for name in names or PACKAGES if not is_there(name)], ""
    if missing and on_debian():
        if os.geteuid() == 0:
            print(f"Installing {', '.join(missing)} with apt-get ...", flush=True)
            problem = install(packages[name] for name in missing)
        elif sudo_without_password():
            os.execvp("sudo", ["sudo", "-n", "--preserve-env=VOLCAST_FORBID_SKIPS", sys.executable, __file__, *names])
        missing = [name for name in missing if not is_there(name)]
    if not missing:
        return 0
    may_skip = not names and not os.environ.get("VOLCAST_FORBID_SKIPS")
    print(
        f"Not installed: {', '.join(missing)}{f' ({problem})' if problem else ''}. "
        f"{'The tests that need them skip. ' if may_skip else ''}"
        f"On Debian, as root: apt-get install {' '.join(sorted({packages[name] for name in missing}))}",
        file=sys.stderr,
    )
    return 0 if may_skip else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
