"""What many symbols that close together cost, outcomes maturing: operator, model, journal, publisher and MQTT.

`make bench` takes 300 symbols. All of a large exchange, which takes some three minutes:
VOLCAST_CLOSE_SYMBOLS=3000 python -m pytest tests/benchmarks/test_close_together.py -m bench -s
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from measured import Measured
from repository import ROOT

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

SYMBOLS = int(os.environ.get("VOLCAST_CLOSE_SYMBOLS", "300"))
#: Outcomes mature from the 25th hour on.
HOURS, MATURING = 30, 25
#: Of a symbol, from the last closing frame to the last acknowledged decision: 3 s for 3,000 symbols.
DECIDED_LIMIT_MS = 1.0
LAG_P99_LIMIT_MS = 50.0
#: 600 MB for 3,000 symbols: what the process takes with few of them, and so much for each.
FEW_SYMBOLS_MB, SYMBOL_MB = 125.0, 0.158


def test_all_decisions_of_symbols_that_close_together(broker: str, tmp_path: Path) -> None:
    program = ROOT / "tests" / "support" / "close_together.py"
    command = [sys.executable, str(program), str(SYMBOLS), str(HOURS), broker, str(tmp_path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    hours = [json.loads(line) for line in done.stdout.splitlines()]

    def median(name: str) -> float:
        return statistics.median(hour[name] for hour in hours[MATURING:])

    decided_ms, decided_cpu_ms = 1e3 * median("decided_s") / SYMBOLS, 1e3 * median("decided_cpu_s") / SYMBOLS
    all_cpu_ms = 1e3 * median("all_cpu_s") / SYMBOLS
    lag_ms = 1e3 * median("lag_p99_s")
    resident_limit_mb = FEW_SYMBOLS_MB + SYMBOL_MB * SYMBOLS
    measured = Measured()
    print(f"{SYMBOLS} symbols close together, {hours[-1]['messages']} messages; of each symbol:")
    measured.show("last closing frame to last acknowledged decision", decided_ms, "ms", DECIDED_LIMIT_MS)
    measured.show("  CPU of that", decided_cpu_ms, "ms", DECIDED_LIMIT_MS)
    measured.show("  CPU of the whole hour, scores and retained messages included", all_cpu_ms, "ms")
    measured.show("memory of the process", hours[-1]["resident_mb"], "MB", resident_limit_mb)
    measured.show("loop lag meanwhile, p99", lag_ms, "ms", LAG_P99_LIMIT_MS)
    measured.check()
