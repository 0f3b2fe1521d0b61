"""stream.core.market.binance against mutated frames: it never crashes, and accepts only what the frame contains.

A digit changed into another makes a different, plausible frame, which nothing can detect. So the oracle is another
decoder, the standard library's: whatever is accepted must be a whole candle by every rule, with the values that it
decodes too.
"""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import REAL_DATA

from stream.core.market.binance import KlineUpdate, WireError, decode_frame, decode_klines
from stream.core.market.candle import HOUR_MS, Candle, check, to_ms
from stream.testing.wire import combined, kline_payload, kline_row

OPEN_MS = 1_704_067_200_000

#: Every reason for which a frame is set aside: the labels of `volcast_ws_invalid_messages_total`.
CAUSES = {
    "not_json_object", "unknown_event", "kline_fields", "interval", "symbol", "off_grid", "time_range",
    "closed_early", "not_finite", "price_range", "volume_range", "trades_range", "ohlc_order",
}  # fmt: skip

#: What a value may turn into: other types, other sizes, texts that some parsers take for numbers.
NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2**63, -(2**70), 1e400, -0.0, "", "0", "-1", "NaN", "nan", "Infinity", "-inf", "1e999",
    "1e-400", "0x10", "1_000", " 42000.5", "42000,5", "42000.5.1", "١٢", "kline", [], {}, [1], {"x": 1}, "\x00",
    "x" * 500,
]  # fmt: skip


def closed_frames() -> list[bytes]:
    """Returns frames of the shipped exchange: raw and combined, forming and closed."""
    candle = Candle(
        "BTCUSDT", OPEN_MS, 42_000.1, 42_100.25, 41_900.0, 42_050.5, 1_234.56789, 51_900_000.125, 99_000, 600.5
    )
    closed = kline_payload(candle, candle.close_time + 80, True)
    forming = kline_payload(candle, candle.open_time + 2_000, False)
    return [closed, forming, combined("BTCUSDT", closed)]


def recorded_frames() -> list[bytes]:
    """Returns 1m frames that the real exchange sent, as they are and as if their candle were the whole hour."""
    path = REAL_DATA / "ws_kline_samples.jsonl"
    if not path.exists():
        pytest.skip(f"real data are absent: {path.name} is not in VOLCAST_REAL_DATA or ../shared/data")
    frames = [line.encode() for line in path.read_text(encoding="utf-8").splitlines() if line]
    for line in list(frames):
        message = json.loads(line)
        event = message.get("data", message)
        kline = event["k"]
        opened = int(kline["t"]) // HOUR_MS * HOUR_MS
        event["E"] += opened + HOUR_MS - 1 - kline["T"]
        kline.update(i="1h", t=opened, T=opened + HOUR_MS - 1)
        frames.append(json.dumps(message, separators=(",", ":")).encode())
    return frames


def mutate(rng: random.Random, frames: list[bytes]) -> bytes:
    """Returns one frame with up to four things wrong: in its bytes, in its values, or in its shape."""
    frame = rng.choice(frames)
    for _ in range(rng.randint(1, 4)):
        frame = rng.choice((_bytes, _digit, _value, _value, _keys, _splice))(rng, frame, frames)
    return frame


def _bytes(rng: random.Random, frame: bytes, frames: list[bytes]) -> bytes:
    at = rng.randrange(len(frame) + 1)
    kind = rng.randrange(4)
    if kind == 0:
        return frame[:at]
    cut = rng.choice((0, 1, 1, 3, 40))
    return frame[:at] + (b"" if kind == 1 else rng.randbytes(rng.choice((1, 1, 2, 30)))) + frame[at + cut :]


def _digit(rng: random.Random, frame: bytes, frames: list[bytes]) -> bytes:
    digits = [i for i, byte in enumerate(frame) if 48 <= byte <= 57]
    if not digits:
        return frame
    at = rng.choice(digits)
    return frame[:at] + rng.choice((b"0", b"9", b"-", b".", b"e", b"", b"00000")) + frame[at + 1 :]


def _splice(rng: random.Random, frame: bytes, frames: list[bytes]) -> bytes:
    other = rng.choice(frames)
    return frame[: rng.randrange(len(frame) + 1)] + other[rng.randrange(len(other)) :]


def _parsed(frame: bytes) -> tuple[Any, dict[str, Any]] | None:
    """Returns the message twice, once as the object to change; None where it is no JSON object."""
    try:
        message = json.loads(frame)
    except (ValueError, RecursionError):
        return None
    return (message, message) if isinstance(message, dict) and message else None


def _inner(rng: random.Random, message: dict[str, Any]) -> dict[str, Any]:
    while inner := [v for v in message.values() if isinstance(v, dict) and v]:
        if rng.random() < 0.2:
            break
        message = rng.choice(inner)
    return message


def _value(rng: random.Random, frame: bytes, frames: list[bytes]) -> bytes:
    parsed = _parsed(frame)
    if parsed is None:
        return frame
    message, whole = parsed
    target = _inner(rng, whole)
    key = rng.choice(list(target))
    choice = rng.random()
    if choice < 0.6:
        target[key] = rng.choice(NASTY)
    elif choice < 0.8:
        # The value of another key: a high for the low, a volume for the price, an end for the beginning.
        target[key] = target[rng.choice(list(target))]
    else:
        value = target[key]
        target[key] = str(value) if rng.random() < 0.5 else [value]
    return json.dumps(message).encode()


