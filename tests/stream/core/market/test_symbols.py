"""One rule for the names of pairs: any spelling of a spot pair is the exchange's, anything else is refused."""

from __future__ import annotations

import pytest

from stream.core.market import symbols
from stream.core.market.symbols import SymbolError


@pytest.mark.parametrize(
    ("text", "symbol"),
    [
        ("BTCUSDT", "BTCUSDT"),
        ("btcusdt", "BTCUSDT"),
        (" BtcUsdt ", "BTCUSDT"),
        ("BTC/USDT", "BTCUSDT"),
        ("btc-usdt", "BTCUSDT"),
        ("BTC_USDT", "BTCUSDT"),
        ("1000SATS/USDT", "1000SATSUSDT"),
        ("BTC/USD1", "BTCUSD1"),
        ("币安人生USDT", "币安人生USDT"),
    ],
)
def test_every_spelling_of_a_spot_pair_is_the_exchanges(text, symbol):
    assert symbols.parse(text) == symbol


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "/",
            "BTC/",
            "/USDT",
            "B",
            "BTC USDT",
            "BTC//USDT",
            "BTC/USDT/",
            "../../x",
            "BTCUSDT,ETHUSDT",
            "A" * 41,
        ),
        # Derivatives, as ccxt and some exchanges write them: other prices than the spot pair's.
        *(
            "BTC/USDT:USDT",
            "BTCUSD_PERP",
            "BTC-USDT-SWAP",
            "BTCUSDT-PERP",
            "BTCUSDT_240329",
            "BTC-28JUN24",
            "BTCUSDT.P",
        ),
        *("BINANCE:BTCUSDT", "btcusdt@kline_1h"),
    ],
)
def test_what_is_no_spot_pair_is_refused_with_its_name(text):
    with pytest.raises(SymbolError) as refusal:
        symbols.parse(text)
    assert str(refusal.value) == f"{text!r} is no symbol of a spot pair; write it like BTCUSDT or BTC/USDT"


def test_a_list_has_each_symbol_once():
    assert symbols.parse_list("BTC/USDT, eth-usdt,,BTCUSDT") == ("BTCUSDT", "ETHUSDT")
    assert symbols.parse_list(" , ") == ()
