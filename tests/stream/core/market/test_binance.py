"""stream.core.market.binance: recorded frames, frames of the shipped exchange, and everything that is neither."""

import json
from collections.abc import Callable
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository import REAL_DATA

from stream.core.market import binance
from stream.core.market.binance import (
    KlineUpdate,
    Reply,
    ServerShutdown,
    UnknownSymbolError,
    WireError,
    control,
    decode_exchange_info,
    decode_frame,
    decode_klines,
    decode_time,
    raise_refusal,
    stream_name,
    stream_url,
)
from stream.core.market.candle import HOUR_MS, Candle
from stream.testing.market import simulate_symbol
from stream.testing.wire import combined, kline_payload, kline_row

OPEN_MS = 1_704_067_200_000
CANDLE = Candle("BTCUSDT", OPEN_MS, 42_000.1, 42_100.25, 41_900.0, 42_050.5, 1_234.56789, 51_900_000.125, 99_000, 600.5)

#: Nested deeper than any decoder follows: not a JSON error, but one of the stack.
DEEP = b"[" * 100_000

prices = st.floats(1e-8, 1e8).map(lambda x: max(round(x, 8), 1e-8))


@st.composite
def candles(draw: st.DrawFn) -> Candle:
    low, open_, close, high = sorted(draw(st.lists(prices, min_size=4, max_size=4)))
    if draw(st.booleans()):
        open_, close = close, open_
    volume = round(draw(st.floats(0, 1e12)), 8)
    share = draw(st.floats(0, 1))
    hours = draw(st.integers(0, 500_000))
    symbol = draw(st.sampled_from(["BTCUSDT", "1000SATSUSDT", "这是测试币456"]))
    trades = draw(st.integers(0, 10**9))
    return Candle(
        symbol,
        1_262_304_000_000 + hours * HOUR_MS,
        open_,
        high,
        low,
        close,
        volume,
        volume * close,
        trades,
        volume * share,
    )


def frame(**changes: object) -> bytes:
    """Returns a closing frame with some fields of its kline replaced; a field set to None is left out."""
    event = json.loads(kline_payload(CANDLE, CANDLE.close_time + 80, True))
    event["k"] = {key: value for key, value in {**event["k"], **changes}.items() if value is not None}
    return json.dumps(event).encode()


def reason(data: bytes | str) -> str:
    with pytest.raises(WireError) as caught:
        decode_frame(data)
    return caught.value.reason


# -- the exchange's frames decode to the candle


@given(candles(), st.booleans(), st.booleans(), st.booleans(), st.integers(1, 5_000))
def test_a_frame_gives_back_its_candle_in_every_framing_and_unit(candle, closed, microseconds, is_combined, delay_ms):
    event_ms = candle.close_time + delay_ms
    data = kline_payload(candle, event_ms, closed, microseconds)
    if is_combined:
        data = combined(stream_name(candle.symbol), data)
    assert decode_frame(data) == KlineUpdate(candle, event_ms, closed)
    assert decode_frame(data.decode()) == KlineUpdate(candle, event_ms, closed)


@given(candles(), st.booleans())
def test_a_row_gives_back_its_candle(candle, microseconds):
    body = msgspec.json.encode([kline_row(candle, microseconds)])
    page = decode_klines(body, candle.symbol, candle.close_time + 1)
    assert (page.candles, page.forming, page.rejected) == ((candle,), 0, ())
    assert decode_klines(body, candle.symbol, candle.close_time).forming == 1


def test_fields_that_we_do_not_know_are_ignored():
    assert decode_frame(frame(Z="new", B=None)).candle == CANDLE


