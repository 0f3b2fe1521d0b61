"""Every message that Volcast publishes, as a typed record, and its encoding.

The fields are fixed with the first release: within a major version only additions. Times are ms, UTC. σ are
hourly unless the name says annualized. NaN and infinity never appear: `encode` refuses them.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from stream.core.forecasting.decay import DecayKind
from stream.core.market.outputs import FeedStateName

CONTENT_TYPE = "application/json"
#: The retained `recent` message stays under this.
RECENT_BYTES = 32 * 1024

NodeStateName = Literal["starting", "ready", "degraded", "stopping", "stopped", "lost"]
Forecaster = Literal["served", "model", "har", "ewma", "persistence"]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What all payloads share: `schema` is `volcast.<name>/<major>`."""

    schema: str


class ModelRef(msgspec.Struct, frozen=True):
    version: str
    sha256: str
    features_version: str
    trained_until: int


class NodeState(Message, frozen=True, kw_only=True):
    schema: str = "volcast.node.state/1"
    instance: str
    state: NodeStateName
    #: Differs for each start of the process, so that a late `lost` of an earlier one is not taken for this one's.
    session: str
    since: int
    reasons: tuple[str, ...] = ()


class NodeInfo(Message, frozen=True, kw_only=True):
    schema: str = "volcast.node.info/1"
    instance: str
    session: str
    version: str
    symbols: tuple[str, ...]
    interval: str = "1h"
    schemas: tuple[str, ...]
    model: ModelRef
    policy: str
    #: "on", or why drift is not measured.
    drift: str


class Volatility(msgspec.Struct, frozen=True):
    hourly: float
    annualized: float
    low: float
    high: float
    level: float


class Horizon(msgspec.Struct, frozen=True):
    hours: int
    hourly: float


class Baselines(msgspec.Struct, frozen=True):
    persistence: float
    ewma: float
    har: float


class Input(msgspec.Struct, frozen=True):
    gaps: int
    quality: Literal["good", "repaired", "degraded"]


class Forecast(Message, frozen=True, kw_only=True):
    schema: str = "volcast.forecast/1"
    id: str
    revision: int
    symbol: str
    interval: str = "1h"
    open_time: int
    close_time: int
    issued_at: int
    valid_until: int
    provenance: Literal["live", "backfill", "replay"]
    volatility: Volatility
    horizons: tuple[Horizon, ...]
    rolling_24h_next: float
    realized_24h: float
    baselines: Baselines
    #: Whose forecast `volatility` is: `har` while the model is behind it (stream/core/forecasting/serving.py).
    serving: Literal["model", "har"] = "model"
    #: The model's forecast for the same hours; null only in messages that an older Volcast left in a journal.
    model_volatility: float | None = None
    model: ModelRef
    input: Input


class ReasonCode(msgspec.Struct, frozen=True):
    code: str
    values: dict[str, float]


class Decision(Message, frozen=True, kw_only=True):
    schema: str = "volcast.decision/1"
    id: str
    revision: int
    forecast_id: str
    symbol: str
    interval: str = "1h"
    open_time: int
    issued_at: int
    valid_until: int
    provenance: Literal["live", "backfill", "replay"]
    regime: Literal["low", "medium", "high"]
    exposure: float
    previous_exposure: float
    action: Literal["hold", "increase", "reduce", "risk_off"]
    target_volatility_annualized: float
    reasons: tuple[ReasonCode, ...]


class Feed(Message, frozen=True, kw_only=True):
    """`from`/`to` are open times of the hours concerned, null where there are none."""

    schema: str = "volcast.feed/1"
    symbol: str
    state: FeedStateName
    since: int
    from_: int | None = msgspec.field(default=None, name="from")
    to: int | None = None
    issued_at: int


class IssuedAs(msgspec.Struct, frozen=True, gc=False):
    """How an hour's forecast and decision were issued: the versions in their ids, the newest revision of both and of
    the score, and the decision's exposures. A node that starts learns from it what others have issued
    (stream/core/messages/revisions.py)."""

    model_version: str
    policy_version: str
    revision: int
    exposure: float
    previous_exposure: float
    score_revision: int = 0


