"""Settings: precedence, one-line refusals, masks."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from stream.settings import Settings, SettingsError, load, mask


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    config = tmp_path / "v.toml"
    config.write_text('symbols = ["ethusdt"]\nhttp-port = 1\ninstance = "file"\n')
    environment = {"VOLCAST_HTTP_PORT": "2", "VOLCAST_INSTANCE": "env"}
    found = load({"instance": "flag", "data_dir": None}, environment, config)
    assert (found.symbols, found.http_port, found.instance, found.data_dir) == (("ETHUSDT",), 2, "flag", Path("var"))


def test_defaults_are_the_contracts() -> None:
    assert load({}, {}) == Settings(
        symbols=("BTCUSDT",),
        ws_url="wss://stream.binance.com:9443",
        rest_url="https://api.binance.com",
        http_host="127.0.0.1",
        http_port=9464,
        data_dir=Path("var"),
        instance="volcast",
        log_format="text",
    )


def test_symbols_are_upper_cased_and_each_is_taken_once() -> None:
    assert load({"symbols": " btcusdt, ETHUSDT,btcusdt "}, {}).symbols == ("BTCUSDT", "ETHUSDT")


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"symbols": ","}, "--symbols"),
        ({"symbols": "BTC/USDT:USDT"}, "BTC/USDT:USDT"),
        ({"http_port": "70000"}, "--http-port"),
        ({"http_port": "many"}, "--http-port"),
        ({"log_format": "xml"}, "--log-format"),
        ({"time_scale": "-1"}, "--time-scale"),
        ({"instance": "a/b"}, "--instance"),
        ({"ws_url": "https://x"}, "--ws-url"),
        ({"ws_url": "wss://"}, "--ws-url"),
        ({"rest_url": "http://example.org"}, "--allow-plaintext"),
        ({"mqtt_url": "mqtt://u:secret@broker.example"}, "--allow-plaintext"),
        ({"mqtt_url": "mqtts://host:port"}, "--mqtt-url"),
    ],
)
def test_nonsense_is_refused_in_one_line_that_names_the_setting(flags: dict[str, str], names: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(flags, {})
    assert names in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_the_source_of_a_bad_value_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="VOLCAST_HTTP_PORT"):
        load({}, {"VOLCAST_HTTP_PORT": "x"})
    config = tmp_path / "v.toml"
    config.write_text("htp_port = 1\n")
    with pytest.raises(SettingsError, match="htp_port"):
        load({}, {}, config)
    config.write_text("= nonsense")
    with pytest.raises(SettingsError, match="is not TOML"):
        load({}, {}, config)
    with pytest.raises(SettingsError, match="cannot be read"):
        load({}, {}, tmp_path / "absent.toml")


def test_plaintext_beyond_loopback_is_possible_when_said() -> None:
    assert load({"mqtt_url": "mqtt://broker.example", "allow_plaintext": True}, {}).mqtt_url == "mqtt://broker.example"


def test_passwords_are_masked_wherever_settings_are_shown() -> None:
    assert mask("mqtts://user:secret@host:8883") == "mqtts://user:***@host:8883"
    shown = load({"mqtt_url": "mqtts://user:secret@host"}, {}).masked()
    assert set(shown) == {f.name for f in msgspec.structs.fields(Settings)}
    assert not any("secret" in value for value in shown.values())
