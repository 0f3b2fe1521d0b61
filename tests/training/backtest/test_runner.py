"""The backtest: books by hand, measures by hand, no look at the future, and the command."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from stream import times
from stream.__main__ import cli
from stream.adapters import policies
from stream.adapters.candles import files
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import Issued
from stream.core.deciding.policy import ANNUAL, Policy, Thresholds
from stream.core.deciding.replay import replay, to_grid
from stream.core.market.candle import HOUR_MS, Candle
from stream.testing.market import simulate_symbol
from stream.testing.sample_model import sample_model, sample_predict
from training.backtest import decisions, figures, measures, report, runner
from training.backtest.benchmarks import BUY_AND_HOLD, ORACLE, exposures, published, reference_figures
from training.backtest.decisions import Decided, decide, of_bundle, of_forecaster
from training.backtest.execution import Book, Costs, execute, realized_volatility
from training.data.dataset import Dataset, load_others, of_grid
from training.forecasters import named

START = 1_704_067_200_000
HOURS = 4_600
SINCE = START + 3_000 * HOUR_MS
NAN = float("nan")


class Bundle:
    """The sample model behind a bundle's interface."""

    model = sample_model()

    def __call__(self, sequence: np.ndarray, static: np.ndarray) -> np.ndarray:
        return sample_predict(sequence, static)


@cache
def market() -> tuple[Candle, ...]:
    return tuple(c for i, c in enumerate(simulate_symbol("BTCUSDT", START, HOURS, 7)) if i not in (3_500, 3_501, 3_502))


def dataset(candles: tuple[Candle, ...]) -> Dataset:
    return of_grid("BTCUSDT", *to_grid(candles))


@cache
def made() -> runner.Tested:
    data = dataset(market())
    term = of_bundle(data, Bundle(), SINCE, START + HOURS * HOUR_MS)
    return runner.run(data, market(), [term], [Policy()], [policies.load("reference")])


def book(opens: list[float], closes: list[float], exposure: list[float], **costs: float) -> Book:
    time = START + HOUR_MS * np.arange(len(opens), dtype=np.int64)
    return execute(time, np.array(opens), np.array(closes), np.array(exposure), Costs(**costs))


def test_a_decision_is_filled_at_the_next_open_and_pays_fee_and_slippage() -> None:
    # Half of 1 is bought at 100: 0.005 units for 0.5, and 0.5 × (10 + 5) bp = 0.00075 is paid.
    of = book([100, 100, 120], [100, 110, 120], [0.5, 0.5, 0.5], fee_bp=10, slippage_bp=5, drift_band=1)
    assert of.traded.tolist() == [0, 0.5, 0]
    assert of.cost.tolist() == pytest.approx([0, 0.00075, 0])
    assert of.equity.tolist() == pytest.approx([1, 0.5 - 0.00075 + 0.005 * 110, 0.5 - 0.00075 + 0.005 * 120])
    assert of.returns.tolist() == pytest.approx([0, 0.04925, 1.09925 / 1.04925 - 1])
    assert of.weight[1] == pytest.approx(0.55 / 1.04925)


def test_selling_pays_too_and_a_round_trip_costs_both_sides() -> None:
    of = book([100] * 4, [100] * 4, [1.0, 0.0, 0.0, 0.0], fee_bp=100)
    # 1 is bought for 0.01, 1 of 0.99 is sold for 0.01: at equal prices 0.02 is gone.
    assert of.equity.tolist() == pytest.approx([1, 0.99, 0.98, 0.98])
    assert of.traded.tolist() == pytest.approx([0, 1, 1 / 0.99, 0])


def test_a_delay_of_two_hours_fills_an_hour_later() -> None:
    of = book([100, 100, 200, 200], [100, 200, 200, 200], [1.0] * 4, fee_bp=0, delay_hours=2)
    assert of.equity.tolist() == [1, 1, 1, 1]
    assert of.traded.tolist() == [0, 0, 1, 0]


def test_an_expired_decision_is_never_filled() -> None:
    # Decided at hour 0; hours 1 and 2 do not exist, so hour 3 is past its valid_until.
    late = book([100, NAN, NAN, 100, 100], [100, NAN, NAN, 100, 100], [1.0, NAN, NAN, NAN, 0.4], fee_bp=0)
    assert late.traded.tolist() == [0, 0, 0, 0, 0]
    in_time = book([100, NAN, 100], [100, NAN, 100], [1.0, NAN, NAN], fee_bp=0)
    assert in_time.traded.tolist() == [0, 0, 1]


def test_units_drift_until_the_drift_band_and_are_then_brought_back() -> None:
    of = book([100, 100, 150, 150], [100, 150, 150, 150], [0.5] * 4, fee_bp=0, drift_band=0.05)
    # 0.75 of 1.25 is 0.6: sold down to 0.625, a tenth of the equity.
    assert of.traded.tolist() == pytest.approx([0, 0.5, 0.1, 0])
    assert of.weight.tolist() == pytest.approx([0, 0.6, 0.5, 0.5])


