"""Environment variables that our libraries read, but that are meant for other programs that use them too.

A worker count, a folder for metrics of many processes or a malformed limit in the environment of a whole machine would
change this node or end it with a traceback. What is meant for Volcast is a setting, or in docs/settings.md.
"""

from __future__ import annotations

import os
import re

_OTHERS = re.compile(r"(PROMETHEUS_MULTIPROC_DIR|prometheus_multiproc_dir|(WEBSOCKETS|LITESTAR|UVICORN)_\w+)")


def forget_others() -> None:
    """Removes them from the environment of this process and its children. Call it before a library is imported."""
    for name in [name for name in os.environ if _OTHERS.fullmatch(name)]:
        del os.environ[name]