# -- what a frame must not be


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"c": "NaN"}, "not_finite"),
        ({"h": "Infinity"}, "not_finite"),
        ({"v": "-Infinity"}, "not_finite"),
        ({"h": "inf"}, "not_finite"),
        ({"q": "NaN"}, "volume_range"),
        ({"V": "-1"}, "volume_range"),
        ({"v": "-0.1"}, "volume_range"),
        ({"l": "0"}, "price_range"),
        ({"o": "-1"}, "price_range"),
        ({"h": "41000"}, "ohlc_order"),
        ({"l": "42060"}, "ohlc_order"),
        ({"n": -1}, "trades_range"),
        ({"o": None}, "kline_fields"),
        ({"o": "much"}, "kline_fields"),
        ({"o": ""}, "kline_fields"),
        ({"x": "maybe"}, "kline_fields"),
        ({"t": 1.5}, "kline_fields"),
        ({"i": "1m"}, "interval"),
        ({"s": "ETHUSDT"}, "symbol"),
        ({"s": "BTC/USDT"}, "symbol"),
        ({"T": OPEN_MS + HOUR_MS}, "off_grid"),
        ({"t": OPEN_MS + 1_000, "T": OPEN_MS + 1_000 + HOUR_MS - 1}, "closed_early"),
        ({"t": OPEN_MS - 1_000, "T": OPEN_MS - 1_000 + HOUR_MS - 1}, "off_grid"),
        ({"t": 0, "T": HOUR_MS - 1}, "time_range"),
    ],
)
def test_a_wrong_kline_is_set_aside_with_a_reason(changes, expected):
    assert reason(frame(**changes)) == expected


@pytest.mark.parametrize("event_ms", [0, -1, 2**62, 4_102_444_800_000])
def test_an_event_time_that_would_derail_a_clock_is_refused(event_ms):
    assert reason(kline_payload(CANDLE, event_ms, False)) == "time_range"


def test_a_close_before_its_hour_is_over_is_refused():
    assert reason(kline_payload(CANDLE, CANDLE.close_time - 1, True)) == "closed_early"
    assert not decode_frame(kline_payload(CANDLE, CANDLE.close_time - 1, False)).closed


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not_json_object"),
        (b"\xff\xfe", "not_json_object"),
        (b"[]", "not_json_object"),
        (b"null", "not_json_object"),
        (b"{}", "unknown_event"),
        (b'{"e":"trade","E":1}', "unknown_event"),
        (b'{"stream":"x"}', "not_json_object"),
        (b'{"stream":"x","data":null}', "not_json_object"),
        (b'{"stream":"x","data":[]}', "not_json_object"),
        (b'{"e":"kline","E":1,"s":"BTCUSDT"}', "kline_fields"),
        (b'{"code":' + b"9" * 5_000 + b"}", "not_json_object"),
        (b'{"e":"kline","E":1,"s":"BTCUSDT","k":null}', "kline_fields"),
        (DEEP, "not_json_object"),
        (b'{"result":' + DEEP, "not_json_object"),
        (b'{"unknown":' + DEEP, "not_json_object"),
        (b'{"e":"kline","E":1,"s":"X","k":' + DEEP, "not_json_object"),
        ("\ud800", "not_json_object"),
    ],
)
def test_what_is_no_frame_is_set_aside_with_a_reason(data, expected):
    assert reason(data) == expected


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_arbitrary_input_raises_nothing_but_a_wire_error(data):
    check_survives(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["e", "E", "s", "k", "stream", "data", "id", "result", "error", "code", "msg"]


@given(st.dictionaries(st.sampled_from(KEYS), json_values))
def test_any_object_of_our_keys_raises_nothing_but_a_wire_error(body):
    check_survives(json.dumps(body))


@given(st.sampled_from("tTsiocjhlvnxqV"), json_values, st.booleans())
def test_a_kline_with_any_value_in_a_field_is_a_valid_candle_or_a_wire_error(key, value, is_combined):
    event = json.loads(frame())
    event["k"][key] = value
    data = json.dumps(event).encode()
    check_survives(combined("btcusdt@kline_1h", data) if is_combined else data)


@given(st.integers(0, 600), st.binary(max_size=4), st.booleans())
def test_a_frame_with_bytes_changed_raises_nothing_but_a_wire_error(position, patch, is_combined):
    data = combined("btcusdt@kline_1h", frame()) if is_combined else frame()
    check_survives(data[:position] + patch + data[position + len(patch) :])
    check_survives(data[:position])


@given(st.binary(max_size=200) | json_values.map(lambda v: json.dumps(v).encode()))
def test_rest_answers_raise_nothing_but_their_own_errors(body):
    check_rest_survives(body)


@pytest.mark.parametrize(
    "body", [b"\xff", b'{"msg":"\xff","code":1}', b'{"unknown":' + DEEP, b'{"code":' + b"9" * 5_000 + b"}"]
)
def test_rest_answers_that_are_hardly_json(body):
    check_rest_survives(body)


def check_rest_survives(body: bytes) -> None:
    for decode in (lambda b: decode_klines(b, "BTCUSDT", OPEN_MS), decode_time, decode_exchange_info):
        with suppress(WireError):
            decode(body)
    with pytest.raises((WireError, UnknownSymbolError)):
        raise_refusal(400, body)


def check_survives(data: bytes | str) -> None:
    try:
        decoded = decode_frame(data)
    except WireError as error:
        accepted = error.reason.replace("_", "").isalnum()
    else:
        accepted = isinstance(decoded, KlineUpdate | Reply | ServerShutdown)
    assert accepted


# -- replies and notices


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"result":null,"id":1}', Reply(1)),
        (b'{"result":["a@kline_1h"],"id":"x"}', Reply("x", ("a@kline_1h",))),
        (b'{"code":2,"msg":"Invalid request","id":4}', Reply(4, error="2: Invalid request")),
        (
            b'{"error":{"code":2,"msg":"Invalid request: invalid stream"},"id":2}',
            Reply(2, error="2: Invalid request: invalid stream"),
        ),
        (b'{"code":3,"msg":"Invalid JSON"}', Reply(None, error="3: Invalid JSON")),
        (b'{"e":"serverShutdown","E":1770123456789}', ServerShutdown(1_770_123_456_789)),
        (
            b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1770123456789000}}',
            ServerShutdown(1_770_123_456_789),
        ),
    ],
)
def test_replies_and_notices(data, expected):
    assert decode_frame(data) == expected


