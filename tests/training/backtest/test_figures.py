"""Figures of a backtest that do not exist: null and –, whatever the prices did; and no profit across missing hours."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.table import Table

from stream.__main__ import cli
from stream.adapters import policies
from stream.adapters.candles import files
from stream.cli.tables import parts
from stream.core.deciding.policy import Policy, Thresholds
from stream.core.deciding.replay import to_grid
from stream.core.forecasting.contract import Regimes
from stream.core.market.candle import HOUR_MS, Candle
from stream.testing.market import simulate_symbol
from stream.testing.sample_model import sample_model, sample_predict
from training.backtest import figures, measures, report, runner
from training.backtest.benchmarks import BUY_AND_HOLD
from training.backtest.decisions import of_bundle, of_forecaster
from training.backtest.execution import Book, Costs, execute, realized_volatility
from training.data.dataset import DatasetError, of_grid
from training.data.holes import holes, jump_notes
from training.forecasters import named
from training.pages.numbers import NONE

START = 1_704_067_200_000
HOURS = 900
SINCE = START + 48 * HOUR_MS
NAN = float("nan")


class Bundle:
    """The sample model behind a bundle's interface."""

    model = sample_model()

    def __call__(self, sequence: np.ndarray, static: np.ndarray) -> np.ndarray:
        return sample_predict(sequence, static)


def candles_of(closes: np.ndarray, symbol: str = "XUSDT", volume: float = 10.0) -> tuple[Candle, ...]:
    """Each opens at the close before it; NaN where an hour has no candle."""
    made, last = [], math.nan
    for hour, close in enumerate(closes.tolist()):
        if close == close:
            first = last if last == last else close
            made.append(
                Candle(symbol, START + hour * HOUR_MS, first, max(first, close), min(first, close), close, volume)
            )
        last = close
    return tuple(made)