def test_leverage_can_lose_everything_and_no_more() -> None:
    of = book([100, 100, 40], [100, 40, 400], [2.0] * 3, fee_bp=0)
    assert of.equity.tolist() == [1, 0, 0]
    assert of.returns.tolist() == [0, -1, 0]


@pytest.mark.parametrize("costs", [{"delay_hours": 0}, {"delay_hours": 3}, {"fee_bp": -1}, {"slippage_bp": NAN}])
def test_costs_that_make_no_sense_are_refused(costs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"delay|at least 0"):
        Costs(**costs)


moves = st.lists(st.tuples(st.floats(-0.2, 0.2), st.floats(0, 1) | st.just(NAN)), min_size=3, max_size=60)


@given(moves, st.floats(0, 50), st.integers(1, 59))
def test_a_book_adds_up_and_knows_nothing_of_what_comes(
    steps: list[tuple[float, float]], fee_bp: float, cut: int
) -> None:
    closes = np.cumprod([100 * (1 + steps[0][0]), *(1 + s for s, _ in steps[1:])]).tolist()
    opens = [100.0, *closes[:-1]]
    plan = [e for _, e in steps]
    of = book(opens, closes, plan, fee_bp=fee_bp)
    assert np.all(of.equity > 0)
    assert np.prod(1 + of.returns) == pytest.approx(of.equity[-1])
    assert of.cost.sum() == pytest.approx(of.traded.sum() * fee_bp * 1e-4)
    cut = min(cut, len(steps) - 1)
    other = book(opens[:cut] + [x * 3 for x in opens[cut:]], closes[:cut] + [x / 2 for x in closes[cut:]],
                 plan[:cut] + [1 - e for e in plan[cut:]], fee_bp=fee_bp)  # fmt: skip
    np.testing.assert_array_equal(of.equity[:cut], other.equity[:cut])


