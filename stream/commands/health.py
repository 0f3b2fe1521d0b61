"""`python -m stream.commands.health`: the container's health check, of the node that is its first process.

It exits with 0 where /healthz of that node answers 200: the pipeline moves. It finds where the node listens by the same
flags, variables and file, and connects directly: proxies are for hosts outside.
"""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stream import settings

_TIMEOUT_S = 4.0
_FIRST_PROCESS = Path("/proc/1/cmdline")
#: A node that listens on all addresses is asked at these.
_HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_FLAGS = ("http_host", "http_port")


def main() -> None:
    config, flags = parse_arguments(_FIRST_PROCESS.read_text(errors="replace").split("\0"))
    try:
        found = settings.load(flags, os.environ, config)
    except settings.SettingsError as error:
        sys.exit(str(error))
    host = _HERE.get(found.http_host, found.http_host)
    try:
        status = answer(host, found.http_port)
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"{host}:{found.http_port} does not answer: {error}")
    sys.exit(None if status == http.HTTPStatus.OK else f"{host}:{found.http_port}/healthz says {status}")


def parse_arguments(arguments: Sequence[str]) -> tuple[Path | None, dict[str, Any]]:
    """Returns the settings file and the HTTP flags in a command line, whatever else it holds."""
    values: dict[str, str] = {}
    for k, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            values[name[2:].replace("-", "_")] = value if equals else "".join(arguments[k + 1 : k + 2])
    config = values.get("config")
    return None if config is None else Path(config), {name: values.get(name) for name in _FLAGS}


def answer(host: str, port: int) -> int:
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status
    finally:
        connection.close()


if __name__ == "__main__":
    main()
