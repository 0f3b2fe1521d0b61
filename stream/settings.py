"""Settings: flag over environment over TOML file over default; read once, checked at once, then frozen.

A setting is a field here and nowhere else: its flag, its `VOLCAST_*` variable and its TOML key follow from its name.
An empty value counts as not given, whatever its source.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from stream.core.market import symbols
from stream.errors import MisuseError, RefusedError
from stream.urls import Address, is_loopback, mask, parse

CONFIG_FILE = Path("volcast.toml")
PREFIX = "VOLCAST_"
EMBEDDED = "embedded"
#: Neither settings of the daemon nor mistakes: variables of `fetch`, of commands that score, the batch script and the
#: tests, and those that Kubernetes adds for a service of our name.
_OTHER_VARIABLES = re.compile(
    rf"{PREFIX}(ARCHIVE_URL|LEDGER|BATCH_\w+|REAL_DATA|FORBID_SKIPS|SOAK_\w+|TEST_\w+|SERVICE_\w+|PORT_\d+_\w+)"
)
_INSTANCE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCHEMES = {"ws_url": ("wss", "ws"), "rest_url": ("https", "http"), "mqtt_url": ("mqtts", "mqtt")}
_PLAIN = ("ws", "http", "mqtt")
#: What people copy from the exchange's documentation along with the base URL, and what Volcast itself adds to it.
_OURS = {
    "ws_url": (re.compile(r"/(ws|stream)(/.*)?$"), "/stream?streams=...", ", without /ws or /stream behind it"),
    "rest_url": (re.compile(r"/[a-z]?api(/v\d.*)?$"), "/api/v3/...", ", without /api behind it"),
}


class SettingsError(RefusedError):
    """A setting is invalid. The message names it, where it came from, and what would be valid."""


class FlagError(SettingsError, MisuseError):
    """A setting that was given on the command line is invalid."""


def _about(text: str, default: str = "", metavar: str = "") -> msgspec.Meta:
    """Describes a setting for `--help` and docs/settings.md; `default` is shown in place of the field's own default."""
    return msgspec.Meta(description=text, extra={"default": default, "metavar": metavar})


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon's settings. Paths are as given; `symbols` are upper case, each once; URLs in their plain form."""

    symbols: Annotated[
        tuple[str, ...],
        _about("comma-separated, any case; `BTC/USDT` and `BTC-USDT` are BTCUSDT too", "BTCUSDT", "A,B"),
    ] = ("BTCUSDT",)
    model: Annotated[Path | None, _about("ONNX bundle", "`DATA_DIR/champion.onnx`, else the packaged one")] = None
    shadow: Annotated[
        Path | None,
        _about("ONNX bundle that runs as a shadow of the model", "`DATA_DIR/challenger.onnx`, if any"),
    ] = None
    policy: Annotated[Path | None, _about("a policy file (TOML), or the name of a packaged policy", "target-40")] = None
    ws_url: Annotated[str, _about("market stream: the base URL, without `/ws` or `/stream`")] = (
        "wss://stream.binance.com:9443"
    )
    rest_url: Annotated[str, _about("REST: the base URL, without `/api/v3`")] = "https://api.binance.com"
    mqtt_url: Annotated[
        str,
        _about("`mqtt[s]://[user[:password]@]host[:port]`, or `embedded`; `mqtt://:token@host` has an empty user name"),
    ] = "mqtt://127.0.0.1:1883"
    mqtt_ca_file: Annotated[
        Path | None, _about("PEM: the only authorities that may vouch for a `mqtts://` broker", "the system's store")
    ] = None
    mqtt_cert_file: Annotated[
        Path | None, _about("PEM: the certificate that a `mqtts://` broker knows this node by", "none")
    ] = None
    mqtt_key_file: Annotated[
        Path | None, _about("PEM: the certificate's key, not encrypted", "in `--mqtt-cert-file`")
    ] = None
    http_host: Annotated[str, _about("address to serve HTTP on")] = "127.0.0.1"
    http_port: Annotated[
        int, msgspec.Meta(ge=0, le=65_535), _about("0 takes any free port and prints it", metavar="PORT")
    ] = 9_464
    data_dir: Annotated[Path, _about("journal and drift reports; one daemon at a time", "./var")] = Path("var")
    instance: Annotated[str, _about("this node's name in its MQTT topics and its client id")] = "volcast"
    standby: Annotated[
        bool, _about("wait while another live node publishes one of these symbols, instead of refusing to start")
    ] = False
    log_format: Annotated[Literal["text", "json"], _about("log lines on stderr, UTC; `json` is one object a line")] = (
        "text"
    )
    allow_plaintext: Annotated[
        bool,
        _about("let `ws://`, `http://` and `mqtt://` leave this machine; `true` or `false` as a variable or key"),
    ] = False
    time_scale: Annotated[
        float,
        msgspec.Meta(ge=0),
        _about("how much faster than ours the exchange's clock runs; 0: it moves only with its messages", "1", "X"),
    ] = 1.0
    stall_after_s: Annotated[
        float,
        msgspec.Meta(gt=0),
        _about("real seconds without a data frame after which an open stream is given up", "60", "S"),
    ] = 60.0
    drift_period_hours: Annotated[
        float,
        msgspec.Meta(ge=0),
        _about("hours of exchange time between drift runs; 0 switches them off", "24", "H"),
    ] = 24.0

    def masked(self) -> dict[str, str]:
        """Returns every setting as text, with secrets hidden, for display and logs."""
        shown = {f.name: str(getattr(self, f.name)) for f in msgspec.structs.fields(self)}
        shown["symbols"] = ",".join(self.symbols)
        for name in _SCHEMES:
            shown[name] = mask(shown[name])
        return shown