def test_an_error_frame_is_an_error_whatever_its_shape():
    for data in (
        b'{"error":"no","id":1}',
        b'{"error":{"code":"x"},"id":1}',
        b'{"error":{},"id":1}',
        b'{"code":0,"msg":""}',
    ):
        assert decode_frame(data).error


def test_names_and_control_frames():
    assert stream_url("ws://x/", ["BTCUSDT", "ETHUSDT"]) == "ws://x/stream?streams=btcusdt@kline_1h/ethusdt@kline_1h"
    assert json.loads(control("SUBSCRIBE", ["BTCUSDT"], 7)) == {
        "method": "SUBSCRIBE",
        "params": ["btcusdt@kline_1h"],
        "id": 7,
    }
    assert "params" not in json.loads(control("LIST_SUBSCRIPTIONS", [], 7))


def test_rows_out_of_order_or_wrong_are_set_aside_and_the_rest_kept():
    later = msgspec.structs.replace(CANDLE, open_time=OPEN_MS + HOUR_MS)
    wrong = msgspec.structs.replace(CANDLE, open_time=OPEN_MS + 2 * HOUR_MS, high=1.0)
    rows = [kline_row(c) for c in (CANDLE, later, later, wrong)]
    page = decode_klines(msgspec.json.encode(rows), "BTCUSDT", OPEN_MS + 9 * HOUR_MS)
    assert page.candles == (CANDLE, later)
    assert (page.rows, page.rejected) == (4, ("row_order", "ohlc_order"))


# -- frames that the real exchange sent, at one minute


