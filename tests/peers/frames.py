"""The frames that all clients receive: made once by the shipped simulated market, in the exchange's combined layout."""

from __future__ import annotations

from collections.abc import Iterator

from stream.core.market.candle import HOUR_MS
from stream.testing import tape, wire
from stream.testing.market import simulate

#: 2024-01-01 00:00 UTC.
START_MS = 1_704_067_200_000
HOURS = 2
SEED = 7
BASES = """
    BTC ETH BNB XRP ADA SOL DOGE TRX DOT LTC LINK AVAX UNI ATOM XLM ETC FIL NEAR APT ARB OP INJ SUI SEI TIA RUNE AAVE
    MKR GRT ALGO VET EGLD SAND MANA AXS THETA FTM HBAR ICP QNT CRV SNX LDO IMX STX KAVA ROSE ZIL ENJ CHZ
"""
SYMBOLS = [f"{base}USDT" for base in BASES.split()]


def made(frames: int) -> Iterator[bytes]:
    """Yields about `frames` frames: all symbols in turn, each hour from its first update to the closing one."""
    candles = simulate(SYMBOLS, START_MS, HOURS, SEED)
    updates = frames // len(SYMBOLS) // HOURS
    for hour in range(HOURS):
        for update in range(1, updates + 1):
            for symbol in SYMBOLS:
                candle = candles[symbol][hour]
                closed = update == updates
                event_ms = candle.open_time + HOUR_MS * update // updates
                now = candle if closed else tape.forming(candle, update / updates)
                yield wire.combined(wire.stream_name(symbol), wire.kline_payload(now, event_ms, closed))