_NAMES = tuple(f.name for f in msgspec.structs.fields(Settings))


@dataclass(frozen=True, slots=True)
class About:
    """A setting as it is documented. `default` and `text` have `code` in backticks."""

    name: str
    default: str
    text: str
    metavar: str
    choices: tuple[str, ...]
    is_switch: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def about() -> list[About]:
    """Returns every setting, in order: the source of `--help` and docs/settings.md."""
    hints = get_type_hints(Settings, include_extras=True)
    found = []
    for field in msgspec.structs.fields(Settings):
        kind, *meta = get_args(hints[field.name])
        described = next(m for m in meta if m.description)
        is_switch = kind is bool
        default = described.extra["default"] or ("no" if is_switch else str(field.default))
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        found.append(About(field.name, default, described.description, described.extra["metavar"], choices, is_switch))
    return found


def load(
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    config: Path | None = None,
    *,
    only: Collection[str] = _NAMES,
) -> Settings:
    """Returns the settings from their sources. `flags` with the value None were not given.

    `only` names those that the caller uses: the others keep their defaults, whatever their sources contain. Raises
    `SettingsError` with one line.
    """
    chosen: dict[str, tuple[Any, str]] = {}
    file = str(config or CONFIG_FILE)
    # A caller that gives everything on the command line, as the daemon does for its children, needs no file.
    complete = config is None and all(flags.get(name) is not None for name in only)
    for name, value in ({} if complete else _file(config)).items():
        if name not in _NAMES:
            raise SettingsError(f"{file}: there is no setting {name!r}{_nearest(name, _NAMES)}")
        chosen[name] = (bare(value), file)
    for name in _NAMES:
        variable = PREFIX + name.upper()
        if value := bare(environment.get(variable)):
            chosen[name] = (value, variable)
    for name, value in flags.items():
        if name in _NAMES and (given := bare(value)) not in (None, ""):
            chosen[name] = (given, "--" + name.replace("_", "-"))
    chosen = {name: found for name, found in chosen.items() if name in only and found[0] != ""}
    values = {name: _convert(name, value, source) for name, (value, source) in chosen.items()}
    sources = {name: source for name, (_, source) in chosen.items()}
    values |= {name: plain_url(name, values[name], sources[name]) for name in _SCHEMES if name in values}
    settings = Settings(**values)
    _check(settings, sources)
    return settings


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """Returns a line for each variable that looks like a setting and is none."""
    known = [PREFIX + name.upper() for name in _NAMES]
    return [
        f"{variable} is no setting of Volcast and changes nothing{_nearest(variable, known)}"
        for variable in sorted(environment)
        if variable.upper().startswith(PREFIX.removesuffix("_"))
        and variable not in known
        and not _OTHER_VARIABLES.fullmatch(variable)
    ]


