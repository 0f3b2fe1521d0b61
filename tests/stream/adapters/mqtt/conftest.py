"""The scripted broker on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from scripted_broker import Scripted


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    async with Scripted() as broker, asyncio.timeout(50):
        yield broker