def test_the_future_does_not_move_the_past() -> None:
    """Candles after a cut are shuffled: decisions, equity and costs up to it are the same to the last bit."""
    cut = SINCE + 700 * HOUR_MS
    past = [c for c in market() if c.open_time < cut]
    future = [c for c in market() if c.open_time >= cut]
    order = np.random.default_rng(1).permutation(len(future)).tolist()
    shuffled = [msgspec.structs.replace(future[k], open_time=c.open_time) for c, k in zip(future, order, strict=True)]
    both = [tuple(past + future), tuple(past + shuffled)]
    decided: list[Decided] = []
    for candles in both:
        data = dataset(candles)
        term = of_bundle(data, Bundle(), SINCE, START + HOURS * HOUR_MS)
        decided.append(decide(data, candles, [term], [Policy(), *VARIED]))
    rows = int((cut - SINCE) // HOUR_MS)
    assert decided[0].exposure["target-40"][rows + 100] != decided[1].exposure["target-40"][rows + 100]
    for name in decided[0].exposure:
        a, b = (d.exposure[name][:rows] for d in decided)
        np.testing.assert_array_equal(a, b)
        one, other = (execute(d.open_time, d.opens, d.closes, d.exposure[name]).equity[:rows] for d in decided)
        np.testing.assert_array_equal(one, other)


VARIED = (
    Policy("har", forecast="har", no_trade_band_of_exposure=0.02),
    Policy("steps", thresholds=Thresholds("annualized", 0.4, 0.6), no_trade_band_of_exposure=0.0),
)


def test_decisions_are_the_operators_of_the_daemon_field_by_field() -> None:
    of = made().decided
    rules = Rules.of(Policy(), Bundle.model.contract)
    recent = [c for c in market() if c.open_time > SINCE - 2_880 * HOUR_MS]
    issued = [
        e for _, e in replay(rules, "BTCUSDT", recent, Bundle.model, sample_predict, SINCE) if isinstance(e, Issued)
    ]
    assert [(e.prediction, e.interval, e.verdict) for e in issued] == [
        (e.prediction, e.interval, e.verdict) for e in of.issued
    ]
    assert of.exposure["target-40"][np.isfinite(of.exposure["target-40"])].tolist() == [
        e.verdict.exposure for e in issued
    ]


def test_annualization_uses_8760_hours() -> None:
    rng = np.random.default_rng(3)
    closes = 100 * np.cumprod(1 + 0.01 * rng.standard_normal(2_000))
    opens = np.concatenate([[100.0], closes[:-1]])
    held = np.ones(2_000)
    of = execute(START + HOUR_MS * np.arange(2_000, dtype=np.int64), opens, closes, held, Costs(fee_bp=0))
    r = of.returns
    found = measures.impact(of, held, of, 0.4, 1.0)
    assert found.volatility_annualized == pytest.approx(r.std(ddof=1) * np.sqrt(8_760))
    assert found.sharpe == pytest.approx(r.mean() / r.std(ddof=1) * np.sqrt(8_760), rel=1e-6)
    assert found.cagr == pytest.approx(of.equity[-1] ** (8_760 / 2_000) - 1)
    assert found.drawdown == pytest.approx((of.equity / np.maximum.accumulate(of.equity) - 1).min(), rel=1e-6)
    assert found.calmar == pytest.approx(found.cagr / -found.drawdown)
    assert found.turnover == pytest.approx(8_760 / 2_000)
    assert found.tracking_ratio == 1.0


def test_tracking_is_of_the_last_168_hours() -> None:
    r = np.random.default_rng(4).standard_normal(400) * 0.01
    found = realized_volatility(r)
    assert np.isnan(found[:167]).all()
    for t in (167, 168, 399):
        assert found[t] == pytest.approx(r[t - 167 : t + 1].std(ddof=1) * ANNUAL)


def test_cvar_and_days_by_hand() -> None:
    # 40 days; one loses 10 %, one 6 %, the others nothing: the worst 5 % are two days.
    daily = np.zeros(40)
    daily[[10, 20]] = -0.10, -0.06
    closes = 100 * np.cumprod(1 + np.repeat(daily, 24) * np.tile([1.0, *[0.0] * 23], 40))
    opens = np.concatenate([[100.0], closes[:-1]])
    time = START + HOUR_MS * np.arange(960, dtype=np.int64)
    of = execute(time, opens, closes, np.ones(960), Costs(fee_bp=0))
    np.testing.assert_allclose(measures.daily(of), daily, atol=1e-12)
    found = measures.impact(of, np.ones(960), of, 0.4, 1.0)
    assert found.cvar_95 == pytest.approx(-0.08)
    assert found.longest_drawdown_days == 30
    late = Book(of.open_time + 5 * HOUR_MS, *(getattr(of, n) for n in ("equity", "weight", "traded", "cost")))
    assert len(measures.daily(late)) == 39


def test_the_reference_figures_by_hand() -> None:
    returns, held = np.array([0.1, -0.2, 0.1, 0.05]), np.array([1.0, 0.5, 0.0, 0.0])
    assert reference_figures(returns, held) == {
        "avg_return": pytest.approx(0.0125),
        "volatility": pytest.approx(np.sqrt(0.061875 / 3)),
        "max_drawdown": pytest.approx(0.2),
        "risk_off_rate": 0.5,
    }
    steps = Thresholds("hourly", 0.015, 0.035)
    assert exposures(np.array([0.014, 0.015, 0.0351]), steps).tolist() == [1.0, 0.5, 0.0]
    # Its evaluation: the same hour's volatility halves the same hour's return.
    found = published(np.array([100.0, 110.0, 99.0]), np.array([NAN, 0.01, 0.02]), steps)
    assert found["avg_return"] == pytest.approx((np.log(1.1) + 0.5 * np.log(0.9)) / 2)


def test_every_figure_is_there_for_everyone_and_is_a_number() -> None:
    of = made().backtest
    names = [line.name for line in of.lines]
    assert names[0] == "target-40"
    assert {
        "reference",
        BUY_AND_HOLD,
        ORACLE,
        "target-40 on persistence",
        "target-40 on ewma",
        "target-40 on har",
    } < set(names)
    json.dumps(msgspec.to_builtins(of), allow_nan=False)
    own = of.line("target-40")
    compared = next(line for line in of.lines if line.name.startswith("constant "))
    assert compared.impact.mean_exposure == pytest.approx(own.impact.mean_exposure, abs=2e-3)
    assert own.impact.tracking_rmse_constant == pytest.approx(compared.impact.tracking_rmse)
    assert of.line(BUY_AND_HOLD).impact.exposure_changes == 0
    for line in of.lines:
        assert all(low <= high for low, high in line.intervals.values())
        assert sum(p.hours for p in line.years.values()) == of.hours
    assert of.regime_thresholds["high"]["daily"] == pytest.approx(of.regime_thresholds["high"]["hourly"] * np.sqrt(24))
    assert of.regime_thresholds["high"]["annualized"] == pytest.approx(of.regime_thresholds["high"]["hourly"] * ANNUAL)


def test_a_bundle_that_learnt_from_the_period_is_said_to_have() -> None:
    of = made().backtest
    trained = Bundle.model.contract.training.trained_until
    assert bool(of.notes) == (trained >= SINCE)
    data = dataset(market())
    assert "no test" in of_bundle(data, Bundle(), trained - HOUR_MS * 800, SINCE).note


def test_a_walk_forward_learns_only_from_before_the_year() -> None:
    altered = tuple(
        c if c.open_time < SINCE else msgspec.structs.replace(c, high=c.high * 1.2, low=c.low * 0.8) for c in market()
    )
    (linear,) = named(["linear"])
    terms = [of_forecaster(dataset(c), linear, START, SINCE, SINCE + 500 * HOUR_MS) for c in (market(), altered)]
    assert terms[0].regimes == terms[1].regimes
    assert terms[0].calibration == terms[1].calibration
    first = min(terms[0].predictions)
    assert terms[0].predictions[first] == terms[1].predictions[first]
    assert terms[0].predictions[SINCE + 400 * HOUR_MS] != terms[1].predictions[SINCE + 400 * HOUR_MS]


def test_figures_and_page_are_the_same_bytes_each_time() -> None:
    of = made()
    page = report.page(of)
    assert page == report.page(of)
    assert page.count("<figure>") == 4
    assert "http" not in page.split("</style>")[1].replace("http://www.w3.org", "")
    assert "<script" not in page
    assert "default-src 'none'" in page
    for figure in (figures.overview, figures.tradeoff):
        assert figure(of, "png") == figure(of, "png")


@pytest.fixture
def candle_file(tmp_path: Path) -> Path:
    import polars as pl

    rows = [
        {"symbol": c.symbol, "open_time": c.open_time, **dict(zip(files.OHLCV, c.ohlcv, strict=True))} for c in market()
    ]
    path = tmp_path / "candles.parquet"
    files.write_table(pl.DataFrame(rows), path, times=("open_time",))
    return path


def test_the_command_shows_two_policies_side_by_side(candle_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "wide.toml"
    other.write_text('name = "wide"\nno_trade_band = 0.5\n')
    out, page, figure = (tmp_path / name for name in ("r.json", "r.html", "r.svg"))
    done = CliRunner().invoke(
        cli,
        ["backtest", "--candles", str(candle_file), "--from", "2024-05-05", "--to", "2024-07-10",
         "--policy", "target-40", "--policy", str(other), "--json", str(out), "--html", str(page),
         "--figure", str(figure)],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    figures = json.loads(out.read_text())
    ours = [line for line in figures["lines"] if line["kind"] == "policy"]
    assert [line["name"] for line in ours] == ["target-40", "wide"]
    assert ours[1]["impact"]["turnover"] < ours[0]["impact"]["turnover"]
    assert "no alpha is claimed" in done.output
    assert page.read_text().startswith("<!doctype html>")
    assert figure.read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("options", "text", "code"),
    [
        (["--policy", "{bad}"], "bad.toml: no_trade_bnad", 1),
        (["--policy", "target-40", "--policy", "target-40"], "two policies are called target-40", 2),
        (["--from", "2024-07-01", "--to", "2024-07-10"], "a backtest needs 720", 1),
        (["--from", "2024-07-01", "--to", "2024-06-01"], "is empty", 2),
        (["--walk-forward", "2024,2022"], "follow each other", 2),
        (["--walk-forward", "2024", "--from", "2024-07-01"], "names its own period", 2),
        (["--walk-forward", "2024", "--forecaster", "gpt"], "no forecaster is called 'gpt'", 2),
        (["--figure", "x.jpg"], "must end in .png or .svg", 2),
        (["--html", "nowhere/x.html"], "is no directory", 1),
    ],
)
def test_what_does_not_go_is_one_line(
    candle_file: Path, tmp_path: Path, options: list[str], text: str, code: int
) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("no_trade_bnad = 0.1")
    done = CliRunner().invoke(cli, ["backtest", "--candles", str(candle_file), *(o.format(bad=bad) for o in options)])
    assert done.exit_code == code
    assert text in done.output
    assert "Traceback" not in done.output


@pytest.mark.real_data
def test_2021_to_2024_real_candles(real_data: Path) -> None:
    """The limits: walk forward, 10 bp a side, against the constant weight with the same mean exposure."""
    table = files.read(real_data / "btcusdt_1h.parquet", default_symbol="BTCUSDT")
    data = of_grid("BTCUSDT", *table.grid("BTCUSDT"))
    (linear,) = named(["linear"], pool=load_others(real_data / "other_1h.parquet", "BTCUSDT"))
    terms = list(decisions.yearly(data, linear, times.parse("2018-03-01"), (2021, 2022, 2023, 2024)))
    of = runner.run(data, table["BTCUSDT"], terms, [policies.load()]).backtest
    own = of.lines[0].impact
    compared = next(line for line in of.lines if line.name.startswith("constant ")).impact
    assert own.tracking_rmse <= 0.50 * compared.tracking_rmse
    assert own.turnover <= 12
    # Within two points is luck: which days a band trades.
    assert own.drawdown >= compared.drawdown - 0.02
    assert own.cvar_95 >= compared.cvar_95
    assert 0.001 < own.risk_off_share < 0.05