def run(candles: tuple[Candle, ...], *chosen: Policy) -> runner.Tested:
    data = of_grid(candles[0].symbol, *to_grid(candles))
    term = of_bundle(data, Bundle(), SINCE, START + len(data.open_time) * HOUR_MS)
    return runner.run(data, candles, [term], chosen or [Policy()], [policies.load("reference-daily")])


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from numbers(each, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for k, each in enumerate(value):
            yield from numbers(each, f"{path}/{k}")
    elif isinstance(value, float):
        yield path, value


FLAT, QUIET, WILD, CRASH, ROCKET, HOLE = "flat", "quiet", "wild", "crash", "rocket", "hole"


def priced(stretches: list[tuple[str, int]]) -> np.ndarray:
    """Closes of `HOURS` hours: each stretch is of one kind and so many hours, the last goes on to the end."""
    chance = np.random.default_rng(3)
    kinds = [kind for kind, hours in stretches for _ in range(hours)][:HOURS]
    kinds += [stretches[-1][0] if stretches[-1][0] != HOLE else QUIET] * (HOURS - len(kinds))
    scale = {FLAT: 0.0, QUIET: 1e-4, WILD: 0.08, CRASH: 0.0, ROCKET: 0.0, HOLE: 0.0}
    drift = {CRASH: -3.0, ROCKET: 3.0}
    log_price = np.cumsum([scale[k] * chance.standard_normal() + drift.get(k, 0.0) for k in kinds])
    return np.where(np.array(kinds) == HOLE, np.nan, np.exp(np.clip(log_price, -40, 40)))


stretches = st.lists(
    st.tuples(st.sampled_from([FLAT, QUIET, WILD, HOLE]), st.integers(1, 300))
    | st.tuples(st.sampled_from([CRASH, ROCKET]), st.integers(1, 4)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=8)
@given(stretches, st.floats(0, 50))
@example([(FLAT, HOURS)], 10.0)
@example([(WILD, HOURS)], 10.0)
@example([(WILD, 100), (HOLE, 20), (ROCKET, 4), (HOLE, 1), (CRASH, 4), (FLAT, 300), (HOLE, 30), (WILD, 100)], 10.0)
def test_every_figure_of_any_prices_is_a_number_or_null(of: list[tuple[str, int]], fee_bp: float) -> None:
    candles = candles_of(priced(of))
    if not candles:
        return
    try:
        made = run(candles)
    except ValueError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert "a backtest needs 720" in refused
        return
    plain = msgspec.to_builtins(made.backtest)
    json.dumps(plain, allow_nan=False)
    assert all(math.isfinite(value) for _, value in numbers(plain))
    page = report.page(made)
    assert not re.search(r"\b(nan|inf|None)\b", re.sub(r'src="[^"]*"', "", page))
    for table in report.tables(made.backtest):
        assert all(cell and "nan" not in str(cell) for column in table.columns[1:] for cell in column.cells)
    assert figures.overview(made).startswith(b"<?xml")


def test_an_account_that_never_trades_has_no_ratios_and_no_loss() -> None:
    never = Policy("never", thresholds=Thresholds("hourly", 1e-9, 2e-9, 0.0, 0.0, 0.0))
    made = run(candles_of(priced([(WILD, HOURS)])), never)
    own = made.backtest.line("never")
    assert (own.impact.sharpe, own.impact.sortino, own.impact.calmar) == (None, None, None)
    assert (own.impact.volatility_annualized, own.impact.turnover, own.impact.drawdown) == (0.0, 0.0, 0.0)
    assert own.intervals["drawdown_over_constant"] is None
    assert own.intervals["volatility_annualized"] == (0.0, 0.0)
    assert NONE in made.backtest.findings[1]
    (used,) = made.backtest.regimes_used
    assert (used.source, used.medium_from_hourly, used.high_from_hourly) == ("policy", 1e-9, 2e-9)
    assert f"<td>{NONE}</td>" in report.page(made)


def test_too_few_days_have_no_interval() -> None:
    hours = 30 * 24
    closes = np.where(np.arange(hours) < 200, 100.0 + np.arange(hours) % 7, np.nan)
    time = START + HOUR_MS * np.arange(hours, dtype=np.int64)
    of = execute(time, closes, closes, np.ones(hours))
    assert set(measures.intervals(of, of, 0.4, seed=7).values()) == {None}
    assert measures.impact(of, np.ones(hours), of, 0.4, 1.0).tracking_rmse is not None


def book(opens: list[float], closes: list[float], exposure: list[float], **costs: float) -> Book:
    time = START + HOUR_MS * np.arange(len(opens), dtype=np.int64)
    return execute(time, np.array(opens), np.array(closes), np.array(exposure), Costs(**costs))


def test_what_is_held_across_missing_hours_is_worth_after_them_what_it_was_worth_before() -> None:
    # 0.5 is held at 100 and 110: worth 0.55 of 1.05. After the hole the unit is another one; 10 % more within the hour.
    of = book([100, 100, NAN, NAN, 5, 5.5], [100, 110, NAN, NAN, 5.5, 5.5], [0.5] * 6, fee_bp=0, drift_band=1)
    assert of.equity.tolist() == pytest.approx([1, 1.05, 1.05, 1.05, 1.105, 1.105])
    np.testing.assert_allclose(of.weight, [0, 0.55 / 1.05, NAN, NAN, 0.605 / 1.105, 0.605 / 1.105])
    np.testing.assert_allclose(of.returns, [0, 0.05, NAN, NAN, 1.105 / 1.05 - 1, 0])


def test_two_holes_in_a_row_and_a_sale_at_the_first_price_after_one() -> None:
    opens = [100, 100, NAN, 7, NAN, NAN, 900]
    of = book(opens, opens, [1.0, 1.0, NAN, 0.0, NAN, NAN, NAN], fee_bp=0, drift_band=1)
    # Decided in hour 3 and still valid in none of 4 to 6: nothing is sold, and nothing was won.
    assert of.equity.tolist() == [1] * 7
    assert of.weight[-1] == 1.0
    sold = book([100, 100, NAN, 7], [100, 100, NAN, 7], [1.0, 0.0, NAN, NAN], fee_bp=0)
    assert sold.equity.tolist() == [1] * 4
    assert sold.weight[-1] == 0.0


def test_the_volatility_of_seven_days_is_of_the_returns_that_exist() -> None:
    r = np.random.default_rng(4).standard_normal(400) * 0.01
    r[200:260] = NAN
    found = realized_volatility(r)
    assert np.isnan(found[200:260]).all()
    known = r[300 - 167 : 301]
    assert found[300] == pytest.approx(known[np.isfinite(known)].std(ddof=1) * math.sqrt(8_760))
    r[150:260] = NAN
    # Under half of the 168 are known.
    assert np.isnan(realized_volatility(r)[260])


@pytest.mark.parametrize("factor", [100.0, 0.001])
def test_a_swap_of_tokens_in_a_halt_changes_no_book(factor: float) -> None:
    market = simulate_symbol("XUSDT", START, HOURS, 7)
    halted = [c for i, c in enumerate(market) if not 500 <= i < 530]
    swapped = [
        c if c.open_time < START + 500 * HOUR_MS else msgspec.structs.replace(
            c, open=c.open * factor, high=c.high * factor, low=c.low * factor, close=c.close * factor
        )
        for c in halted
    ]  # fmt: skip
    plain, other = (run(tuple(c)) for c in (halted, swapped))
    for name, own in plain.books.items():
        np.testing.assert_allclose(other.books[name].equity, own.equity, rtol=1e-6)
    assert plain.backtest.notes[-1:] != other.backtest.notes[-1:]
    (hole,) = other.backtest.holes
    assert (hole.hours, hole.jump) == (30, True)
    assert hole.factor == pytest.approx(factor, rel=0.5)
    assert other.backtest.notes[-1] == jump_notes([hole])[0]
    (quiet,) = plain.backtest.holes
    assert (quiet.hours, quiet.jump) == (30, False)
    assert other.backtest.line(BUY_AND_HOLD).impact.cagr == pytest.approx(
        plain.backtest.line(BUY_AND_HOLD).impact.cagr, rel=1e-6
    )


def test_holes_at_the_ends_are_none_and_jumps_are_beyond_what_the_pair_does() -> None:
    time = START + HOUR_MS * np.arange(400, dtype=np.int64)
    closes = 100 * np.exp(np.cumsum(0.01 * np.random.default_rng(5).standard_normal(400)))
    opens = np.concatenate([[100.0], closes[:-1]])
    opens[[0, 1, 200, 201, 399]] = closes[[0, 1, 200, 201, 399]] = NAN
    (hole,) = holes(time, opens, closes)
    assert (hole.from_, hole.to, hole.hours) == ("2024-01-09T08:00Z", "2024-01-09T09:00Z", 2)
    assert not hole.jump
    assert jump_notes([hole]) == []
    opens[202:] *= 1.2
    closes[202:] *= 1.2
    (jumped,) = holes(time, opens, closes)
    assert jumped.jump
    assert holes(time, np.full(400, NAN), np.full(400, NAN)) == []


@pytest.fixture
def calm_file(tmp_path: Path) -> Path:
    """7,000 hours of a pair that moves by a tick, under another name than the bundle's."""
    steps = np.random.default_rng(1).integers(-1, 2, 7_000)
    rows = [
        {"symbol": c.symbol, "open_time": c.open_time, **dict(zip(files.OHLCV, c.ohlcv, strict=True))}
        for c in candles_of(1 + 1e-4 * steps, "USDXUSDT")
    ]
    path = tmp_path / "calm.csv"
    pl.DataFrame(rows).write_csv(path)
    return path


def test_the_thresholds_shown_are_those_used_and_calm_is_low(calm_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    done = CliRunner().invoke(
        cli,
        ["backtest", "--candles", str(calm_file), "--symbol", "USDXUSDT", "--from", "2024-08-25",
         "--to", "2024-10-15", "--json", str(out)],
        env={"COLUMNS": "80"},
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    sources = [one["source"] for one in found["regimes_used"]]
    assert sources[0] == "uncalibrated"
    assert set(sources[1:]) == {"own"}
    last = found["regimes_used"][-1]
    assert last["symbol"] == "USDXUSDT"
    assert found["regime_thresholds"]["high"]["hourly"] == last["high_from_hourly"] < 1e-3
    own = found["lines"][0]["regimes"]
    assert own.get("high", {"hours": 0})["hours"] < 0.05 * found["hours"]
    assert own["low"]["hours"] > 0.5 * found["hours"]
    assert "USDXUSDT's own 180 days of forecasts" in done.output
    assert any("by the thresholds of BTCUSDT" in note for note in found["notes"])


def test_tables_are_whole_at_80_columns_and_at_40(calm_file: Path) -> None:
    asked = ["backtest", "--candles", str(calm_file), "--symbol", "USDXUSDT", "--from", "2024-08-25",
             "--to", "2024-10-01"]  # fmt: skip
    for width in (80, 40):
        done = CliRunner().invoke(cli, asked, env={"COLUMNS": str(width)})
        assert done.exit_code == 0, done.output
        assert "…" not in done.output
        rows = [line for line in done.output.splitlines() if line.startswith(("buy and hold ", "target-40 "))]
        assert max(len(line.rstrip()) for line in rows) <= width
        assert sum(len(line.split()) for line in rows if line.startswith("buy and hold")) >= 17


def test_an_evaluation_of_a_price_that_never_moves_is_whole_at_80_columns(tmp_path: Path) -> None:
    still, out = tmp_path / "still.csv", tmp_path / "x.json"
    rows = [
        {"symbol": c.symbol, "open_time": c.open_time, **dict(zip(files.OHLCV, c.ohlcv, strict=True))}
        for c in candles_of(np.full(3_000, 1.1e-5))
    ]
    pl.DataFrame(rows).write_csv(still)
    asked = ["evaluate", "--candles", str(still), "--symbol", "XUSDT", "--from", "2024-02-15", "--to", "2024-04-15",
             "--no-tests", "--json", str(out)]  # fmt: skip
    done = CliRunner().invoke(cli, asked, env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert "…" not in done.output
    assert all(math.isfinite(value) for _, value in numbers(json.loads(out.read_text())))
    assert {values["r2"] for values in json.loads(out.read_text())["next_24h"].values()} == {None}
    assert NONE in done.output


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        (slice(2_900, 4_000), "no hour of the last stretch before the period has an outcome"),
        (slice(1_500, 4_000), "no hour of a part of the range that is learnt from has a known outcome"),
    ],
)
def test_a_walk_after_a_long_halt_is_refused_in_one_line(missing: slice, text: str) -> None:
    closes = np.exp(np.cumsum(0.01 * np.random.default_rng(0).standard_normal(5_000)))
    closes[missing] = NAN
    (linear,) = named(["linear"])
    split = START + 4_000 * HOUR_MS
    with pytest.raises(DatasetError, match=text):
        of_forecaster(of_grid("XUSDT", *to_grid(candles_of(closes))), linear, START, split, split + 720 * HOUR_MS)


def test_a_table_in_parts_loses_nothing() -> None:
    table = Table("name", *(f"figure {k}" for k in range(7)), title="all", caption="of it", min_width=30)
    for row in range(3):
        table.add_row(f"line {row}", *(f"{row}{k:08d}" for k in range(7)))
    for width in (1, 30, 45, 200):
        found = parts(table, width)
        assert (found[0].title, found[-1].caption) == ("all", "of it")
        assert [list(c.cells) for part in found for c in part.columns[1:]] == [list(c.cells) for c in table.columns[1:]]
        assert all(list(part.columns[0].cells) == ["line 0", "line 1", "line 2"] for part in found)
    assert len(parts(table, 200)) == 1
    assert len(parts(table, 1)) == 7


def test_regimes_of_ties_and_of_what_hardly_varies() -> None:
    spread = np.linspace(0.001, 0.01, 900)
    assert Regimes.of(spread) == Regimes(*np.quantile(spread, [1 / 3, 4 / 5]).tolist())
    # Hardly anything varies: what is usual is low.
    near = Regimes.of(np.linspace(1e-4, 1.1e-4, 900))
    assert near.medium_from > 1.1e-4
    assert near.high_from > near.medium_from
    still = Regimes.of(np.full(900, 1e-5))
    assert 1e-5 < still.medium_from < still.high_from
    # A floor that most hours share is low, what stands out is not.
    floor = Regimes.of(np.concatenate([np.full(500, 1e-5), np.linspace(2e-3, 4e-3, 400)]))
    assert 1e-5 < floor.medium_from < 2e-3
    assert floor.high_from < 4e-3
