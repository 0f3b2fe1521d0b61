"""The model card: what somebody must know before trusting a bundle, as a Markdown file next to it.

Everything in it is read from the bundle's contract, from the figures that `volcast evaluate --json` wrote and from
the ledger of scorings; nothing is typed by hand, so a card cannot describe another model than its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stream import times
from stream.core.forecasting.contract import Contract
from stream.errors import InputError

_MEASURES = ("rmse", "mae", "qlike", "r2")
_HEADLINE = "next_24h"


class CardError(InputError):
    """The evaluation or the ledger cannot be used, or is of another model. The message is one line, with the path and
    the cure."""


def read_evaluation(path: Path, contract: Contract) -> dict[str, Any]:
    """Reads what `volcast evaluate --json` wrote about the run of `contract`; raises `CardError` where it is no
    evaluation, or of another model."""
    try:
        found = json.loads(path.read_bytes())
        scored = found["models"][0]
        learnt = (scored["seed"], tuple(scored["symbols"]), scored["features_version"], scored["trained_from"])
        until, data = int(scored["trained_until"]), scored["data_sha256"]
        figures = found[_HEADLINE]["model"]
        float(figures["rmse"]), float(figures["qlike"])
    except OSError as error:
        raise CardError(f"{path}: cannot be read: {error.strerror}; write it with `volcast evaluate --json`") from None
    except (ValueError, TypeError, LookupError):
        raise CardError(f"{path}: is no evaluation of one model; write it with `volcast evaluate --json`") from None
    training = contract.training
    same = (training.seed, training.symbols, contract.features_version, training.trained_from) == learnt
    at_once = until == training.trained_until
    if not same or until > training.trained_until or at_once != (data == training.data_sha256):
        raise CardError(
            f"{path}: it is of a model that learnt otherwise than this run; evaluate this run, or walk forward from "
            "the same hour with the same pairs and seed"
        )
    return dict(found)


def count_scorings(ledger: Path) -> int:
    """Returns the number of scorings on the test year; 0 where there is no ledger yet."""
    try:
        return sum(1 for line in ledger.read_text().splitlines() if line.strip())
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise CardError(f"{ledger}: the ledger cannot be read: {error.strerror}") from None


def scores(evaluation: dict[str, Any]) -> dict[str, float]:
    """Returns an evaluation's figures as the contract has them, by names such as "2024-01-01.next_24h.model.rmse";
    nulls are left out."""
    since = evaluation["start"]
    parts = {name: evaluation[name] for name in (_HEADLINE, "rolling_24h_next")}
    parts |= {f"horizon_{hours}": by_name for hours, by_name in evaluation["horizons"].items()}
    out = {
        f"{since}.{part}.{name}.{measure}": value
        for part, by_name in parts.items()
        for name, figures in by_name.items()
        for measure, value in figures.items()
    }
    for name, interval in evaluation["intervals"].items():
        out |= {f"{since}.interval.{name}.{k}": interval[k] for k in ("level", "coverage", "width", "winkler")}
    return {name: float(f"{value:.6g}") for name, value in out.items() if value is not None}


def render(
    contract: Contract, evaluation: dict[str, Any], *, version: str, sha256: str, size: int, scorings: int | None
) -> str:
    training = contract.training
    return (
        "\n\n".join(
            [
                f"# Model card: {', '.join(training.symbols[:1])} 1h, version {version}",
                "Forecasts the volatility of the next 24 hours of any liquid pair from its last 721 hourly candles: a "
                "linear model on scale-free inputs, trees on the same inputs, and what an LSTM over 48 hours adds; one "
                "ONNX graph.",
                _facts(contract, sha256, size),
                f"## Scores, {evaluation['start']} to {evaluation['end']}",
                _protocol(contract, evaluation, scorings),
                _table(evaluation),
                _intervals(evaluation),
                "On the folds inside the training range, by parts that learnt only what lies before; weights and "
                "factor were chosen on these rows, so that they are no test:",
                _folds(contract),
                "## Limits",
                _LIMITS,
            ]
        )
        + "\n"
    )


def _facts(contract: Contract, sha256: str, size: int) -> str:
    training = contract.training
    versions = ", ".join(f"{name} {number}" for name, number in sorted(contract.versions.items()))
    rows = [
        ("file", f"{size:,} bytes, sha256 `{sha256}`"),
        ("learnt from", f"{', '.join(training.symbols)}: {training.rows:,} hours"),
        ("range", f"{_hour(training.trained_from)} to {_hour(training.trained_until)}, outcomes included"),
        ("data", f"sha256 `{training.data_sha256}`"),
        ("features", f"version {contract.features_version}, {len(contract.static_names)} static and "
                     f"{len(contract.sequence_names)} × {contract.sequence_hours} h; OHLCV only"),
        ("seed", str(training.seed)),
        ("made with", versions),
    ]  # fmt: skip
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _protocol(contract: Contract, evaluation: dict[str, Any], scorings: int | None) -> str:
    text = f"{evaluation['rows']:,} hourly origins of {evaluation['symbol']}; {evaluation['protocol']['text']}"
    until = evaluation["models"][0]["trained_until"]
    if until < contract.training.trained_until:
        text += (
            f" What was scored had learnt until {_hour(until)}; this bundle is the same recipe fitted again on all "
            f"until {_hour(contract.training.trained_until)}, and no hour is left here to score it on."
        )
    if scorings is not None:
        text += (
            f" How the model is made was chosen on the years before, with an eye on this one; the ledger counts "
            f"{scorings} scoring(s) that touch this year, of any model."
        )
    return text


def _table(evaluation: dict[str, Any]) -> str:
    rolling = evaluation["rolling_24h_next"]
    lines = [
        "| hourly σ | next 24 h: RMSE | MAE | QLIKE | R² | rolling 24 h, one hour on: RMSE |",
        "|---|---|---|---|---|---|",
    ]
    names = list(dict.fromkeys([*evaluation[_HEADLINE], *rolling]))
    for name in names:
        figures = evaluation[_HEADLINE].get(name, {})
        cells = [_number(figures.get(m), 6 if m in ("rmse", "mae") else 4 if m == "qlike" else 3) for m in _MEASURES]
        cells.append(_number(rolling.get(name, {}).get("rmse"), 6))
        lines.append(f"| {f'**{name}**' if name == 'model' else name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _intervals(evaluation: dict[str, Any]) -> str:
    lines = [
        "| interval of the next 24 h | held | weekdays | weekends | worst 30 days | mean ln(high / low) | "
        "interval score × 10³ |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, i in evaluation["intervals"].items():
        days = i["groups"].get("coming 24 h", {})
        cells = [
            _number(i["coverage"], 3),
            *(_number((days.get(kind) or {}).get("coverage"), 3) for kind in ("weekday", "weekend")),
            _number(i["coverage_30d_min"], 2),
            _number(i["width"], 3),
            _number(1e3 * i["winkler"], 2),
        ]
        lines.append(f"| {name}, {i['level']:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _folds(contract: Contract) -> str:
    by_fold: dict[str, dict[str, float]] = {}
    for name, value in contract.scores.items():
        kind, *middle, measure = name.split(".")
        if kind == "folds" and middle[1:] == [_HEADLINE]:
            by_fold.setdefault(middle[0], {})[measure] = value
    lines = ["| fold | RMSE | QLIKE | R² |", "|---|---|---|---|"]
    for fold, figures in by_fold.items():
        cells = [_number(figures.get(m), d) for m, d in (("rmse", 6), ("qlike", 4), ("r2", 3))]
        lines.append(f"| {fold} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


_LIMITS = """\
- It says how much a price will move, never where to. It does not know news, order books or other exchanges.
- Most of it is its linear base; the table has the parts alone, and some of them win.
- A day's σ is estimated from 24 returns: even the true volatility would leave an R² well under 1.
- Other pairs than its first are served with the same weights: their horizons have a level of their own, their regimes
  and their drift reference come from their own past.
- Candles of one hour, Binance spot. Hours that do not exist are not filled: with over 2 of 48 or over 180 of 720
  missing a forecast says `degraded`, with over 12 of the last 24 returns missing there is none.
- The interval adapts, 24 hours late: in the days after a break it holds less than it says."""


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _hour(ms: int) -> str:
    return times.utc(ms)
