"""MQTT topics: which there are, and how they are named. Fixed with the first release."""

from __future__ import annotations

from typing import Literal

ROOT = "volcast/v1"

SymbolTopic = Literal["forecast", "decision", "feed", "recent", "score", "drift"]
EventType = Literal[
    "forecast.issued",
    "decision.issued",
    "forecast.scored",
    "gap.opened",
    "gap.closed",
    "drift.detected",
    "decay.detected",
    "model.changed",
    "model.judged",
]
RETAINED_TOPICS: tuple[SymbolTopic, ...] = ("forecast", "decision", "feed", "recent", "score", "drift")


def node_topic(instance: str, leaf: Literal["state", "info"]) -> str:
    return f"{ROOT}/node/{instance}/{leaf}"


def symbol_topic(symbol: str, leaf: SymbolTopic) -> str:
    return f"{ROOT}/binance/spot/{symbol}/1h/{leaf}"


def event_topic(symbol: str, event: EventType) -> str:
    return f"{ROOT}/binance/spot/{symbol}/1h/event/{event}"