@pytest.fixture(scope="module")
def recorded() -> list[str]:
    path = REAL_DATA / "ws_kline_samples.jsonl"
    if not path.exists():
        pytest.skip(f"real data are absent: {path.name} is not in VOLCAST_REAL_DATA or ../shared/data")
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line]


def as_hourly(line: str) -> tuple[dict, str]:
    """Returns the recorded kline, and the same message as if its candle were the hour in which it began."""
    message = json.loads(line)
    event = message.get("data", message)
    kline = event["k"]
    opened = int(kline["t"]) // HOUR_MS * HOUR_MS
    event["E"] += opened + HOUR_MS - 1 - kline["T"]
    kline.update(i="1h", t=opened, T=opened + HOUR_MS - 1)
    return kline, json.dumps(message)


@pytest.mark.real_data
def test_recorded_frames_are_refused_for_their_interval_only(recorded):
    assert {reason(line) for line in recorded} == {"interval"}


@pytest.mark.real_data
def test_recorded_frames_are_understood_otherwise(recorded):
    closed = 0
    for line in recorded:
        kline, hourly = as_hourly(line)
        update = decode_frame(hourly)
        assert update.closed is kline["x"]
        assert update.candle.ohlcv == tuple(float(kline[key]) for key in "ohlcv")
        assert (update.candle.symbol, update.candle.trades) == (kline["s"], kline["n"])
        assert update.event_time > update.candle.close_time if update.closed else True
        closed += update.closed
    assert closed >= 3


@pytest.mark.real_data
def test_our_exchange_writes_a_kline_with_the_keys_and_types_of_the_real_one(recorded):
    ours = json.loads(kline_payload(CANDLE, CANDLE.close_time + 80, True))
    for line in recorded:
        message = json.loads(line)
        theirs = message.get("data", message)
        assert {key: type(value) for key, value in theirs.items()} == {key: type(value) for key, value in ours.items()}
        assert {k: type(v) for k, v in theirs["k"].items()} == {k: type(v) for k, v in ours["k"].items()}


def _answer(decode: Callable[[bytes], object], data: bytes) -> object:
    try:
        return decode(data)
    except WireError as error:
        return (error.reason, str(error))


@given(st.data(), st.booleans(), st.integers(0, 3))
def test_the_one_pass_for_common_frames_says_what_the_steps_say(data: st.DataObject, closed: bool, edits: int) -> None:
    candle = simulate_symbol("BTCUSDT", 1_704_067_200_000, 1, 7)[0]
    event_ms = candle.close_time + 80 if closed else candle.open_time + 1_000
    frame = bytearray(combined(stream_name("BTCUSDT"), kline_payload(candle, event_ms, closed)))
    for _ in range(edits):
        at = data.draw(st.integers(0, len(frame) - 1))
        piece = data.draw(st.sampled_from([b"", b"0", b'"', b",", b"null", b"}", b'"k":{},', b'"e":"x",', b"9" * 20]))
        frame[at : at + data.draw(st.integers(0, 8))] = piece
    assert _answer(binance.decode_frame, bytes(frame)) == _answer(binance._decode_other_frame, bytes(frame))


@pytest.mark.parametrize(
    "stamp", ['"1704070800080"', "1704070800080.0", "1704070800.08e3", "true", "null", "[1]", "9" * 30]
)
def test_the_one_pass_converts_no_event_time_that_the_steps_refuse(stamp: str) -> None:
    candle = simulate_symbol("BTCUSDT", 1_704_067_200_000, 1, 7)[0]
    whole = combined(stream_name("BTCUSDT"), kline_payload(candle, 1_704_070_800_080, True))
    frame = whole.replace(b'"E":1704070800080', b'"E":' + stamp.encode())
    assert frame != whole
    assert isinstance(binance.decode_frame(whole), KlineUpdate)
    answer = _answer(binance.decode_frame, frame)
    assert answer == _answer(binance._decode_other_frame, frame)
    assert isinstance(answer, tuple)
