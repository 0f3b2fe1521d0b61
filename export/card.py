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
        trained = found["models"][0]["data_sha256"]
        figures = found[_HEADLINE]["model"]
        float(figures["rmse"]), float(figures["qlike"])
    except OSError as error:
        raise CardError(f"{path}: cannot be read: {error.strerror}; write it with `volcast evaluate --json`") from None
    except (ValueError, TypeError, LookupError):
        raise CardError(f"{path}: is no evaluation of one model; write it with `volcast evaluate --json`") from None
    if trained != contract.training.data_sha256:
        raise CardError(f"{path}: it is of a model that learnt from other candles than this run; evaluate this run")
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
                "Forecasts the volatility of the next 24 hours of any liquid pair from its last 768 hourly candles: a "
                "linear model on scale-free inputs and LSTMs over 48 hours that start as nothing, one ONNX graph.",
                _facts(contract, sha256, size),
                f"## Scores, {evaluation['start']} to {evaluation['end']}",
                _protocol(evaluation, scorings),
                _table(evaluation),
                _intervals(evaluation),
                "Walk forward inside the training range, before this model was made:",
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


def _protocol(evaluation: dict[str, Any], scorings: int | None) -> str:
    text = f"{evaluation['rows']:,} hourly origins of {evaluation['symbol']}; {evaluation['protocol']['text']}"
    if scorings is not None:
        text += (
            f" What the model is was chosen on the years before; the ledger counts {scorings} scoring(s) that touch "
            "this year, of any model."
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
- On its headline it is close to a linear model on the same inputs; the table has both.
- A day's σ is estimated from 24 returns: even the true volatility would leave an R² well under 1.
- Pairs it did not learn from are served with the same weights; regimes and drift reference are of the pairs it did.
- Candles of one hour, Binance spot. Hours that do not exist are not filled: with over 2 of 48 missing a forecast says
  `degraded`, with over 12 of the last 24 returns missing there is none.
- The interval adapts, 24 hours late: in the days after a break it holds less than it says."""


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _hour(ms: int) -> str:
    return times.utc(ms)
