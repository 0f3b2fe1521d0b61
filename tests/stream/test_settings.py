"""Settings: precedence, one-line refusals, masked secrets."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from stream.errors import MisuseError
from stream.settings import Settings, SettingsError, load, unknown_variables
from stream.urls import mask


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


@pytest.mark.parametrize("empty", ["", "  ", '""', "''"])
def test_an_empty_value_is_none_whatever_its_source(empty: str, tmp_path: Path) -> None:
    names = [f.name for f in msgspec.structs.fields(Settings)]
    assert load({}, {f"VOLCAST_{name.upper()}": empty for name in names}) == Settings()
    assert load(dict.fromkeys(names, empty), {}) == Settings()
    config = tmp_path / "v.toml"
    config.write_text("".join(f"{name} = {empty!r}\n" for name in names if "'" not in empty))
    assert load({}, {}, config) == Settings()
    # Where a source is empty the next one decides.
    config.write_text('instance = "file"\n')
    assert load({"instance": empty}, {"VOLCAST_INSTANCE": empty}, config).instance == "file"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("http_port", " 9000\r", 9_000),
        ("http_port", '"9000"', 9_000),
        ("symbols", "'ethusdt, BTCUSDT'", ("ETHUSDT", "BTCUSDT")),
        ("allow_plaintext", '"true"', True),
        ("data_dir", "'/var/lib/volcast'", Path("/var/lib/volcast")),
        ("http_host", "[::1]", "::1"),
        ("ws_url", "WSS://Stream.Example:9443/", "wss://stream.example:9443"),
        ("ws_url", "wss://proxy.example/binance/", "wss://proxy.example/binance"),
        ("rest_url", "HTTPS://[2001:DB8::1]", "https://[2001:db8::1]"),
        ("mqtt_url", '"mqtts://user:p%23ss@host:8883/"', "mqtts://user:p%23ss@host:8883"),
        ("mqtt_url", "mqtt://:token@127.0.0.1", "mqtt://:token@127.0.0.1"),
        ("mqtt_url", "mqtt://user@[::1]:1883", "mqtt://user@[::1]:1883"),
        ("mqtt_url", "Embedded", "embedded"),
    ],
)
def test_values_as_files_of_variables_hold_them(name: str, value: str, expected: object) -> None:
    assert getattr(load({}, {f"VOLCAST_{name.upper()}": value}), name) == expected


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("VOLCAST_SYMBOL", "VOLCAST_SYMBOLS?"),
        ("VOLCAST_MQTTURL", "VOLCAST_MQTT_URL?"),
        ("VOLCAST_MQTT_URI", "VOLCAST_MQTT_URL?"),
        ("VOLCAST_DATADIR", "VOLCAST_DATA_DIR?"),
        ("VOLCAST_WSURL", "VOLCAST_WS_URL?"),
        ("Volcast_Http_Port", "VOLCAST_HTTP_PORT?"),
        ("VOLCASTHTTPPORT", "VOLCAST_HTTP_PORT?"),
        ("VOLCAST_COLOUR", "--help"),
    ],
)
def test_a_mistyped_variable_is_told_with_the_nearest_name(variable: str, meant: str) -> None:
    (line,) = unknown_variables([variable, "VOLCAST_INSTANCE", "VOLCAST_ARCHIVE_URL", "VOLCAST_SERVICE_HOST", "PATH"])
    assert line.startswith(f"{variable} is no setting")
    assert meant in line


def test_a_mistyped_key_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    config = tmp_path / "v.toml"
    config.write_text('mqtturl = "mqtt://127.0.0.1"\n')
    with pytest.raises(SettingsError, match=r"'mqtturl': did you mean mqtt_url\?"):
        load({}, {}, config)


#: Passwords that are not percent-encoded, so that their URLs cannot be parsed as they were meant.
SECRETS = ["ge#heim", "ge/heim", "ge?heim", "ge[heim", "ge]heim", "ge heim", "#/?[@heim", "ge/@/heim", "9/heim"]


@pytest.mark.parametrize("secret", [*SECRETS, "%ff-heim"])
@pytest.mark.parametrize("host", ["127.0.0.1", "broker.example:8883", "[::1]:1"])
@pytest.mark.parametrize("name", ["mqtt_url", "ws_url", "rest_url"])
def test_a_password_that_breaks_its_url_is_not_told_and_its_cure_is(name: str, host: str, secret: str) -> None:
    scheme = {"mqtt_url": "mqtts", "ws_url": "wss", "rest_url": "https"}[name]
    with pytest.raises(SettingsError) as refused:
        load({}, {f"VOLCAST_{name.upper()}": f"{scheme}://u:{secret}@{host}"})
    message = str(refused.value)
    assert "heim" not in message
    assert f"{scheme}://***@{host}" in message
    assert f"VOLCAST_{name.upper()}" in message
    assert "percent-encoded" in message or " " in secret


@pytest.mark.parametrize("secret", ["ge:heim", "ge@heim", "ge%heim", "100%heim", *SECRETS])
def test_a_password_is_masked_before_anything_is_parsed(secret: str) -> None:
    for shape in (
        "mqtt://u:{}@host",
        "mqtt://{}@host",
        "mqtt://:{}@host",
        "u:{}@host",
        "mqtt:/u:{}@host",
        '"x://u:{}@h"',
    ):
        assert "heim" not in mask(shape.format(secret))
    assert "heim" not in mask("wss://host/ws?key=heim")


def test_a_url_of_the_wrong_kind_does_not_tell_its_password(tmp_path: Path) -> None:
    config = tmp_path / "v.toml"
    config.write_text('mqtt_url = ["mqtt://u:geheim@127.0.0.1"]\n')
    with pytest.raises(SettingsError) as refused:
        load({}, {}, config)
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "url", "expected"),
    [
        ("ws_url", "wss://stream.example:9443/ws", "use wss://stream.example:9443"),
        ("ws_url", "wss://stream.example/ws/btcusdt@kline_1h", ""),
        ("ws_url", "wss://stream.example/stream", "use wss://stream.example"),
        ("ws_url", "wss://stream.example/stream?streams=btcusdt_kline_1h", "leave out what begins with ?"),
        ("ws_url", "wss://stream.example?x=1", "leave out"),
        ("ws_url", "wss://stream.example#x", "leave out"),
        ("rest_url", "https://api.example/api", "use https://api.example"),
        ("rest_url", "https://api.example/api/v3/", "use https://api.example"),
        ("rest_url", "https://api.example/api/v3/klines", "use https://api.example"),
        ("rest_url", "https://api.example?x", "leave out"),
        ("mqtt_url", "mqtts://broker.example/volcast", "nothing goes after the port"),
        ("mqtt_url", "mqtts://broker.example?x=1", "leave out"),
        ("mqtt_url", "mqtts://broker.example:99999", "1 to 65535"),
        ("mqtt_url", "mqtts://broker.example:0", "1 to 65535"),
        ("mqtt_url", "broker.example:1883", "mqtts://host"),
        ("mqtt_url", "tcp://broker.example", "mqtts://host"),
        ("mqtt_url", "mqtts://[::1", "no URL"),
        ("mqtt_url", "mqtts://[1.2]", "no URL"),
        ("rest_url", "https://ex ample", "white space"),
        ("rest_url", "https://ex_.am..ple", "its host"),
        ("rest_url", "https://-", "its host"),
    ],
)
def test_a_url_that_would_lead_nowhere_is_refused_with_what_would_do(name: str, url: str, expected: str) -> None:
    with pytest.raises(SettingsError, match=name.replace("_", "-")) as refused:
        load({name: url}, {})
    assert expected in str(refused.value)
    assert isinstance(refused.value, MisuseError)
    with pytest.raises(SettingsError) as refused:
        load({}, {f"VOLCAST_{name.upper()}": url})
    assert not isinstance(refused.value, MisuseError)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"mqtt_cert_file": Path("c.pem")}, "mqtts://"),
        ({"mqtt_url": "mqtts://host", "mqtt_key_file": Path("k.pem")}, "--mqtt-cert-file"),
    ],
)
def test_a_certificate_needs_somebody_to_show_it_to(flags: dict[str, object], expected: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(flags, {})
    assert expected in str(refused.value)


def test_a_command_minds_only_the_settings_that_it_has_a_use_for() -> None:
    found = load({}, {"VOLCAST_DATA_DIR": "/x", "VOLCAST_MQTT_URL": "nonsense"}, only=("data_dir", "model"))
    assert found == Settings(data_dir=Path("/x"))


def test_passwords_are_masked_wherever_settings_are_shown() -> None:
    assert mask("mqtts://user:secret@host:8883") == "mqtts://***@host:8883"
    shown = load({"mqtt_url": "mqtts://user:secret@host"}, {}).masked()
    assert set(shown) == {f.name for f in msgspec.structs.fields(Settings)}
    assert not any("secret" in value for value in shown.values())
