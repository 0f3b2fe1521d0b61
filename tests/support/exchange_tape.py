"""A tape, an exchange that plays it, and clients of its websocket and its REST API."""

import json
from contextlib import asynccontextmanager

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from stream.core.market.binance import (
    KlineUpdate,
    decode_frame,
    stream_url,
)
from stream.core.market.candle import HOUR_MS, Candle
from stream.testing.exchange import Exchange
from stream.testing.market import simulate

FIRST_MS = 1_704_067_200_000  # the tape's first candle


SYMBOLS = ("BTCUSDT", "ETHUSDT")


TAPE = simulate(SYMBOLS, FIRST_MS, 1_200, seed=11)


#: The newest closed candle at connect.
FROM_MS = FIRST_MS + 1_100 * HOUR_MS


def hour(n: int) -> int:
    """Returns the open time of the n-th candle after the newest closed one: 1 is the first to be played."""
    return FROM_MS + n * HOUR_MS


def candle(n: int, symbol: str = "BTCUSDT") -> Candle:
    return TAPE[symbol][1_100 + n]


@asynccontextmanager
async def playing(hours: int = 10, tape=TAPE, speed=None, **options):
    async with Exchange.replaying(tape, FROM_MS, hours, speed, **options) as exchange:
        yield exchange


def ws(exchange: Exchange, path: str | None = None, **options):
    url = stream_url(exchange.ws_url, SYMBOLS[:1]) if path is None else exchange.ws_url + path
    return connect(url, proxy=None, compression=None, **options)


def rest(exchange: Exchange) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=exchange.rest_url, trust_env=False)


async def closes(socket, last: int) -> list[KlineUpdate]:
    """Returns the closing frames up to that of the `last` hour, or until the connection ends."""
    found = []
    try:
        async for message in socket:
            frame = decode_frame(message)
            if isinstance(frame, KlineUpdate) and frame.closed:
                found.append(frame)
                if frame.candle.open_time >= last:
                    break
    except ConnectionClosed:
        pass
    return found


async def closed_hours(socket, last: int) -> list[int]:
    return [(f.candle.open_time - FROM_MS) // HOUR_MS for f in await closes(socket, hour(last))]


async def ask(socket, body: object) -> dict:
    """Returns the reply to a control frame; data frames before it are skipped."""
    await socket.send(body if isinstance(body, (str, bytes)) else json.dumps(body))
    async for message in socket:
        reply = json.loads(message)
        if "id" in reply:
            return reply
    raise AssertionError("the connection ended without a reply")


async def klines(http: httpx.AsyncClient, **params: object) -> list[list]:
    answer = await http.get("/api/v3/klines", params={"symbol": "BTCUSDT", "interval": "1h", **params})
    assert answer.status_code == 200
    return answer.json()
