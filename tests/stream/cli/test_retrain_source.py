"""A retraining's candles: the exchange's, the journal's where the node has them, and none of them fetched twice."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from fetch_stand import LISTED, NOW, TAPE, closed, ms, stand

from stream.adapters.candles import files
from stream.adapters.candles.files import CandleTable
from stream.adapters.journal.store import SqliteJournal
from stream.cli import retrain_source
from stream.core.market.candle import HOUR_MS, Candle
from stream.errors import VolcastError

FROM, MIDNIGHT = ms(2024, 11, 1), ms(2025, 2, 5)
NOWHERE = "http://127.0.0.1:9"


def times(table: CandleTable, symbol: str) -> list[int]:
    return [c.open_time for c in table[symbol]]


async def of_node(
    data_dir: Path,
    url: str,
    *,
    symbols: tuple[str, ...] = ("BTCUSDT",),
    others: tuple[str, ...] = (),
    to_ms: int = MIDNIGHT,
) -> CandleTable:
    def read() -> CandleTable:
        return retrain_source.of_node(data_dir, symbols, others, FROM, to_ms, url, url)

    return await asyncio.to_thread(read)


async def journal(data_dir: Path, candles: list[Candle]) -> None:
    def write() -> None:
        data_dir.mkdir(exist_ok=True)
        with contextlib.closing(SqliteJournal(data_dir)) as opened:
            opened.store_history(candles)

    await asyncio.to_thread(write)


async def test_what_the_exchange_has_is_fetched_once(tmp_path: Path) -> None:
    async with stand() as here:
        url = here.exchange.rest_url
        table = await of_node(tmp_path, url, others=("ETHUSDT",), to_ms=ms(2025, 2, 1))
        assert times(table, "BTCUSDT") == [c.open_time for c in closed(to_ms=ms(2025, 2, 1))]
        assert set(table.symbols) == {"BTCUSDT", "ETHUSDT"}
        before = len(here.asked())
        table = await of_node(tmp_path, url, others=("ETHUSDT",))
        assert times(table, "BTCUSDT") == [c.open_time for c in closed(to_ms=MIDNIGHT)]
        assert times(table, "ETHUSDT") == [c.open_time for c in closed("ETHUSDT", to_ms=MIDNIGHT)]
        assert not any("monthly" in path for path in here.asked(before))
        before = len(here.asked())
        assert times(await of_node(tmp_path, url), "BTCUSDT") == times(table, "BTCUSDT")
        assert not [path for path in here.asked(before) if path.endswith(".zip")]


async def test_the_hours_that_the_node_has_are_its_journals(tmp_path: Path) -> None:
    async with stand() as here:
        await of_node(tmp_path, here.exchange.rest_url, to_ms=ms(2025, 1, 20))
    # The exchange is gone, and the node has gone on: with a candle of its own that differs.
    own = [c for c in TAPE["BTCUSDT"] if ms(2025, 1, 15) <= c.open_time < MIDNIGHT + HOUR_MS]
    await journal(tmp_path, [Candle(c.symbol, c.open_time, *c.ohlcv[:4], volume=7.0) for c in own])
    table = await of_node(tmp_path, NOWHERE)
    assert times(table, "BTCUSDT") == [c.open_time for c in TAPE["BTCUSDT"] if c.open_time < MIDNIGHT]
    assert {c.volume for c in table["BTCUSDT"] if c.open_time >= ms(2025, 1, 15)} == {7.0}
    assert table["BTCUSDT"][0].open_time == LISTED


async def test_a_long_hole_between_file_and_journal_is_fetched(tmp_path: Path) -> None:
    async with stand() as here:
        await of_node(tmp_path, here.exchange.rest_url, to_ms=ms(2024, 12, 1))
        await journal(tmp_path, [c for c in TAPE["BTCUSDT"] if ms(2025, 1, 15) <= c.open_time < MIDNIGHT])
        table = await of_node(tmp_path, here.exchange.rest_url)
        assert times(table, "BTCUSDT") == [c.open_time for c in closed(to_ms=MIDNIGHT)]


async def test_a_pair_that_is_only_learnt_from_may_be_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with stand() as here:
        table = await of_node(tmp_path, here.exchange.rest_url, others=("XRPUSDT",))
        assert table.symbols == ("BTCUSDT",)
        assert "XRPUSDT is not learnt from" in capsys.readouterr().err
        with pytest.raises(VolcastError, match="XRPUSDT"):
            await of_node(tmp_path, here.exchange.rest_url, symbols=("BTCUSDT", "XRPUSDT"))


async def test_a_followed_symbol_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    async with stand() as here:
        # Nobody listens there any more once it is closed.
        gone = here.exchange.rest_url
    with pytest.raises(VolcastError) as raised:
        await of_node(tmp_path, gone)
    assert "\n" not in str(raised.value)


def test_a_second_file_adds_pairs_and_replaces_none(tmp_path: Path) -> None:
    one, two = tmp_path / "one.parquet", tmp_path / "two.csv"
    files.write(TAPE["BTCUSDT"][:100], one)
    files.write([*TAPE["ETHUSDT"][:50], *TAPE["BTCUSDT"][:10]], two)
    table = retrain_source.of_files(one, two, "BTCUSDT", NOW)
    assert table.symbols == ("BTCUSDT", "ETHUSDT")
    assert len(table["BTCUSDT"]) == 100
    assert len(table["ETHUSDT"]) == 50
