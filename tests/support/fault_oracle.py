"""What must hold whatever fault the node has met: journal, tape and messages agree."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream.adapters import predictor as predictors
from stream.adapters.bundles import packaged_model
from stream.adapters.journal.database import FILE_NAME
from stream.adapters.journal.store import SqliteJournal
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import Issued
from stream.core.deciding.policy import Policy
from stream.core.deciding.replay import replay
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.messages import builders
from stream.core.messages.schemas import Decision, Forecast
from stream.testing.exchange import Exchange


def published_by(data_dir: Path) -> dict[tuple[str, int], bytes]:
    if not (data_dir / FILE_NAME).exists():
        return {}
    with contextlib.closing(sqlite3.connect(data_dir / FILE_NAME)) as db:
        return {
            (i, r): p
            for table in ("forecasts", "decisions")
            for i, r, p in db.execute(f"SELECT id, revision, payload FROM {table}")
        }


def limits(exchange: Exchange) -> None:
    found = exchange.limits()
    assert found["broken"] == 0, found
    assert found["control_frames_in_1_s"] <= 5, found
    assert found["connects_in_5_min"] <= 300, found
    assert found["used_weight_in_1_min"] < found["weight_per_minute"] / 2, found


def hold(data_dir: Path, tape: dict[str, list[Candle]], end_ms: int, since: int) -> None:
    """Asserts that the journal agrees with the tape."""
    predictor = predictors.load(packaged_model())
    rules = Rules.of(Policy(), predictor.model.contract)
    with (
        contextlib.closing(SqliteJournal(data_dir, read_only=True)) as journal,
        contextlib.closing(sqlite3.connect(data_dir / FILE_NAME)) as db,
    ):
        assert journal.outbox() == []
        for symbol, series in tape.items():
            whole = [c for c in series if c.open_time < end_ms]
            played = [c for c in whole if c.open_time >= since]
            stored = journal.candles(symbol, since, 2**60)
            assert [(c.open_time, c.ohlcv) for c in stored] == [(c.open_time, c.ohlcv) for c in played]
            there = {c.open_time for c in played}
            missing = {t for t in range(since, played[-1].open_time, HOUR_MS) if t not in there}
            query = "SELECT from_open_time, to_open_time FROM gaps WHERE symbol = ? AND to_open_time >= ?"
            declared = [t for a, b in db.execute(query, (symbol, since)) for t in range(a, b + 1, HOUR_MS)]
            assert sorted(declared) == sorted(missing), symbol
            first = db.execute("SELECT min(open_time) FROM forecasts WHERE symbol = ?", (symbol,)).fetchone()[0]
            assert first is None or first >= since, symbol
            assert not db.execute(
                "SELECT 1 FROM gaps WHERE symbol = ? AND from_open_time < ?", (symbol, since)
            ).fetchall(), symbol
            _values(journal, symbol, whole, since, rules, predictor)


def _values(journal: SqliteJournal, symbol: str, whole: list[Candle], since: int, rules: Rules, predictor: Any) -> None:
    issued = [
        e for _, e in replay(rules, symbol, whole, predictor.model, predictor, since=since) if isinstance(e, Issued)
    ]
    expected_f = [builders.forecast(e, predictor.model, "live", 0) for e in issued]
    expected_d = [builders.decision(e, "live", 0) for e in issued]
    rows_f = [msgspec.json.decode(r, type=Forecast) for r in journal.messages("forecasts", symbol, since, None, 10**6)]
    rows_d = [msgspec.json.decode(r, type=Decision) for r in journal.messages("decisions", symbol, since, None, 10**6)]
    for rows, expected in ((rows_f, expected_f), (rows_d, expected_d)):
        assert [words(m) for m in rows] == [words(m) for m in expected]
        for row, right in zip(rows, expected, strict=True):
            assert numbers(row) == pytest.approx(numbers(right), rel=1e-7, abs=1e-12)


def version_of(bundle: Path) -> str:
    return str(predictors.load(bundle).model.version)


def hold_forecasts(forecasts: Iterable[Forecast], whole: list[Candle]) -> None:
    """Asserts that forecasts of the packaged model agree with a replay of the tape."""
    predictor = predictors.load(packaged_model())
    rules = Rules.of(Policy(), predictor.model.contract)
    by_time = {f.open_time: f for f in forecasts}
    for _, event in replay(rules, whole[0].symbol, whole, predictor.model, predictor, since=min(by_time)):
        if isinstance(event, Issued) and event.prediction.open_time in by_time:
            right = builders.forecast(event, predictor.model, "live", 0)
            found = by_time[event.prediction.open_time]
            assert words(found) == words(right)
            assert numbers(found) == pytest.approx(numbers(right), rel=1e-7, abs=1e-12)


_VARYING = ("issued_at", "provenance", "revision")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, inner in enumerate(value) for k, v in _flat(inner, f"{name}.{i}").items()}
    return {name: value}


def _split(message: Any) -> tuple[dict[str, Any], dict[str, float]]:
    flat = {k: v for k, v in _flat(msgspec.to_builtins(message)).items() if k.lstrip(".") not in _VARYING}
    numbers = {k: v for k, v in flat.items() if isinstance(v, float)}
    return {k: v for k, v in flat.items() if k not in numbers}, numbers


def words(message: Any) -> dict[str, Any]:
    return _split(message)[0]


def numbers(message: Any) -> dict[str, float]:
    return _split(message)[1]
