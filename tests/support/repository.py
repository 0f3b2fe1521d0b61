"""Where the repository and the real candles lie, for tests of every folder."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: The bundle that is committed and shipped.
SHIPPED_BUNDLE = ROOT / "export" / "models" / "btcusdt-1h.onnx"
#: Where the real candles are, if they are.
REAL_DATA = Path(os.environ.get("VOLCAST_REAL_DATA", ROOT.parent / "shared" / "data"))
