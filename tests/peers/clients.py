"""The clients, one function each: from a socket on loopback to whatever the library hands to its user.

Each runs as a process of its own, in its library's own environment: clients.py NAME URL FRAMES SYMBOLS. How a library
is pointed at loopback stands in its function; beyond that it is used as its documentation shows.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from meter import Meter


class Target(NamedTuple):
    """What there is to receive."""

    url: str
    frames: int
    symbols: list[str]

    @property
    def streams(self) -> list[str]:
        return [f"{symbol.lower()}@kline_1h" for symbol in self.symbols]

    @property
    def combined_url(self) -> str:
        return f"{self.url}/stream?streams={'/'.join(self.streams)}"


class Kline(NamedTuple):
    """What somebody would make of a frame by hand."""

    symbol: str
    open_time: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    closed: bool


def volcast(target: Target) -> None:
    """The daemon's feed, and a listener that only counts: reconnects, watching for silence and checks included."""
    asyncio.run(_volcast(target))


async def _volcast(target: Target) -> None:
    import gc
    import random

    from stream.adapters.feed.client import BinanceFeed
    from stream.clock import Clock

    meter = Meter(target.frames, lambda update: update.candle.close)

    class Listener:
        def connected(self) -> None: ...

        def disconnected(self, reason: str) -> None: ...

        def forming(self, update: Any, received_at_s: float) -> None:
            meter(update)

        async def closed(self, update: Any, received_at_s: float) -> None:
            meter(update)

    # As `volcast run` does once everything is loaded.
    gc.collect()
    gc.freeze()
    feed = BinanceFeed(target.url, target.symbols, clock=Clock(), observe=lambda fact: None, rng=random.Random(1))
    await feed.run(Listener())


def volcast_decode(target: Target) -> None:
    """The decoder alone behind a plain websockets client."""
    from stream.core.market import binance

    asyncio.run(_plain(target, binance.decode_frame, lambda update: update.candle.close))


async def _plain(target: Target, decode: Callable[[Any], Any], close_of: Callable[[Any], Any]) -> None:
    from websockets.asyncio.client import connect

    meter = Meter(target.frames, close_of)
    async with connect(target.combined_url, compression=None, proxy=None) as socket:
        while True:
            meter(decode(await socket.recv(decode=False)))


def websockets_json(target: Target) -> None:
    def decode(data: bytes) -> Kline:
        k = json.loads(data)["data"]["k"]
        prices = (float(k[name]) for name in "ohlcv")
        return Kline(k["s"], k["t"], *prices, k["x"])

    asyncio.run(_plain(target, decode, lambda kline: kline.close))


def websockets_msgspec(target: Target) -> None:
    asyncio.run(_plain(target, _msgspec_decoder(), lambda frame: frame.data.k.c))


def _msgspec_decoder() -> Callable[[bytes], Any]:
    import msgspec

    fields = [("t", int), ("s", str), *((name, float) for name in "ohlcv"), ("x", bool)]
    kline = msgspec.defstruct("Kline", fields, gc=False)
    event = msgspec.defstruct("Event", [("E", int), ("k", kline)], gc=False)
    frame = msgspec.defstruct("Frame", [("stream", str), ("data", event)], gc=False)
    return msgspec.json.Decoder(frame, strict=False).decode


def picows_msgspec(target: Target) -> None:
    """A compiled websocket library, and the same decoder."""
    import picows

    meter = Meter(target.frames, lambda frame: frame.data.k.c)
    decode = _msgspec_decoder()

    class Listener(picows.WSListener):
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            meter(decode(frame.get_payload_as_memoryview()))

    async def run() -> None:
        transport, _ = await picows.ws_connect(Listener, target.combined_url)
        await transport.wait_disconnected()

    asyncio.run(run())


def python_binance(target: Target) -> None:
    """`multiplex_socket` at another address; its queue of 100 would overflow in a flood, so it may be longer."""
    from binance import AsyncClient, BinanceSocketManager

    meter = Meter(target.frames, lambda message: message["data"]["k"]["c"])

    async def run() -> None:
        manager = BinanceSocketManager(AsyncClient(), max_queue_size=target.frames)
        manager.STREAM_URL = f"{target.url}/"
        async with manager.multiplex_socket(target.streams) as socket:
            while True:
                meter(await socket.recv())

    asyncio.run(run())


def unicorn_dict(target: Target) -> None:
    _unicorn(target, "dict", "stream", lambda message: message["data"]["k"]["c"])


def unicorn_fy(target: Target) -> None:
    _unicorn(target, "UnicornFy", "kline", lambda message: message["kline"]["close_price"])


def _unicorn(target: Target, output: str, key: str, close_of: Callable[[Any], Any]) -> None:
    """`create_stream` with the manager's own `websocket_base_uri`, and a callback. `key` is what answers lack."""
    import time

    from unicorn_binance_websocket_api import BinanceWebSocketApiManager

    meter = Meter(target.frames, close_of)

    def received(data: Any) -> None:
        if key in data:
            meter(data)

    manager = BinanceWebSocketApiManager(
        exchange="binance.com", output_default=output, warn_on_update=False, websocket_base_uri=f"{target.url}/"
    )
    manager.create_stream(["kline_1h"], [symbol.lower() for symbol in target.symbols], process_stream_data=received)
    while True:
        time.sleep(1)


