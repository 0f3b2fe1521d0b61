"""A report's pages and figures: the daemon's verdicts by week, links that lead somewhere, nothing from elsewhere."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.drift import detection
from monitor.drift.evidently_page import headed
from monitor.reports import drift, figure, report
from monitor.reports.drift import Measured, Period
from monitor.reports.regression import Matured
from monitor.reports.report import Source, Written
from monitor.reports.trend import TrendPoint
from stream.adapters import predictor
from stream.adapters.bundles import packaged_model
from stream.core.deciding.replay import to_grid
from stream.core.forecasting.drift import MEASURES
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.messages.scoring import Outcome
from stream.testing.market import simulate
from stream.times import day

# What Evidently imports warns of its own age.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

DAY_MS = 24 * HOUR_MS
START = 1_704_067_200_000
MODEL = predictor.load(packaged_model()).model
OTHER = "LTCUSDT"
#: The candles reach 200 days back, and end before the second period does.
FIRST = Period("first", START, START + 60 * DAY_MS, START + 60 * DAY_MS)
SECOND = Period("second", FIRST.to_ms, START + 80 * DAY_MS, START + 90 * DAY_MS)
WHOLE = Period("whole", START, SECOND.to_ms, SECOND.asked_to_ms)
#: Hours of the first period that have no candle.
HOLE = range(100, 110)


@pytest.fixture(scope="module")
def candles() -> dict[str, list[Candle]]:
    begin = START - 231 * DAY_MS
    tape = simulate(["BTCUSDT", OTHER], begin, 311 * 24, 7)
    gone = {START + h * HOUR_MS for h in HOLE}
    return {symbol: [c for c in series if c.open_time not in gone] for symbol, series in tape.items()}


#: The first of which there is a forecast.
FIRST_FORECAST = 100


def matured(hours: int) -> Matured:
    """Forecasts of the hours before that many, whose day is over."""
    draw = np.random.default_rng(3)
    outcomes = []
    for hour in range(FIRST_FORECAST, hours - 24):
        realized, served, har = np.exp(draw.normal(-5.4, 0.4, 3)).tolist()
        outcomes.append(
            Outcome(
                f"{hour}", 0, "BTCUSDT", START + hour * HOUR_MS, "live", MODEL.version, realized, served,
                served * 0.5, served * 2, 0.9, har, har, har, model_volatility=served,
            )
        )  # fmt: skip
    return Matured.of(outcomes)


@pytest.fixture(scope="module")
def source(candles: dict[str, list[Candle]]) -> Source:
    grid, ohlcv = to_grid(candles["BTCUSDT"])
    return Source("BTCUSDT", grid, ohlcv, matured(80 * 24), "journal of <a> node", {"0123456789ab": 17})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@dataclass(frozen=True)
class Drawn:
    """What a trend's SVG shows: weeks' marks and what they say, boxes of each kind of verdict (drift, none)."""

    label: str
    weeks: int
    titles: list[str]
    boxes: list[tuple[int, int]]


def drawn(svg: str) -> Drawn:
    space = "{http://www.w3.org/2000/svg}"
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    groups = {g.get("id", ""): g for g in root.iter(f"{space}g")}
    weeks = [g for name, g in groups.items() if name.startswith(f"{figure.WEEK}-")]

    def boxes(row: int, verdict: str) -> int:
        group = groups.get(f"{figure.VERDICTS}-{row}-{verdict}")
        return 0 if group is None else len(group.findall(f".//{space}use"))

    return Drawn(
        root.get("aria-label", ""),
        sum(len(g.findall(f".//{space}use")) for g in weeks),
        [g.findtext(f"{space}title", "") for g in weeks],
        [(boxes(row, "drift"), boxes(row, "none")) for row in range(3)],
    )


@pytest.fixture(scope="module")
def written(source: Source, folder: Path) -> Written:
    return report.write(source, [FIRST, SECOND], WHOLE, MODEL, folder)


def test_it_leaves_the_named_files_and_no_others(written: Written, folder: Path) -> None:
    names = ["first-drift", "second-drift", "whole-regression", "whole-index"]
    assert written.files == tuple(f"BTCUSDT-{n}.{s}" for n in names for s in ("json", "html"))
    assert {p.name for p in folder.iterdir()} == set(written.files)
    # The daemon keeps its newest 30 drift-<SYMBOL>-*; these are none of them.
    assert not list(folder.glob("drift-*"))


def test_pages_hold_all_they_show_and_link_to_what_is_there(written: Written, folder: Path) -> None:
    for name in written.files:
        if not name.endswith(".html"):
            continue
        text = (folder / name).read_text()
        assert (folder / name).stat().st_size < 5_000_000
        assert MODEL.version in text
        assert "journal of &lt;a&gt; node" in text
        assert "default-src 'none'" in text
        assert "connect-src" not in text.split("<style>")[0]
        assert not re.search(r"<(script|link|img|iframe|source)[^>]+(src|href)=.?(https?:)?//", text)
        ours = re.search(r'<(main|header) class="volcast">.*?</\1>', text, re.DOTALL)
        assert ours is not None
        links = re.findall(r'<a href="([^"]+)"', ours[0])
        assert links
        # All else that is referred to is a part of the drawing.
        assert len(re.findall(r'href="(?!#)', ours[0])) == len(links)
        for target in links:
            assert (folder / html.unescape(target)).is_file(), f"{name} links to {target}"
    index = (folder / written.files[-1]).read_text()
    assert set(re.findall(r'<a href="([^"]+)"', index)) == set(written.files) - {written.files[-1], written.files[-2]}


def test_json_beside_a_page_holds_its_figures(written: Written, folder: Path) -> None:
    for period, found in written.drifts.items():
        figures = json.loads((folder / f"BTCUSDT-{period}-drift.json").read_text())
        assert {k: figures[k] for k in ("kind", "symbol", "period", "model_version")} == {
            "kind": "drift", "symbol": "BTCUSDT", "period": period, "model_version": MODEL.version,
        }  # fmt: skip
        assert msgspec.convert(figures, drift.DriftOfPeriod) == found
        page = (folder / f"BTCUSDT-{period}-drift.html").read_text()
        for name in MEASURES:
            row = [f"{v:.3f}" for v in (found.thresholds[name], max(w.scores[name] for w in found.weeks))]
            assert f"<td>{name}</td><td>{row[0]}</td><td>{row[1]}</td>" in page
    figures = json.loads((folder / "BTCUSDT-whole-regression.json").read_text())
    served = written.regression.by_forecaster["served"]
    assert figures["by_forecaster"]["served"] == msgspec.to_builtins(served)
    assert f"<td>served</td><td>{served.qlike:.3f}</td>" in (folder / "BTCUSDT-whole-regression.html").read_text()


def test_what_is_missing_is_told_and_nothing_is_mixed_in(written: Written, folder: Path) -> None:
    notes = "\n".join(written.notes)
    assert "whole is not complete" in notes
    assert f"hours without a candle: {len(HOLE)} of 1920" in notes
    assert "17 by 0123456789ab" in notes
    index = (folder / "BTCUSDT-whole-index.html").read_text()
    assert all(html.escape(note) in index for note in written.notes)
    assert json.loads((folder / "BTCUSDT-whole-index.json").read_text())["notes"] == list(written.notes)
    assert [of.missing_hours for of in written.drifts.values()] == [len(HOLE), 0]
    assert written.regression.forecasts == 80 * 24 - 24 - FIRST_FORECAST


def test_the_trend_is_drawn_of_the_weeks_in_the_json(written: Written, folder: Path) -> None:
    (svg,) = re.findall(r"<svg.*?</svg>", (folder / "BTCUSDT-whole-index.html").read_text(), re.DOTALL)
    drawing = drawn(svg)
    points = json.loads((folder / "BTCUSDT-whole-index.json").read_text())["trend"]
    weeks = [week for of in written.drifts.values() for week in of.weeks]
    assert [p["last"] for p in points] == [week.last for week in weeks]
    assert len(points) == 8 + 2
    assert drawing.titles == [f"{day(p['last'])}: {p['measure']} at {p['score_of_threshold']:.2f}" for p in points]
    assert drawing.weeks == len(points)
    verdicts = [[p[k] for p in points] for k in ("detected", "fast_detected", "default_detected")]
    assert drawing.boxes == [(of.count(True), of.count(False)) for of in verdicts]
    for p, week in zip(points, weeks, strict=True):
        of = written.drifts["first"]
        ratios = {name: week.scores[name] / of.thresholds[name] for name in MEASURES}
        assert p["score_of_threshold"] == max(ratios.values()) == ratios[p["measure"]]
        assert p["detected"] == (p["score_of_threshold"] >= 1)
    # The first week ends after 264 hours: 140 forecasts had matured, too few for a mean.
    assert points[0]["qlike_served"] is None
    known = matured(80 * 24)
    for p in points[1:]:
        ended = known.open_time + 24 * HOUR_MS
        month = (ended <= p["last"]) & (ended > p["last"] - 30 * DAY_MS)
        for name in ("served", "har"):
            x = (known.realized[month] / known.forecasts[name][month]) ** 2
            assert p[f"qlike_{name}"] == pytest.approx(np.mean(x - np.log(x) - 1))


@pytest.mark.parametrize("symbol", ["BTCUSDT", OTHER])
def test_a_week_says_what_the_daemon_says_on_its_last_hour(
    symbol: str, candles: dict[str, list[Candle]], written: Written
) -> None:
    assert written.files
    last = FIRST.to_ms - HOUR_MS
    known = [c for c in candles[symbol] if c.open_time <= last]
    published = detection.run(symbol, known, MODEL.contract, model_version="m", issued_at=5, report=None)
    of = drift.judged(Measured.of(symbol, *to_grid(candles[symbol])), MODEL.contract, FIRST, None)
    assert of is not None
    week = of.weeks[-1]
    assert week.last == published.to
    assert week.reference == published.reference == ("bundle" if symbol == "BTCUSDT" else "own")
    assert week.scores == {f.feature: pytest.approx(f.score, rel=1e-9) for f in published.features}
    assert (week.detected, week.default_detected) == (published.detected, published.default_detected)
    assert published.fast is not None
    assert week.fast_detected == published.fast.detected


@given(st.integers(1, 5_000))
def test_weeks_lie_in_the_period_and_end_with_it(hours: int) -> None:
    period = Period("p", START, START + hours * HOUR_MS, START + hours * HOUR_MS)
    ends = list(drift.week_ends(period))
    assert ends[-1] == period.to_ms
    assert all(b - a == 7 * DAY_MS for a, b in pairwise(ends))
    assert len(ends) == max(1, hours // 168)
    assert len(ends) == 1 or ends[0] - 7 * DAY_MS >= period.from_ms


def test_a_year_of_quarters_has_52_weeks() -> None:
    marks = [int(datetime(*date, tzinfo=UTC).timestamp()) * 1_000 for date in
             ((2024, 1, 1), (2024, 4, 1), (2024, 7, 1), (2024, 10, 1), (2025, 1, 1))]  # fmt: skip
    quarters = [Period("q", a, b, b) for a, b in pairwise(marks)]
    assert [len(list(drift.week_ends(q))) for q in quarters] == [13] * 4


def test_too_little_is_refused_in_one_line_with_the_cure(source: Source, tmp_path: Path) -> None:
    few = replace(source, matured=matured(FIRST_FORECAST + 24 + 23))
    with pytest.raises(report.ReportError, match=r"0123456789ab made others: name its bundle with --model"):
        report.write(few, [FIRST], FIRST, MODEL, tmp_path)
    grid, ohlcv = source.open_time, source.ohlcv
    young = replace(source, open_time=grid[grid >= START], ohlcv=ohlcv[grid >= START])
    early = Period("early", START, START + 30 * DAY_MS, START + 30 * DAY_MS)
    with pytest.raises(report.ReportError, match="reach further back"):
        report.write(young, [early], early, MODEL, tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_symbol_without_a_past_is_marked(candles: dict[str, list[Candle]]) -> None:
    series = [c for c in candles[OTHER] if c.open_time >= START - 60 * DAY_MS]
    of = drift.judged(Measured.of(OTHER, *to_grid(series)), MODEL.contract, FIRST, None)
    assert of is not None
    assert of.reference == "uncalibrated"
    assert {week.reference for week in of.weeks} == {"uncalibrated"}
    # 100 days before the end of a week, and 20 of look-back, are there from the eighth week on.
    assert [week.fast_detected is None for week in of.weeks] == [True] * 7 + [False]


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e4), st.booleans(), st.booleans() | st.none(), st.floats(0, 50) | st.none()
        ),
        max_size=60,
    ),
    st.integers(1, 900),
)  # fmt: skip
def test_any_trend_can_be_drawn(weeks: list[tuple[float, bool, bool | None, float | None]], days: int) -> None:
    points = [
        TrendPoint(START + k * 7 * DAY_MS, score, "<&>", detected, fast, detected, qlike, qlike)
        for k, (score, detected, fast, qlike) in enumerate(weeks)
    ]
    # Weeks end within their period.
    end = START + max(days, 7 * len(points)) * DAY_MS
    svg = figure.trend(points, START, end)
    assert "nan" not in svg
    assert "inf" not in svg
    shown = drawn(svg)
    assert "thresholds" in shown.label
    assert shown.weeks == len(points)
    assert all("<&>" in title for title in shown.titles)
    assert [sum(of) for of in shown.boxes] == [
        len(points),
        sum(p.fast_detected is not None for p in points),
        len(points),
    ]


def test_a_trend_is_the_same_bytes_again() -> None:
    points = [TrendPoint(START + 7 * DAY_MS, 1.2, "m", True, None, False, 0.3, None)]
    drawings = [figure.trend(points, START, START + days * DAY_MS) for days in (30, 30, 31)]
    assert drawings[0] == drawings[1] != drawings[2]


def test_another_form_of_evidently_s_page_is_an_error() -> None:
    for page in ("<html></html>", "<style></style><html></html>"):
        with pytest.raises(ValueError, match="another form"):
            headed(page, "monitor.drift/drift.html.j2", title="t", verdict="", fast_verdict="")
    page = headed(
        "<html><head><style>a</style></head><body>b<body></html>", "monitor.drift/drift.html.j2",
        title="<i>", verdict="<script>", fast_verdict="&",
    )  # fmt: skip
    assert not re.search(r"<(i|script)\b", page)
    assert page.startswith("<html><head>")
    assert page.rstrip().endswith("b<body></html>")
    assert (
        page.index("default-src 'none'") < page.index("<style>a</style></head><body><header") < page.index("</header>b")
    )