def _nearest(name: str, known: Iterable[str]) -> str:
    by_plain = {_plain(each): each for each in known}
    close = difflib.get_close_matches(_plain(name), by_plain, n=1, cutoff=0.7)
    return f": did you mean {by_plain[close[0]]}?" if close else "; `volcast run --help` lists them"


def _plain(name: str) -> str:
    """Returns the name without the prefix that all have in common, and the separators that people forget."""
    return name.upper().removeprefix("VOLCAST").replace("_", "").replace("-", "")


def bare(value: Any) -> Any:
    """Returns text without the white space and the pair of quotes around it that files of variables leave there."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return text


def _file(config: Path | None) -> dict[str, Any]:
    path = config or CONFIG_FILE
    if config is None and not path.exists():
        return {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None
    return {name.replace("-", "_"): value for name, value in table.items()}


def _error(source: str, problem: str) -> SettingsError:
    kind = FlagError if source.startswith("--") else SettingsError
    return kind(f"{source}: {problem}")


def _convert(name: str, value: Any, source: str) -> Any:
    if name == "symbols":
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(p, str) for p in parts):
            raise _error(source, "symbols is a list of names such as BTCUSDT,ETHUSDT")
        try:
            return symbols.parse_list(",".join(parts))
        except symbols.SymbolError as error:
            raise _error(source, str(error)) from None
    if name == "http_host" and isinstance(value, str):
        # A URL has brackets around an IPv6 address; system calls take it without.
        value = value.removeprefix("[").removesuffix("]")
    kind = next(f.type for f in msgspec.structs.fields(Settings) if f.name == name)
    try:
        return msgspec.convert(value, kind, strict=False, dec_hook=lambda t, v: t(v))
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        shown = "the value" if name in _SCHEMES else repr(value)
        raise _error(source, f"{shown} will not do: {str(error).lower()}") from None


def plain_url(name: str, url: str, source: str) -> str:
    """Returns the setting's URL in its plain form. Raises `SettingsError`, which names `source` and a valid form."""
    if name == "mqtt_url" and url.lower() == EMBEDDED:
        return EMBEDDED
    schemes = _SCHEMES[name]
    pattern, added, without = _OURS.get(name, (None, "", ""))
    wanted = f"{schemes[0]}://host or {schemes[1]}://host{without}"
    try:
        address = parse(url)
    except ValueError as error:
        raise _error(source, f"{mask(url)} will not do: {error}; it must be {wanted}") from None
    if address.scheme not in schemes:
        raise _error(source, f"{mask(url)} must be {wanted}")
    if name == "mqtt_url" and address.path:
        raise _error(source, f"{mask(url)} will not do: nothing goes after the port, topics are always volcast/v1/...")
    if pattern is not None and pattern.search(address.path):
        base = Address(address.scheme, address.host, address.port, path=pattern.sub("", address.path))
        raise _error(source, f"{mask(url)} is no base URL: {added} is added to it; use {base}")
    return str(address)


def _check(settings: Settings, sources: Mapping[str, str]) -> None:
    def error(name: str, problem: str) -> SettingsError:
        return _error(sources.get(name, name), problem)

    if not settings.symbols:
        raise error("symbols", "at least one symbol is needed, such as BTCUSDT")
    for name in ("time_scale", "stall_after_s", "drift_period_hours"):
        if not math.isfinite(getattr(settings, name)):
            raise error(name, f"{getattr(settings, name)} will not do: a finite number is needed")
    if not _INSTANCE.fullmatch(settings.instance):
        raise error("instance", f"{settings.instance!r} is no instance name: letters, digits, dot, dash, underscore")
    for name, schemes in _SCHEMES.items():
        url = getattr(settings, name)
        if url == EMBEDDED:
            continue
        address = parse(url)
        if address.scheme in _PLAIN and not is_loopback(address.host) and not settings.allow_plaintext:
            raise error(
                name,
                f"{mask(url)} is not encrypted and leaves this machine: use {schemes[0]}://, or say --allow-plaintext",
            )
    for name in ("mqtt_cert_file", "mqtt_key_file"):
        if getattr(settings, name) is not None and not settings.mqtt_url.startswith("mqtts:"):
            raise error(name, "a broker is shown a certificate only where --mqtt-url begins with mqtts://")
    if settings.mqtt_key_file is not None and settings.mqtt_cert_file is None:
        raise error("mqtt_key_file", "a key needs its certificate: name it with --mqtt-cert-file")