def ccxt_pro(target: Target) -> None:
    """`watch_ohlcv_for_symbols` with markets and address given, since there is no REST here. What waits is handed out
    together, so frames are counted where the library handles each."""
    import ccxt.pro

    meter = Meter(target.frames, lambda rows: rows[last]["1h"][-1][4])

    class Binance(ccxt.pro.binance):
        def handle_ohlcv(self, client: Any, message: Any) -> None:
            super().handle_ohlcv(client, message)
            meter(self.ohlcvs)

    names = [f"{symbol.removesuffix('USDT')}/USDT" for symbol in target.symbols]
    last = names[-1]

    async def run() -> None:
        exchange = Binance({"enableRateLimit": False})
        exchange.set_markets([_ccxt_market(exchange, name) for name in names])
        exchange.urls["api"]["ws"]["spot"] = f"{target.url}/ws"
        while True:
            await exchange.watch_ohlcv_for_symbols([[name, "1h"] for name in names])

    asyncio.run(run())


def _ccxt_market(exchange: Any, name: str) -> dict[str, Any]:
    base, quote = name.split("/")
    names = {"id": base + quote, "lowercaseId": (base + quote).lower(), "symbol": name, "base": base, "quote": quote}
    return {**exchange.safe_market_structure(), **names, "type": "spot", "spot": True, "active": True}


def cryptofeed(target: Target) -> None:
    """`FeedHandler` with the exchange's symbols given, since there is no REST here, and its endpoint replaced.
    It insists on TLS, which is taken off where it connects."""
    from cryptofeed import FeedHandler, connection
    from cryptofeed.connection import WebsocketEndpoint
    from cryptofeed.defines import BINANCE, CANDLES
    from cryptofeed.exchanges import Binance
    from cryptofeed.symbols import Symbols

    meter = Meter(target.frames, lambda candle: candle.close)

    async def candle(data: Any, receipt_timestamp: float) -> None:
        meter(data)

    names = {f"{symbol.removesuffix('USDT')}-USDT": symbol for symbol in target.symbols}
    Symbols.set(BINANCE, names, {"instrument_type": dict.fromkeys(names, "spot")})
    Binance.websocket_endpoints = [WebsocketEndpoint(target.url.replace("ws:", "wss:", 1))]
    connect = connection.connect
    connection.connect = lambda address, **options: connect(address.replace("wss:", "ws:", 1), **options)
    handler = FeedHandler(config={"log": {"disabled": True}})
    handler.add_feed(
        Binance(
            symbols=list(names),
            channels=[CANDLES],
            candle_interval="1h",
            candle_closed_only=False,
            callbacks={CANDLES: candle},
        )
    )
    handler.run()


def binance_sdk(target: Target) -> None:
    """The exchange's own SDK: `kline` of each symbol with a callback."""
    from binance_common.configuration import ConfigurationWebSocketStreams
    from binance_sdk_spot.spot import Spot

    meter = Meter(target.frames, lambda kline: kline.k.c)

    async def run() -> None:
        spot = Spot(config_ws_streams=ConfigurationWebSocketStreams(stream_url=target.url))
        connection = await spot.websocket_streams.create_connection()
        for symbol in target.symbols:
            stream = await connection.kline(symbol=symbol.lower(), interval="1h")
            stream.on("message", meter)
        await asyncio.sleep(600)

    asyncio.run(run())


def nautilus_raw(target: Target) -> None:
    """The Rust socket alone: bytes, not decoded."""
    _nautilus(target, lambda raw: raw, lambda raw: json.loads(raw)["data"]["k"]["c"])


def nautilus_bar(target: Target) -> None:
    """Its adapter's own steps for a kline. The adapter itself drops forming ones; here they too become bars."""
    import msgspec
    from nautilus_trader.adapters.binance.common.schemas.market import BinanceCandlestickMsg, BinanceDataMsgWrapper
    from nautilus_trader.adapters.binance.spot.enums import BinanceSpotEnumParser
    from nautilus_trader.model.identifiers import InstrumentId

    parser = BinanceSpotEnumParser()
    wrapper_of = msgspec.json.Decoder(BinanceDataMsgWrapper).decode
    message_of = msgspec.json.Decoder(BinanceCandlestickMsg).decode
    ids = {symbol: InstrumentId.from_str(f"{symbol}.BINANCE") for symbol in target.symbols}

    def bar(raw: bytes) -> Any:
        assert "@kline" in wrapper_of(raw).stream
        data = message_of(raw).data
        return data.k.parse_to_binance_bar(instrument_id=ids[data.s], enum_parser=parser, ts_init=0)

    _nautilus(target, bar, lambda bar: bar.close)


def _nautilus(target: Target, decode: Callable[[bytes], Any], close_of: Callable[[Any], Any]) -> None:
    """Its Binance websocket client, with the constructor's own base URL."""
    from nautilus_trader.adapters.binance.websocket.client import BinanceWebSocketClient
    from nautilus_trader.common.component import LiveClock

    meter = Meter(target.frames, close_of)

    def handler(raw: bytes) -> None:
        if b'"stream"' in raw[:12]:
            meter(decode(raw))

    async def run() -> None:
        client = BinanceWebSocketClient(LiveClock(), target.url, handler, None, asyncio.get_running_loop())
        client._streams = target.streams
        await client.connect()
        await asyncio.sleep(600)

    asyncio.run(run())


CLIENTS = {
    "volcast": volcast,
    "volcast-decode": volcast_decode,
    "websockets-json": websockets_json,
    "websockets-msgspec": websockets_msgspec,
    "picows-msgspec": picows_msgspec,
    "python-binance": python_binance,
    "unicorn-dict": unicorn_dict,
    "unicorn-fy": unicorn_fy,
    "ccxt-pro": ccxt_pro,
    "cryptofeed": cryptofeed,
    "binance-sdk": binance_sdk,
    "nautilus-raw": nautilus_raw,
    "nautilus-bar": nautilus_bar,
}


def main() -> None:
    name, url, frames, symbols = sys.argv[1:]
    CLIENTS[name](Target(url, int(frames), symbols.split(",")))


if __name__ == "__main__":
    main()
