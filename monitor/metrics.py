"""Turns facts into Prometheus metrics. Every name is in this file, in one registry that the caller owns.

A gauge for an event holds its time, not its age, so that a stuck updater is noticed. Counters and states of the
configured symbols exist from the start, other values as soon as there is one. docs/contract.md §5 fixes the names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from monitor.by_symbol import BySymbol, Family, Form
from stream import telemetry
from stream.core.deciding.policy import ANNUAL, REGIMES
from stream.core.forecasting.contract import Model
from stream.core.forecasting.decay import DecayKind
from stream.core.forecasting.drift import MEASURES
from stream.core.market.candle import HOUR_MS
from stream.core.messages.schemas import Decision, Forecast
from stream.core.messages.scoreboard import FORECASTERS, WINDOW_DAYS

# Otherwise each counter has a second series, the time at which it was created: of no use here, and twice the names.
disable_created_metrics()  # type: ignore[no-untyped-call]

_DELIVERY_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30, 60)
_INFERENCE_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1)
_FORECAST_BUCKETS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 30)

HORIZONS = ("next", "1h", "6h", "12h", "24h")
BASELINES = ("persistence", "ewma", "har")
PROVENANCES = ("live", "backfill")
WINDOWS = tuple(f"{days}d" for days in WINDOW_DAYS)
#: The known causes; the feed reports others as `http_other` and `closed_other`.
DISCONNECTS = (
    *("stall", "unreachable", "connection_lost", "rotated"),
    *(f"closed_{code}" for code in ("1000", "1001", "1006", "1008", "1011", "1012", "other")),
    *(f"http_{status}" for status in ("301", "302", "307", "308", "403", "404", "418", "429", "451")),
    *(f"http_{status}" for status in ("500", "502", "503", "other")),
)
#: The `reason` of every `WireError` that decoding a frame can raise.
REJECTIONS = (
    *("not_json_object", "unknown_event", "kline_fields", "interval", "symbol", "off_grid", "time_range"),
    *("closed_early", "not_finite", "price_range", "volume_range", "trades_range", "ohlc_order"),
)


class Metrics:
    """An observer (`stream.telemetry.Observer`) with a registry. Not shared between nodes."""

    def __init__(self, *, version: str, symbols: Sequence[str], model: Model) -> None:
        self.registry = CollectorRegistry()
        #: The labels of each metric, by its name without `_total`.
        self.labels: dict[str, tuple[str, ...]] = {}
        self._of_node: dict[str, Collector] = {}
        self._by_symbol = BySymbol(symbols, self.registry)

        # --- metrics of the node: prometheus_client's own -------------------------------------------------------

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            made = Gauge(f"volcast_{name}", text, labels, registry=self.registry)
            self.labels[f"volcast_{name}"] = labels
            self._of_node[f"volcast_{name}"] = made
            return made

        def counter(name: str, text: str, *labels: str) -> Counter:
            made = Counter(f"volcast_{name}", text, labels, registry=self.registry)
            self.labels[f"volcast_{name}"] = labels
            self._of_node[f"volcast_{name}_total"] = made
            return made

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            made = Histogram(f"volcast_{name}", text, buckets=buckets, registry=self.registry)
            self.labels[f"volcast_{name}"] = ()
            self._of_node[f"volcast_{name}"] = made
            return made

        # --- metrics with a value for each symbol -----------------------------------------------------------------
        # `for_all`: there is one for every symbol, however many there are. Alerts read these, or people in any case.

        def each(
            kind: str,
            form: Form,
            initial: float,
            name: str,
            text: str,
            labels: Mapping[str, Sequence[str]] | None = None,
            *,
            for_all: bool = False,
        ) -> Family:
            labels = labels or {}
            self.labels[f"volcast_{name}"] = ("symbol", *labels)
            return self._by_symbol.add(
                f"volcast_{name}", text, labels, kind=kind, form=form, initial=initial, for_all=for_all
            )

        flag, size = partial(each, "gauge", Form.FLAG, 0.0), partial(each, "gauge", Form.COUNT, 0.0)
        time, number = partial(each, "gauge", Form.TIME, math.nan), partial(each, "gauge", Form.NUMBER, math.nan)
        total = partial(each, "counter", Form.COUNT, 0.0)

        gauge("build_info", "Version of this node.", "version").labels(version).set(1)
        which = ("version", "features_version", "trained_until")
        self.model_info = flag("model_info", "The model in use.", dict.fromkeys(which, ("",)))
        self.trained_until = time("model_trained_until_timestamp_seconds", "Open time of the last candle trained on.")
        self.ws_connected = gauge("ws_connected", "1 while the market stream is open.")
        self.ws_connects = counter("ws_connects", "Market stream connections opened.")
        self.ws_disconnects = counter("ws_disconnects", "Market stream connections that ended or failed.", "reason")
        self.ws_messages = counter("ws_messages", "Usable frames received.", "kind")
        self.ws_invalid = counter("ws_invalid_messages", "Frames set aside, by cause.", "reason")
        self.closed = total("klines_closed", "Closed candles processed.", {"provenance": PROVENANCES}, for_all=True)
        self.duplicates = counter("kline_duplicates", "Closing frames of a candle already taken.")
        self.out_of_order = counter("kline_out_of_order", "Closing frames older than the newest candle.")
        self.gaps = counter("kline_gaps", "Holes declared: hours the exchange never published.")
        self.quiet = gauge("ws_quiet", "1 while the stream is silent and REST has no news either.")
        self.halted = flag("symbol_halted", "1 while the exchange does not trade or list the symbol.", for_all=True)
        self.revisions = total("kline_revisions", "Candles that the exchange revised.")
        self.reissued = total("forecast_revisions", "Forecasts issued again with another value.")
        self.missing = size("kline_missing", "Due candles that are not there yet.", for_all=True)
        self.last_close = time(
            "kline_last_close_timestamp_seconds", "Close of the newest processed candle.", for_all=True
        )
        self.delivery = histogram("kline_delivery_delay_seconds", "Closing frame after its close.", _DELIVERY_BUCKETS_S)
        self.buffer = size("feature_buffer_hours", "Candles in the feature buffer.")
        self.inference = histogram("inference_seconds", "Features and model for one round.", _INFERENCE_BUCKETS_S)
        self.forecast_delay = histogram(
            "forecast_delay_seconds", "Closing frame's arrival to the broker's acknowledgement.", _FORECAST_BUCKETS_S
        )
        self.forecasts = total("forecasts", "Forecasts made durable.", {"provenance": PROVENANCES}, for_all=True)
        self.forecast_failures = total(
            "forecast_failures", "Candles whose model answer was no volatility.", for_all=True
        )
        self.volatility = number("forecast_volatility_annualized", "Newest forecast.", {"horizon": HORIZONS})
        self.volatility.write_for_all("next")
        self.interval = number("forecast_interval_annualized", "Its interval.", {"bound": ("low", "high")})
        self.realized = number("realized_volatility_annualized", "Realized over the last 24 h.")
        self.baseline = number("baseline_volatility_annualized", "Newest baselines.", {"baseline": BASELINES})
        self.serving_baseline = flag("serving_baseline", "1 while a baseline is served for the model.", for_all=True)
        self.exposure = number("exposure_ratio", "Exposure of the newest decision, 0 to 1.", for_all=True)
        self.regime = each("gauge", Form.FLAG, math.nan, "regime", "1 for the present regime.", {"regime": REGIMES})
        of_models, of_windows = {"model": FORECASTERS, "window": WINDOWS}, {"window": WINDOWS}
        self.live_qlike = number("live_qlike", "QLIKE of matured forecasts.", of_models)
        compared = {"model": ("shadow", "model"), "window": WINDOWS}
        self.shadow_qlike = number("shadow_qlike", "QLIKE of a shadow, and of the model in use.", compared)
        self.live_rmse = number("live_rmse", "RMSE of matured forecasts, hourly σ.", of_models)
        self.live_bias = number("live_bias_ratio", "Mean forecast over mean realized, less 1.", of_models)
        self.live_coverage = number("live_coverage_ratio", "Outcomes within the interval.", of_windows)
        self.live_matured = size("live_matured_forecasts", "Matured forecasts in the window.", of_windows)
        self.decay_detected = flag("decay_detected", "1 while the model's errors are not what they were.", for_all=True)
        kinds = {"kind": get_args(DecayKind)}
        self.decays = total("decay_alarms", "Changes of the model's errors that were told.", kinds)
        self.drift_score = number("drift_score", "Normed Wasserstein distance.", {"feature": MEASURES})
        self.drift_threshold = number("drift_threshold", "The calibrated threshold.", {"feature": MEASURES})
        self.drift_detected = flag("drift_detected", "1 while the newest run found drift.", for_all=True)
        self.drift_fast = flag("drift_fast_detected", "1 while 10 days differ from the 90 before.", for_all=True)
        self.drift_last = time("drift_last_run_timestamp_seconds", "End of the newest run.", for_all=True)
        self.drift_runs = counter("drift_runs", "Drift runs that finished.")
        self.drift_failures = counter("drift_failures", "Drift runs that failed.")
        self.mqtt_connected = gauge("mqtt_connected", "1 while the broker is connected.")
        self.publishes = counter("mqtt_publishes", "Messages the broker acknowledged.")
        self.publish_failures = counter("mqtt_publish_failures", "Messages it did not acknowledge; they are kept.")
        self.outbox = gauge("outbox_messages", "Events waiting for the broker's acknowledgement.")
        self.journal_bytes = gauge("journal_bytes", "Size of the journal's files.")
        self.commit_failures = counter("journal_commit_failures", "Commits that failed; they are tried again.")
        self.free_bytes = gauge("data_dir_free_bytes", "Free space where the journal is.")
        self.backfills = counter("backfill_requests", "Questions to REST.")
        self.backfill_failures = counter("backfill_failures", "Questions that REST did not answer.")
        self.weight = gauge("rest_used_weight_ratio", "Used share of the exchange's request weight.")
        self.ready = gauge("warmup_symbols_ready", "Symbols that have their history and their newest forecast.")
        self.lag = gauge("event_loop_lag_seconds", "How late the event loop was at the last probe.")
        self.offset = gauge("clock_offset_seconds", "The exchange's clock minus ours.")

        self._symbols = tuple(symbols)
        self._model(model)
        for reason in DISCONNECTS:
            self.ws_disconnects.labels(reason)
        for reason in REJECTIONS:
            self.ws_invalid.labels(reason)
        # Each frame is counted, and to look its counter up takes longer than to count.
        messages = cache(self.ws_messages.labels)
        for kind in ("kline", "kline_closed", "reply", "server_shutdown"):
            messages(kind)
        self._handlers: dict[type[telemetry.Fact], Callable[[Any], None]] = {
            telemetry.FeedConnected: self._feed_connected,
            telemetry.FeedDisconnected: self._feed_disconnected,
            telemetry.FrameReceived: lambda f: messages(f.kind).inc(),
            telemetry.FrameRejected: lambda f: self.ws_invalid.labels(f.reason).inc(),
            telemetry.CandleDelivered: lambda f: self.delivery.observe(max(0.0, f.delay_s)),
            telemetry.CandleRepeated: lambda f: (self.out_of_order if f.out_of_order else self.duplicates).inc(),
            telemetry.CandleProcessed: self._candle,
            telemetry.Resumed: self._resumed,
            telemetry.GapDeclared: lambda f: self.gaps.inc(),
            telemetry.FeedQuiet: lambda f: self.quiet.set(f.quiet),
            telemetry.TradingObserved: lambda f: self.halted.set(f.symbol, f.halted),
            telemetry.CandleRevised: lambda f: self.revisions.inc(f.symbol),
            telemetry.ForecastRevised: self._revised,
            telemetry.MissingCounted: lambda f: self.missing.set(f.symbol, f.hours),
            telemetry.WarmupProgressed: lambda f: self.ready.set(f.ready),
            telemetry.Inferred: lambda f: self.inference.observe(f.seconds),
            telemetry.ForecastCommitted: self._forecast,
            telemetry.ScoreChanged: self._score,
            telemetry.ShadowScored: self._shadow,
            telemetry.DecayFound: lambda f: self.decays.inc(f.decay.symbol, f.decay.kind),
            telemetry.ModelReplaced: lambda f: self._model(f.model),
            telemetry.ForecastFailed: lambda f: self.forecast_failures.inc(f.symbol),
            telemetry.ForecastAcknowledged: lambda f: self.forecast_delay.observe(max(0.0, f.delay_s)),
            telemetry.BrokerConnected: lambda f: self.mqtt_connected.set(1),
            telemetry.BrokerLost: lambda f: self.mqtt_connected.set(0),
            telemetry.Published: lambda f: self.publishes.inc(),
            telemetry.PublishFailed: lambda f: self.publish_failures.inc(),
            telemetry.OutboxCounted: lambda f: self.outbox.set(f.messages),
            telemetry.BackfillRequested: lambda f: self.backfills.inc(),
            telemetry.BackfillFailed: lambda f: self.backfill_failures.inc(),
            telemetry.WeightUsed: lambda f: self.weight.set(f.ratio),
            telemetry.CommitFailed: lambda f: self.commit_failures.inc(),
            telemetry.StorageMeasured: self._storage,
            telemetry.LoopLagged: lambda f: self.lag.set(f.seconds),
            telemetry.ClockCompared: lambda f: self.offset.set(f.offset_s),
            telemetry.DriftFinished: self._drift,
            telemetry.DriftFailed: lambda f: self.drift_failures.inc(),
        }

    def __call__(self, fact: telemetry.Fact) -> None:
        handler = self._handlers.get(type(fact))
        if handler is not None:
            handler(fact)

    def text(self) -> bytes:
        """Returns the metrics in Prometheus text format."""
        return b"".join(self.chunks())

    def chunks(self, names: Collection[str] | None = None) -> Iterator[bytes]:
        """Yields the text in parts, each of which takes a few milliseconds at most; the first call takes all values.

        The text of more symbols than `BySymbol` writes in full lacks some of their lines. `names`, which are those of
        docs/metrics.md, chooses metrics: of these it has every line.
        """
        of_symbols = self._by_symbol.chunks(names)
        yield generate_latest(_Some(c for n, c in self._of_node.items() if names is None or n in names))
        yield from of_symbols

    def _model(self, model: Model) -> None:
        contract = model.contract
        until = contract.training.trained_until
        self.model_info.become(1, model.version, str(contract.features_version), str(until))
        for symbol in self._symbols:
            self.trained_until.set(symbol, until / 1_000)
            for feature in MEASURES:
                self.drift_threshold.set(symbol, contract.reference[feature].threshold, feature)

    def _feed_connected(self, fact: telemetry.FeedConnected) -> None:
        self.ws_connects.inc()
        self.ws_connected.set(1)

    def _feed_disconnected(self, fact: telemetry.FeedDisconnected) -> None:
        self.ws_disconnects.labels(fact.reason).inc()
        self.ws_connected.set(fact.still_open)

    def _candle(self, fact: telemetry.CandleProcessed) -> None:
        self.closed.inc(fact.symbol, fact.provenance)
        self._took(fact)

    def _resumed(self, fact: telemetry.Resumed) -> None:
        """Sets gauges to what they were before the restart; counts nothing twice."""
        self._took(fact)
        if fact.forecast is not None and fact.decision is not None:
            self._show(fact.forecast, fact.decision)

    def _took(self, fact: telemetry.CandleProcessed | telemetry.Resumed) -> None:
        self.last_close.set(fact.symbol, (fact.open_time + HOUR_MS) / 1_000)
        self.buffer.set(fact.symbol, fact.buffer_hours)

    def _forecast(self, fact: telemetry.ForecastCommitted) -> None:
        self.forecasts.inc(fact.forecast.symbol, fact.forecast.provenance)
        self._show(fact.forecast, fact.decision)

    def _revised(self, fact: telemetry.ForecastRevised) -> None:
        self.reissued.inc(fact.forecast.symbol)
        if fact.newest:
            self._show(fact.forecast, fact.decision)

    def _show(self, forecast: Forecast, decision: Decision) -> None:
        symbol = forecast.symbol
        self.volatility.set(symbol, forecast.volatility.annualized, "next")
        for horizon in forecast.horizons:
            self.volatility.set(symbol, horizon.hourly * ANNUAL, f"{horizon.hours}h")
        self.interval.set(symbol, forecast.volatility.low * ANNUAL, "low")
        self.interval.set(symbol, forecast.volatility.high * ANNUAL, "high")
        self.realized.set(symbol, forecast.realized_24h * ANNUAL)
        for name in BASELINES:
            self.baseline.set(symbol, getattr(forecast.baselines, name) * ANNUAL, name)
        self.serving_baseline.set(symbol, forecast.serving != "model")
        self.exposure.set(symbol, decision.exposure)
        for regime in REGIMES:
            self.regime.set(symbol, regime == decision.regime, regime)

    def _shadow(self, fact: telemetry.ShadowScored) -> None:
        for w in fact.score.windows:
            self.shadow_qlike.set(fact.score.symbol, w.qlike, "shadow", f"{w.days}d")
            self.shadow_qlike.set(fact.score.symbol, w.model_qlike, "model", f"{w.days}d")

    def _score(self, fact: telemetry.ScoreChanged) -> None:
        score = fact.score
        self.decay_detected.set(score.symbol, score.decay.detected)
        for w in score.windows:
            window = f"{w.days}d"
            self.live_matured.set(score.symbol, w.matured, window)
            self.live_qlike.set(score.symbol, w.qlike, w.model, window)
            self.live_rmse.set(score.symbol, w.rmse, w.model, window)
            self.live_bias.set(score.symbol, w.bias_ratio, w.model, window)
            if w.coverage is not None:
                self.live_coverage.set(score.symbol, w.coverage, window)

    def _storage(self, fact: telemetry.StorageMeasured) -> None:
        self.journal_bytes.set(fact.journal_bytes)
        self.free_bytes.set(fact.free_bytes)

    def _drift(self, fact: telemetry.DriftFinished) -> None:
        drift = fact.drift
        self.drift_runs.inc()
        self.drift_detected.set(drift.symbol, drift.detected)
        self.drift_fast.set(drift.symbol, drift.fast is not None and drift.fast.detected)
        self.drift_last.set(drift.symbol, drift.issued_at / 1_000)
        for feature in drift.features:
            self.drift_score.set(drift.symbol, feature.score, feature.feature)
            self.drift_threshold.set(drift.symbol, feature.threshold, feature.feature)


class _Some:
    """Some collectors of a registry, for prometheus_client to write."""

    def __init__(self, collectors: Iterable[Collector]) -> None:
        self._collectors = collectors

    def collect(self) -> Iterator[Metric]:
        for collector in self._collectors:
            yield from collector.collect()