def _keys(rng: random.Random, frame: bytes, frames: list[bytes]) -> bytes:
    parsed = _parsed(frame)
    if parsed is None:
        return frame
    message, whole = parsed
    target = _inner(rng, whole)
    key = rng.choice(list(target))
    kind = rng.randrange(4)
    if kind == 0:
        del target[key]
    elif kind == 1:
        target[key.swapcase()] = target.pop(key)
    elif kind == 2:
        target[rng.choice(("X", "new", "data", "id", "code", "error"))] = rng.choice(NASTY)
    else:
        # The same key twice: decoders must agree about which one counts.
        text = json.dumps(message)
        return text.replace(f'"{key}"', f'"{key}": {json.dumps(rng.choice(NASTY))}, "{key}"', 1).encode()
    return json.dumps(message).encode()


def verdict(frame: bytes) -> str | None:
    """Returns the reason for which a frame is set aside; None where it is accepted, which is asserted to be right."""
    decoded, cause = None, None
    try:
        decoded = decode_frame(frame)
    except WireError as error:
        cause = error.reason
    assert cause is None or cause in CAUSES
    if isinstance(decoded, KlineUpdate):
        assert_true(frame, decoded)
    return cause


def _read(data: bytes) -> Any:
    # The bytes of a field that is not decoded need not be text.
    return json.loads(data.decode(errors="replace"))


def _whole(value: Any) -> int:
    """Returns a count, to the precision of a double where it is not written as an integer."""
    number = value if isinstance(value, int) else float(value)
    assert number == int(number)
    return int(number)


def assert_true(frame: bytes, decoded: KlineUpdate) -> None:
    candle = check(decoded.candle)
    message = _read(frame)
    event = message["data"] if message.get("data") is not None else message
    k = event["k"]
    assert candle.symbol == k["s"] == event["s"]
    assert k["i"] == "1h"
    assert candle.open_time == to_ms(_whole(k["t"]))
    assert candle.close_time == to_ms(_whole(k["T"]))
    assert decoded.event_time == to_ms(_whole(event["E"]))
    assert candle.ohlcv == tuple(float(k[name]) for name in "ohlcv")
    assert (candle.quote_volume, candle.taker_buy_base) == (float(k["q"]), float(k["V"]))
    assert candle.trades == _whole(k["n"])
    assert decoded.closed is (str(k["x"]).lower() in ("true", "1"))
    assert not decoded.closed or decoded.event_time >= candle.close_time


@settings(max_examples=300)
@given(seed=st.integers(0, 2**48))
def test_mutated_frames_are_refused_by_cause_or_understood_rightly(seed: int) -> None:
    rng, frames = random.Random(seed), closed_frames()
    for _ in range(10):
        verdict(mutate(rng, frames))


@pytest.mark.real_data
@settings(max_examples=300)
@given(seed=st.integers(0, 2**48))
def test_mutated_real_frames_are_refused_by_cause_or_understood_rightly(seed: int) -> None:
    rng, frames = random.Random(seed), recorded_frames()[-40:]
    for _ in range(10):
        verdict(mutate(rng, frames))


@settings(max_examples=300)
@given(noise=st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
def test_noise_is_refused(noise: bytes) -> None:
    assert verdict(noise) in (*CAUSES, None)


@settings(max_examples=200)
@given(seed=st.integers(0, 2**48))
def test_mutated_rows_of_rest_are_set_aside_one_by_one_or_kept_as_they_are(seed: int) -> None:
    rng = random.Random(seed)
    candles = [Candle("BTCUSDT", OPEN_MS + h * HOUR_MS, 10.5, 12.0, 9.0, 11.0, 3.0, 33.0, 5, 1.0) for h in range(5)]
    body = msgspec.json.encode([kline_row(c) for c in candles])
    for _ in range(10):
        rows = json.loads(body)
        row = rng.choice(rows)
        for _ in range(rng.randint(1, 3)):
            row[rng.randrange(len(row))] = rng.choice([*NASTY, row[rng.randrange(len(row))]])
        mutated = _bytes(rng, body, []) if rng.random() < 0.3 else json.dumps(rows).encode()
        page, cause = None, ""
        try:
            page = decode_klines(mutated, "BTCUSDT", OPEN_MS + 99 * HOUR_MS)
        except WireError as error:
            cause = error.reason
        if page is None:
            assert cause == "klines_body"
            continue
        assert len(page.candles) + len(page.rejected) + page.forming == page.rows
        assert set(page.rejected) <= CAUSES | {"row_order"}
        times = [c.open_time for c in page.candles]
        assert times == sorted(set(times))
        for candle in page.candles:
            (row,) = [r for r in _read(mutated) if Decimal(str(r[0])) == candle.open_time][:1]
            assert check(candle).ohlcv == tuple(float(x) for x in row[1:6])