class RecentEntry(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    open_time: int
    volatility: float
    low: float
    high: float
    realized: float | None
    #: Absent if the hour was before the node's first forecast: then the line was never issued.
    issued: IssuedAs | None = None


class Recent(Message, frozen=True, kw_only=True):
    schema: str = "volcast.recent/1"
    symbol: str
    model_version: str
    issued_at: int
    #: The highest revision that any id of this symbol was ever issued with.
    highest_revision: int = 0
    forecasts: tuple[RecentEntry, ...]


class ScoreWindow(msgspec.Struct, frozen=True):
    """Scores of one forecaster's matured forecasts of the last `days`. `served` is what was published, the model's or
    `har`'s; only it has an interval, and `coverage` is null for the others."""

    model: Forecaster
    days: int
    matured: int
    qlike: float
    rmse: float
    #: Mean of forecast less realized, hourly σ, and the same relative to the mean realized.
    bias: float
    bias_ratio: float
    coverage: float | None


class ServingRule(msgspec.Struct, frozen=True):
    """Why the model or `har` is served: the mean daily excess QLIKE of the model over `har`, and the limit."""

    serving: Literal["model", "har"]
    #: Matured days of the last 30; the excess is 0 while there are too few to judge.
    days: int
    excess: float
    limit: float


class DecayState(msgspec.Struct, frozen=True):
    """Where the detectors stand: whether an alarm holds, and since which candle's forecast."""

    detected: bool
    kind: DecayKind | None
    since: int | None


class Score(Message, frozen=True, kw_only=True):
    schema: str = "volcast.score/1"
    symbol: str
    #: Of the newest forecast that has matured; null before one of this model has, and then there are no windows.
    open_time: int | None
    issued_at: int
    model_version: str
    windows: tuple[ScoreWindow, ...]
    rule: ServingRule
    decay: DecayState


class PublishedScore(Score, frozen=True, kw_only=True):
    """A score, and how far the symbol's forecasts have been issued: open time of the newest, 0 before the first, and
    the highest revision of any. This topic never expires, so a node that starts long afterwards knows which ids are
    taken."""

    issued_until: int = 0
    highest_revision: int = 0


class Decay(Message, frozen=True, kw_only=True):
    """The model's errors are not what they were: issued once for a change, with the evidence.

    `statistic` is the cumulative sum that reached `threshold`, in deviations; `mean` is that of the daily value since
    `since`, over `days` days, to be compared with `usual_mean`; `usual_deviation` is the bundle's.
    """

    schema: str = "volcast.decay/1"
    id: str
    symbol: str
    #: Open times of the forecast whose outcome raised the alarm, and of the first one that counts as evidence.
    open_time: int
    since: int
    issued_at: int
    kind: DecayKind
    statistic: float
    threshold: float
    mean: float
    usual_mean: float
    usual_deviation: float
    days: int
    model_version: str


class DriftFeature(msgspec.Struct, frozen=True):
    """`score` is the normed Wasserstein distance; `detected` compares it with the calibrated threshold, and
    `default_detected` with Evidently's default of 0.1."""

    feature: str
    score: float
    threshold: float
    detected: bool
    default_detected: bool


class FastDrift(msgspec.Struct, frozen=True):
    """The newest 10 days against the 90 before them."""

    #: Open times of the first and last hour of the 10 days, and of the first of the 90.
    from_: int = msgspec.field(name="from")
    to: int
    reference_from: int
    rows: int
    detected: bool
    features: tuple[DriftFeature, ...]


class Drift(Message, frozen=True, kw_only=True):
    schema: str = "volcast.drift/1"
    symbol: str
    issued_at: int
    #: Open times of the first and last hour of the current window.
    from_: int = msgspec.field(name="from")
    to: int
    rows: int
    method: str
    detected: bool
    #: Evidently's verdict with its default threshold.
    default_detected: bool
    drifted_share: float
    features: tuple[DriftFeature, ...]
    #: `bundle`: the training range; `own`: 180 days of the symbol's own past; `uncalibrated`: the bundle's, because
    #: there is no such past.
    reference: Literal["bundle", "own", "uncalibrated"]
    #: Null if there are not 100 days of candles that can be measured.
    fast: FastDrift | None
    #: The HTML report's file name in the node's data directory; null if none was written.
    report: str | None
    model_version: str


class Scored(Message, frozen=True, kw_only=True):
    """A forecast that has matured, and what happened in its 24 h."""

    schema: str = "volcast.scored/1"
    id: str
    #: +1 when the exchange revised a candle that the score rests on. Consumers keep the highest per id.
    revision: int = 0
    forecast_id: str
    symbol: str
    open_time: int
    issued_at: int
    volatility: float
    realized: float
    qlike: float
    covered: bool


class GapEvent(Message, frozen=True, kw_only=True):
    """Hours the exchange never published: `opened` when they are declared, `closed` when candles go on."""

    schema: str = "volcast.gap/1"
    id: str
    symbol: str
    state: Literal["opened", "closed"]
    from_: int = msgspec.field(name="from")
    to: int
    hours: int
    issued_at: int


class ModelChanged(Message, frozen=True, kw_only=True):
    schema: str = "volcast.model.changed/1"
    id: str
    symbol: str
    issued_at: int
    previous: str | None
    model: ModelRef
    reason: str


class ModelJudged(Message, frozen=True, kw_only=True):
    schema: str = "volcast.model.judged/1"
    id: str
    symbol: str
    issued_at: int
    because: str
    outcome: str
    champion: str
    challenger: str
    qlike_champion: float
    qlike_challenger: float
    p_better: float | None
    refusals: tuple[str, ...]


def published(kind: type[Message] = Message) -> list[type[Message]]:
    """Returns every kind of message; one that extends another takes its place."""
    return [leaf for each in kind.__subclasses__() for leaf in (published(each) or [each])]


SCHEMAS: tuple[str, ...] = tuple(
    sorted(str(f.default) for kind in published() for f in msgspec.structs.fields(kind) if f.name == "schema")
)

_encoder = msgspec.json.Encoder()


def encode(message: Message) -> bytes:
    """Encodes a message as JSON, UTF-8. Raises `ValueError` if a number is not finite: a defect that must not reach
    subscribers."""
    payload = _encoder.encode(message)
    # A number that is not finite is encoded as null. Looking at every number takes longer than all else that is done
    # for a candle, so only a message with a null too many is looked at.
    pending = _nulls(message)
    if payload.count(b"null") != pending:
        _finite(msgspec.to_builtins(message), message.schema)
    return payload


def _nulls(message: Message) -> int:
    """Returns how many fields of a message are null on purpose, for kinds where counting them is much faster than
    looking at every number; 0 for others."""
    if isinstance(message, Recent):
        return [e.realized for e in message.forecasts].count(None)
    if isinstance(message, Score):
        without = sum(w.coverage is None for w in message.windows)
        return without + (message.decay.kind is None) * 2 + (message.open_time is None)
    return 0


def _finite(value: Any, where: str) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which is no number to publish")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _finite(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            _finite(inner, where)
