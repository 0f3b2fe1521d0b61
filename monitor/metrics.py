"""Turns facts into Prometheus metrics. Every name is in this file, in one registry that the caller owns.

A gauge for an event holds its time, not its age, so that a stuck updater is noticed. All label sets of the configured
symbols exist from the start. docs/contract.md §5 fixes the names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest

from stream import telemetry
from stream.core.deciding.policy import ANNUAL, REGIMES
from stream.core.forecasting.contract import Model
from stream.core.forecasting.decay import DecayKind
from stream.core.forecasting.drift import MEASURES
from stream.core.market.candle import HOUR_MS
from stream.core.messages.schemas import Decision, Forecast
from stream.core.messages.scoreboard import WINDOW_DAYS

# Otherwise each counter has a second series, the time at which it was created: of no use here, and twice the names.
disable_created_metrics()  # type: ignore[no-untyped-call]

_DELIVERY_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30, 60)
_INFERENCE_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1)
_FORECAST_BUCKETS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 30)

HORIZONS = ("next", "1h", "6h", "12h", "24h")
BASELINES = ("persistence", "ewma", "har")
PROVENANCES = ("live", "backfill")
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

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"volcast_{name}", text, labels, registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"volcast_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"volcast_{name}", text, buckets=buckets, registry=self.registry)

        gauge("build_info", "Version of this node.", "version").labels(version).set(1)
        info = gauge("model_info", "The model in use.", "symbol", "version", "features_version", "trained_until")
        trained = gauge("model_trained_until_timestamp_seconds", "Open time of the last candle trained on.", "symbol")
        self.ws_connected = gauge("ws_connected", "1 while the market stream is open.")
        self.ws_connects = counter("ws_connects", "Market stream connections opened.")
        self.ws_disconnects = counter("ws_disconnects", "Market stream connections that ended or failed.", "reason")
        self.ws_messages = counter("ws_messages", "Usable frames received.", "kind")
        self.ws_invalid = counter("ws_invalid_messages", "Frames set aside, by cause.", "reason")
        self.closed = counter("klines_closed", "Closed candles processed.", "symbol", "provenance")
        self.duplicates = counter("kline_duplicates", "Closing frames of a candle already taken.")
        self.out_of_order = counter("kline_out_of_order", "Closing frames older than the newest candle.")
        self.gaps = counter("kline_gaps", "Holes declared: hours the exchange never published.")
        self.quiet = gauge("ws_quiet", "1 while the stream is silent and REST has no news either.")
        self.halted = gauge("symbol_halted", "1 while the exchange does not trade or list the symbol.", "symbol")
        self.revisions = counter("kline_revisions", "Candles that the exchange revised.", "symbol")
        self.reissued = counter("forecast_revisions", "Forecasts issued again with another value.", "symbol")
        self.missing = gauge("kline_missing", "Due candles that are not there yet.", "symbol")
        self.last_close = gauge("kline_last_close_timestamp_seconds", "Close of the newest processed candle.", "symbol")
        self.delivery = histogram("kline_delivery_delay_seconds", "Closing frame after its close.", _DELIVERY_BUCKETS_S)
        self.buffer = gauge("feature_buffer_hours", "Candles in the feature buffer.", "symbol")
        self.inference = histogram("inference_seconds", "Features and model for one round.", _INFERENCE_BUCKETS_S)
        self.forecast_delay = histogram(
            "forecast_delay_seconds", "Closing frame's arrival to the broker's acknowledgement.", _FORECAST_BUCKETS_S
        )
        self.forecasts = counter("forecasts", "Forecasts made durable.", "symbol", "provenance")
        self.forecast_failures = counter("forecast_failures", "Candles whose model answer was no volatility.", "symbol")
        self.volatility = gauge("forecast_volatility_annualized", "Newest forecast.", "symbol", "horizon")
        self.interval = gauge("forecast_interval_annualized", "Its interval.", "symbol", "bound")
        self.realized = gauge("realized_volatility_annualized", "Realized over the last 24 h.", "symbol")
        self.baseline = gauge("baseline_volatility_annualized", "Newest baselines.", "symbol", "baseline")
        self.serving_baseline = gauge("serving_baseline", "1 while a baseline is served for the model.", "symbol")
        self.exposure = gauge("exposure_ratio", "Exposure of the newest decision, 0 to 1.", "symbol")
        self.regime = gauge("regime", "1 for the present regime.", "symbol", "regime")
        self.live_qlike = gauge("live_qlike", "QLIKE of matured forecasts.", "symbol", "model", "window")
        self.live_rmse = gauge("live_rmse", "RMSE of matured forecasts, hourly σ.", "symbol", "model", "window")
        self.live_bias = gauge(
            "live_bias_ratio", "Mean forecast over mean realized, less 1.", "symbol", "model", "window"
        )
        self.live_coverage = gauge("live_coverage_ratio", "Outcomes within the interval.", "symbol", "window")
        self.live_matured = gauge("live_matured_forecasts", "Matured forecasts in the window.", "symbol", "window")
        self.decay_detected = gauge("decay_detected", "1 while the model's errors are not what they were.", "symbol")
        self.decays = counter("decay_alarms", "Changes of the model's errors that were told.", "symbol", "kind")
        self.drift_score = gauge("drift_score", "Normed Wasserstein distance.", "symbol", "feature")
        self.drift_threshold = gauge("drift_threshold", "The calibrated threshold.", "symbol", "feature")
        self.drift_detected = gauge("drift_detected", "1 while the newest run found drift.", "symbol")
        self.drift_fast = gauge("drift_fast_detected", "1 while 10 days differ from the 90 before.", "symbol")
        self.drift_last = gauge("drift_last_run_timestamp_seconds", "End of the newest run.", "symbol")
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

        until = model.contract.training.trained_until
        for symbol in symbols:
            info.labels(symbol, model.version, model.contract.features_version, str(until)).set(1)
            trained.labels(symbol).set(until / 1_000)
            self.missing.labels(symbol)
            self.halted.labels(symbol)
            self.revisions.labels(symbol)
            self.reissued.labels(symbol)
            self.buffer.labels(symbol)
            self.serving_baseline.labels(symbol).set(0)
            self.forecast_failures.labels(symbol)
            self.drift_detected.labels(symbol)
            self.drift_fast.labels(symbol)
            self.decay_detected.labels(symbol)
            for kind in get_args(DecayKind):
                self.decays.labels(symbol, kind)
            for days in WINDOW_DAYS:
                self.live_matured.labels(symbol, f"{days}d").set(0)
            for provenance in PROVENANCES:
                self.closed.labels(symbol, provenance)
                self.forecasts.labels(symbol, provenance)
            for regime in REGIMES:
                self.regime.labels(symbol, regime)
            for feature in MEASURES:
                threshold = model.contract.reference[feature].threshold
                self.drift_threshold.labels(symbol, feature).set(threshold)
        for reason in DISCONNECTS:
            self.ws_disconnects.labels(reason)
        for reason in REJECTIONS:
            self.ws_invalid.labels(reason)
        for kind in ("kline", "kline_closed", "reply", "server_shutdown"):
            self.ws_messages.labels(kind)
        self._handlers: dict[type[telemetry.Fact], Callable[[Any], None]] = {
            telemetry.FeedConnected: self._feed_connected,
            telemetry.FeedDisconnected: self._feed_disconnected,
            telemetry.FrameReceived: lambda f: self.ws_messages.labels(f.kind).inc(),
            telemetry.FrameRejected: lambda f: self.ws_invalid.labels(f.reason).inc(),
            telemetry.CandleDelivered: lambda f: self.delivery.observe(max(0.0, f.delay_s)),
            telemetry.CandleRepeated: lambda f: (self.out_of_order if f.out_of_order else self.duplicates).inc(),
            telemetry.CandleProcessed: self._candle,
            telemetry.Resumed: self._resumed,
            telemetry.GapDeclared: lambda f: self.gaps.inc(),
            telemetry.FeedQuiet: lambda f: self.quiet.set(f.quiet),
            telemetry.TradingObserved: lambda f: self.halted.labels(f.symbol).set(f.halted),
            telemetry.CandleRevised: lambda f: self.revisions.labels(f.symbol).inc(),
            telemetry.ForecastRevised: self._revised,
            telemetry.MissingCounted: lambda f: self.missing.labels(f.symbol).set(f.hours),
            telemetry.WarmupProgressed: lambda f: self.ready.set(f.ready),
            telemetry.Inferred: lambda f: self.inference.observe(f.seconds),
            telemetry.ForecastCommitted: self._forecast,
            telemetry.ScoreChanged: self._score,
            telemetry.DecayFound: lambda f: self.decays.labels(f.decay.symbol, f.decay.kind).inc(),
            telemetry.ForecastFailed: lambda f: self.forecast_failures.labels(f.symbol).inc(),
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
        return generate_latest(self.registry)

    def _feed_connected(self, fact: telemetry.FeedConnected) -> None:
        self.ws_connects.inc()
        self.ws_connected.set(1)

    def _feed_disconnected(self, fact: telemetry.FeedDisconnected) -> None:
        self.ws_disconnects.labels(fact.reason).inc()
        self.ws_connected.set(fact.still_open)

    def _candle(self, fact: telemetry.CandleProcessed) -> None:
        self.closed.labels(fact.symbol, fact.provenance).inc()
        self._took(fact)

    def _resumed(self, fact: telemetry.Resumed) -> None:
        """Sets gauges to what they were before the restart; counts nothing twice."""
        self._took(fact)
        if fact.forecast is not None and fact.decision is not None:
            self._show(fact.forecast, fact.decision)

    def _took(self, fact: telemetry.CandleProcessed | telemetry.Resumed) -> None:
        self.last_close.labels(fact.symbol).set((fact.open_time + HOUR_MS) / 1_000)
        self.buffer.labels(fact.symbol).set(fact.buffer_hours)

    def _forecast(self, fact: telemetry.ForecastCommitted) -> None:
        self.forecasts.labels(fact.forecast.symbol, fact.forecast.provenance).inc()
        self._show(fact.forecast, fact.decision)

    def _revised(self, fact: telemetry.ForecastRevised) -> None:
        self.reissued.labels(fact.forecast.symbol).inc()
        if fact.newest:
            self._show(fact.forecast, fact.decision)

    def _show(self, forecast: Forecast, decision: Decision) -> None:
        symbol = forecast.symbol
        self.volatility.labels(symbol, "next").set(forecast.volatility.annualized)
        for horizon in forecast.horizons:
            self.volatility.labels(symbol, f"{horizon.hours}h").set(horizon.hourly * ANNUAL)
        self.interval.labels(symbol, "low").set(forecast.volatility.low * ANNUAL)
        self.interval.labels(symbol, "high").set(forecast.volatility.high * ANNUAL)
        self.realized.labels(symbol).set(forecast.realized_24h * ANNUAL)
        for name in BASELINES:
            self.baseline.labels(symbol, name).set(getattr(forecast.baselines, name) * ANNUAL)
        self.serving_baseline.labels(symbol).set(forecast.serving != "model")
        self.exposure.labels(symbol).set(decision.exposure)
        for regime in REGIMES:
            self.regime.labels(symbol, regime).set(regime == decision.regime)

    def _score(self, fact: telemetry.ScoreChanged) -> None:
        score = fact.score
        self.decay_detected.labels(score.symbol).set(score.decay.detected)
        for w in score.windows:
            window = f"{w.days}d"
            self.live_matured.labels(score.symbol, window).set(w.matured)
            self.live_qlike.labels(score.symbol, w.model, window).set(w.qlike)
            self.live_rmse.labels(score.symbol, w.model, window).set(w.rmse)
            self.live_bias.labels(score.symbol, w.model, window).set(w.bias_ratio)
            if w.coverage is not None:
                self.live_coverage.labels(score.symbol, window).set(w.coverage)

    def _storage(self, fact: telemetry.StorageMeasured) -> None:
        self.journal_bytes.set(fact.journal_bytes)
        self.free_bytes.set(fact.free_bytes)

    def _drift(self, fact: telemetry.DriftFinished) -> None:
        drift = fact.drift
        self.drift_runs.inc()
        self.drift_detected.labels(drift.symbol).set(drift.detected)
        self.drift_fast.labels(drift.symbol).set(drift.fast is not None and drift.fast.detected)
        self.drift_last.labels(drift.symbol).set(drift.issued_at / 1_000)
        for feature in drift.features:
            self.drift_score.labels(drift.symbol, feature.feature).set(feature.score)
            self.drift_threshold.labels(drift.symbol, feature.feature).set(feature.threshold)
