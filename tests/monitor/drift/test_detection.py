"""A drift run: Evidently's numbers against our own arithmetic, what is held against what, too little data, and silence
on the network."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from programs import need

from monitor.drift import detection
from stream.adapters import predictor
from stream.adapters.bundles import packaged_model
from stream.core.deciding.accumulation import HISTORY_HOURS
from stream.core.deciding.replay import to_grid
from stream.core.forecasting import drift as statistic
from stream.core.forecasting import features
from stream.core.forecasting.windows import Array
from stream.core.market.candle import Candle
from stream.core.messages.schemas import Drift
from stream.errors import RefusedError
from stream.testing.market import simulate

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::RuntimeWarning"
)
START = 1_704_067_200_000
MODEL = predictor.load(packaged_model()).model
HTML_BYTES = 5_000_000


def of_market(symbol: str, hours: int) -> list[Candle]:
    return simulate([symbol], START, hours, 7)[symbol]


@pytest.fixture(scope="module")
def candles() -> list[Candle]:
    return of_market("BTCUSDT", HISTORY_HOURS)


def run(symbol: str, candles: list[Candle], report: Path | None = None) -> Drift:
    return detection.run(symbol, candles, MODEL.contract, model_version="m", issued_at=5, report=report)


def measures_of(candles: list[Candle]) -> Array:
    grid, ohlcv = to_grid(candles)
    return statistic.measures(features.compute(grid, ohlcv), ohlcv)


def columns(values: Array) -> dict[str, Array]:
    return {name: values[:, k] for k, name in enumerate(statistic.MEASURES)}


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_pair_that_never_moves_has_scores_and_no_warnings(candles: list[Candle]) -> None:
    still = [Candle("XUSDT", c.open_time, 1.0, 1.0, 1.0, 1.0, 0.0) for c in candles]
    found = run("XUSDT", still)
    assert all(np.isfinite(feature.score) for feature in found.features)
    assert found.reference == "uncalibrated"


def test_a_run_holds_30_days_against_the_bundles_reference_and_10_against_90(
    candles: list[Candle], tmp_path: Path
) -> None:
    html = tmp_path / "reports" / "drift.html"
    found = run("BTCUSDT", candles, html)
    values = measures_of(candles)
    for k, feature in enumerate(found.features):
        reference = MODEL.contract.reference[feature.feature]
        own = statistic.normed_wasserstein(values[-720:, k], np.array(reference.quantiles))
        assert feature.score == pytest.approx(own, rel=1e-9)
        assert (feature.threshold, feature.detected) == (reference.threshold, own >= reference.threshold)
        assert feature.default_detected == (own >= 0.1)
    assert [f.feature for f in found.features] == list(statistic.MEASURES)
    assert found.detected == any(f.detected for f in found.features)
    assert found.default_detected == (sum(f.default_detected for f in found.features) >= 4)
    assert found.drifted_share == pytest.approx(np.mean([f.detected for f in found.features]))
    assert (found.from_, found.to, found.rows) == (candles[-720].open_time, candles[-1].open_time, 720)
    assert (found.reference, found.report) == ("bundle", "drift.html")
    fast = found.fast
    assert fast is not None
    assert (fast.from_, fast.to, fast.rows) == (candles[-240].open_time, candles[-1].open_time, 240)
    assert fast.reference_from == candles[-2_400].open_time
    by_evidently = detection.evidently_scores(columns(values[-240:]), columns(values[-2_400:-240]), None)
    assert {f.feature: f.score for f in fast.features} == pytest.approx(by_evidently, rel=1e-9)
    for feature in fast.features:
        assert feature.threshold == MODEL.contract.reference[feature.feature].fast_threshold
        assert feature.detected == (feature.score >= feature.threshold)
    assert fast.detected == any(f.detected for f in fast.features)
    # The message can be sent, and read again.
    assert msgspec.json.decode(msgspec.json.encode(found), type=Drift) == found
    assert sorted(p.name for p in html.parent.iterdir()) == ["drift.html"]
    assert html.stat().st_size < HTML_BYTES
    text = html.read_text()
    assert "<html" in text
    # Nothing is loaded from elsewhere when a person opens it.
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=.?(https?:|//)", text)


def louder(candles: list[Candle], hours: int, factor: float) -> list[Candle]:
    """The same market, its last hours with so many times the returns."""
    out: list[Candle] = []
    for k, c in enumerate(candles):
        price, exponent = out[-1].close if out else c.open, factor if k >= len(candles) - hours else 1.0
        high, low, close = (price * (of / c.open) ** exponent for of in (c.high, c.low, c.close))
        out.append(msgspec.structs.replace(c, open=price, high=high, low=low, close=close))
    return out


@pytest.mark.parametrize(
    ("hours", "factor", "slow", "fast"), [(0, 1.0, False, False), (720, 3.0, True, False), (240, 1.8, False, True)]
)
def test_the_words_of_the_page_are_our_verdicts(
    candles: list[Candle], hours: int, factor: float, slow: bool, fast: bool, tmp_path: Path
) -> None:
    html = tmp_path / "drift.html"
    found = run("BTCUSDT", louder(candles, hours, factor), html)
    assert found.fast is not None
    assert (found.detected, found.fast.detected) == (slow, fast)
    # By its default Evidently would say "detected" of all three.
    assert found.default_detected
    chromium = need("chromium")
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=8000", "--dump-dom", html.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    shown = re.sub(r"<script.*?</script>", "", shown, flags=re.DOTALL)
    by_evidently = re.findall(r"Dataset Drift is ((?:NOT )?detected)", shown)
    assert by_evidently == ["detected" if slow else "NOT detected"]
    count = sum(f.detected for f in found.features)
    assert f"({count} out of {len(found.features)})" in shown
    ours = dict(re.findall(r"<p[^>]*>(30 days|Their last 10 days)[^<]*?: drift ((?:not )?detected)", shown))
    assert ours == {
        "30 days": "detected" if slow else "not detected",
        "Their last 10 days": "detected" if fast else "not detected",
    }


def test_what_evidently_mutes_we_measure_the_same() -> None:
    chance = np.random.default_rng(1)
    current = {"still": chance.normal(size=300) * 1e-5 + 5e-5, "usual": chance.normal(size=300) + 1}
    reference = {"still": chance.normal(size=900) * 1e-5, "usual": chance.normal(size=900)}
    scores = detection.evidently_scores(current, reference, None)
    for name, score in scores.items():
        assert score == pytest.approx(statistic.normed_wasserstein(current[name], reference[name]), rel=1e-9)
    assert scores["still"] < 0.1


def test_a_page_changes_no_score(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    current, reference = ({name: chance.normal(size=size) for name in "abc"} for size in (300, 900))
    html = tmp_path / "drift.html"
    thresholds = dict.fromkeys("abc", 0.5)
    with_page = detection.evidently_scores(current, reference, html, thresholds=thresholds)
    assert with_page == detection.evidently_scores(current, reference, None, thresholds=thresholds)
    assert list(with_page) == ["a", "b", "c"]
    assert html.is_file()


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    html = tmp_path / "drift.html"
    html.mkdir()
    values = {"a": np.arange(50.0)}
    with pytest.raises(OSError):
        detection.evidently_scores(values, values, html)
    assert [p.name for p in tmp_path.iterdir()] == ["drift.html"]


def test_another_symbol_is_held_against_its_own_past() -> None:
    candles = of_market("ETHUSDT", detection.MOST_HOURS + 50)
    found = run("ETHUSDT", candles)
    values = measures_of(candles)
    marks = np.quantile(values[-5_040:-720], statistic.levels(), axis=0)
    expected = statistic.distances(values[-720:], marks)
    assert found.reference == "own"
    assert [f.score for f in found.features] == pytest.approx(expected.tolist(), rel=1e-9)
    assert [f.threshold for f in found.features] == [
        MODEL.contract.reference[f.feature].threshold for f in found.features
    ]


def test_another_symbol_without_180_days_is_uncalibrated() -> None:
    candles = of_market("ETHUSDT", statistic.OWN_REFERENCE_HOURS + statistic.WINDOW_HOURS - 1)
    found = run("ETHUSDT", candles)
    assert found.reference == "uncalibrated"
    marks = np.array([MODEL.contract.reference[name].quantiles for name in statistic.MEASURES]).T
    expected = statistic.distances(measures_of(candles)[-720:], marks)
    assert [f.score for f in found.features] == pytest.approx(expected.tolist(), rel=1e-9)


def test_under_100_days_only_the_30_are_judged() -> None:
    least = statistic.FAST_HOURS + statistic.FAST_REFERENCE_HOURS + statistic.LOOKBACK_HOURS - 1
    assert run("BTCUSDT", of_market("BTCUSDT", least - 1)).fast is None
    assert run("BTCUSDT", of_market("BTCUSDT", least)).fast is not None


def test_what_is_older_than_a_run_can_use_changes_nothing(candles: list[Candle]) -> None:
    assert run("BTCUSDT", candles[-detection.LEAST_HOURS :]).features == run("BTCUSDT", candles).features


def test_too_few_candles_and_too_many_gaps_are_said_with_their_cure(candles: list[Candle]) -> None:
    with pytest.raises(detection.DriftError, match=r"1198 hours of candles are too few .* needs 1199"):
        run("BTCUSDT", candles[: detection.LEAST_HOURS - 1])
    with pytest.raises(detection.DriftError, match="too few"):
        run("BTCUSDT", [])
    with pytest.raises(detection.DriftError, match="candles are missing"):
        run("BTCUSDT", candles[:-700] + candles[-1:])


# --- the command, in a process of its own -------------------------------------------------------------------------


def child(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture
def candle_file(candles: list[Candle], tmp_path: Path) -> Path:
    file = tmp_path / "candles.csv"
    rows = [",".join(map(str, (c.open_time, *c.ohlcv))) for c in candles]
    file.write_text("open_time,open,high,low,close,volume\n" + "\n".join(rows) + "\n")
    return file


def test_the_command_tells_both_signals(tmp_path: Path, candle_file: Path) -> None:
    files = ["--candles", str(candle_file), "--out", "drift.html", "--json", "drift.json"]
    done = child(tmp_path, "-m", "stream", "drift", *files, "--nice", "1", "--memory-mb", "2048")
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode((tmp_path / "drift.json").read_bytes(), type=Drift)
    assert (tmp_path / "drift.html").stat().st_size < HTML_BYTES
    assert "drift detected" in done.stdout or "drift not detected" in done.stdout
    assert "10 days against the 90 before" in done.stdout
    assert "Evidently's default" in done.stdout
    assert result.fast is not None
    for feature in (*result.features, *result.fast.features):
        assert f"{feature.feature} " in done.stdout
        assert f"{feature.score:.3f}" in done.stdout
    assert sorted(p.name for p in tmp_path.glob("*drift*")) == ["drift.html", "drift.json"]


def test_the_bounds_are_set_before_the_work_and_watched(tmp_path: Path) -> None:
    code = (
        "import resource; from pathlib import Path; from stream.cli import confined;"
        "confined.in_child('drift', 300);"
        "print(Path('/proc/self/oom_score_adj').read_text().strip(), resource.getrlimit(resource.RLIMIT_CPU)[0],"
        " flush=True); held = b'x' * 2**29; import signal; signal.pause()"
    )
    done = child(tmp_path, "-c", code)
    assert done.stdout.split() == ["1000", "300"]
    assert done.returncode == 1
    assert done.stderr == "volcast: drift needs more memory: raise --memory-mb, which is 300\n"


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--symbols", "BTCUSDT,ETHUSDT"], 2, "one symbol at a time"),
        (["--study", "2024-01-01..2025-01-01"], 2, "--study goes with --candles"),
        (["--out", "nowhere/drift.html"], 1, "make it first"),
        (["--data-dir", "nowhere"], 1, "no journal"),
    ],
)
def test_what_the_command_cannot_do_it_says_in_one_line(
    tmp_path: Path, arguments: list[str], code: int, reason: str
) -> None:
    done = child(tmp_path, "-m", "stream", "drift", *arguments)
    assert done.returncode == code
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert code == 2 or len(done.stderr.splitlines()) == 1


def test_without_evidently_the_command_says_what_to_install(tmp_path: Path, candle_file: Path) -> None:
    # An import system that finds no Evidently, as in an environment without the extra.
    code = (
        "import importlib.util as u, sys; find = u.find_spec;"
        "u.find_spec = lambda name, package=None: None if name == 'evidently' else find(name, package);"
        "from stream.__main__ import main; sys.argv[1:] = ['drift', '--candles', sys.argv[1]]; main()"
    )
    done = child(tmp_path, "-c", code, str(candle_file))
    assert done.returncode == 1
    taken_for, hint = done.stderr.splitlines()
    assert "taken for BTCUSDT" in taken_for
    assert "pip install" in hint


def test_of_a_journal_the_newest_hours_that_a_run_can_use_are_read(tmp_path: Path) -> None:
    from stream.adapters.journal.store import SqliteJournal
    from stream.commands.drift import _of_journal

    candles = of_market("ETHUSDT", detection.MOST_HOURS + 200)
    with contextlib.closing(SqliteJournal(tmp_path)) as journal:
        journal.store_history(candles)
    read = _of_journal(tmp_path, "ETHUSDT", detection.MOST_HOURS)
    expected = candles[-detection.MOST_HOURS :]
    assert [(c.open_time, c.ohlcv) for c in read] == [(c.open_time, c.ohlcv) for c in expected]
    with pytest.raises(RefusedError, match="no candle of BTCUSDT"):
        _of_journal(tmp_path, "BTCUSDT", detection.MOST_HOURS)


def test_the_study_is_told_and_written(tmp_path: Path) -> None:
    candles = simulate(["BTCUSDT"], START, 4_000, 7)["BTCUSDT"]
    rows = [",".join(map(str, (c.open_time, *c.ohlcv))) for c in candles]
    (tmp_path / "long.csv").write_text("open_time,open,high,low,close,volume\n" + "\n".join(rows) + "\n")
    study = ["drift", "--candles", "long.csv", "--study"]
    done = child(tmp_path, "-m", "stream", *study, "2024-01-01..2024-06-10", "--json", "study.json")
    assert done.returncode == 0, done.stderr
    figures = msgspec.json.decode((tmp_path / "study.json").read_bytes())
    assert {p["change"] for p in figures["power"]} >= {"returns × 3", "volume × 3", "weekend like the week"}
    assert f"{100 * figures['quiet'][0]['slow']:.1f} %" in done.stdout
    for period, code, reason in (
        ("2024", 2, "no period such as"),
        ("2024-01-01..2024-02-01", 1, "choose a longer one"),
    ):
        done = child(tmp_path, "-m", "stream", *study, period)
        assert done.returncode == code
        assert reason in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
