"""What an undisturbed fetch makes, to hold others against."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fetch_stand import stand


@pytest.fixture(scope="module")
def easy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that a fetch without any trouble writes."""
    out = tmp_path_factory.mktemp("easy") / "a.parquet"

    async def run() -> None:
        async with stand() as here:
            await here.fetch(out, "BTCUSDT,ETHUSDT")

    asyncio.run(run())
    return out
