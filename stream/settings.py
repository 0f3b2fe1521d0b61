"""Settings: flag over environment over TOML file over default; read once, checked at once, then frozen.

A setting is a field here and nowhere else: its flag, its `VOLCAST_*` variable and its TOML key follow from its name.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

import msgspec

from stream.core import symbols
from stream.ports import RefusedError

CONFIG_FILE = Path("volcast.toml")
PREFIX = "VOLCAST_"
EMBEDDED = "embedded"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_INSTANCE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCHEMES = {"ws_url": ("ws", "wss"), "rest_url": ("http", "https"), "mqtt_url": ("mqtt", "mqtts")}
_PLAIN = ("ws", "http", "mqtt")


class SettingsError(RefusedError):
    """A setting makes no sense. The message names it, where it came from, and what would."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon runs with. Paths are as given; `symbols` are upper case, each once."""

    symbols: tuple[str, ...] = ("BTCUSDT",)
    model: Path | None = None
    #: A policy file, or the name of a packaged policy.
    policy: Path | None = None
    ws_url: str = "wss://stream.binance.com:9443"
    rest_url: str = "https://api.binance.com"
    mqtt_url: str = "mqtt://127.0.0.1:1883"
    #: PEM: the only authorities that may vouch for an `mqtts://` broker; None: the system's.
    mqtt_ca_file: Path | None = None
    http_host: str = "127.0.0.1"
    http_port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 9_464
    data_dir: Path = Path("var")
    instance: str = "volcast"
    log_format: Literal["text", "json"] = "text"
    #: Wait while another live node publishes one of our symbols, instead of refusing to start.
    standby: bool = False
    allow_plaintext: bool = False
    #: How much faster than ours the exchange's clock runs; 0: it moves only with its messages.
    time_scale: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    #: Real seconds without a data frame after which an open stream is given up.
    stall_after_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    #: Hours of exchange time between drift runs; 0 switches them off.
    drift_period_hours: Annotated[float, msgspec.Meta(ge=0)] = 24.0

    def masked(self) -> dict[str, str]:
        """Every setting as text, secrets hidden: for people's eyes and logs."""
        shown = {f.name: str(getattr(self, f.name)) for f in msgspec.structs.fields(self)}
        shown["symbols"] = ",".join(self.symbols)
        for name in _SCHEMES:
            shown[name] = mask(shown[name])
        return shown


def mask(url: str) -> str:
    """The URL without its password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        # Not a URL, and to be shown to people all the same.
        return re.sub(r"//.*@", "//***@", url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{host}"))


def load(flags: Mapping[str, Any], environment: Mapping[str, str], config: Path | None = None) -> Settings:
    """Settings from their sources. `flags` with the value None were not given. `SettingsError` in one line."""
    chosen: dict[str, tuple[Any, str]] = {}
    names = {f.name for f in msgspec.structs.fields(Settings)}
    for name, value in _file(config).items():
        if name not in names:
            raise SettingsError(
                f"{config or CONFIG_FILE}: there is no setting {name!r}; `volcast run --help` lists them"
            )
        chosen[name] = (value, str(config or CONFIG_FILE))
    for name in names:
        variable = PREFIX + name.upper()
        if variable in environment:
            chosen[name] = (environment[variable], variable)
        if flags.get(name) is not None:
            chosen[name] = (flags[name], "--" + name.replace("_", "-"))
    values: dict[str, Any] = {}
    for name, (value, source) in chosen.items():
        values[name] = _convert(name, value, source)
    settings = Settings(**values)
    _check(settings, {name: source for name, (_, source) in chosen.items()})
    return settings


def _file(config: Path | None) -> dict[str, Any]:
    path = config or CONFIG_FILE
    if config is None and not path.exists():
        return {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None
    return {name.replace("-", "_"): value for name, value in table.items()}


def _convert(name: str, value: Any, source: str) -> Any:
    if name == "symbols":
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(p, str) for p in parts):
            raise SettingsError(f"{source}: symbols is a list of names such as BTCUSDT,ETHUSDT")
        try:
            return symbols.parse_list(",".join(parts))
        except symbols.SymbolError as error:
            raise SettingsError(f"{source}: {error}") from None
    kind = next(f.type for f in msgspec.structs.fields(Settings) if f.name == name)
    try:
        return msgspec.convert(value, kind, strict=False, dec_hook=lambda t, v: t(v))
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise SettingsError(f"{source}: {value!r} will not do: {str(error).lower()}") from None


def _check(settings: Settings, sources: Mapping[str, str]) -> None:
    def source(name: str) -> str:
        return sources.get(name, name)

    if not settings.symbols:
        raise SettingsError(f"{source('symbols')}: at least one symbol is needed, such as BTCUSDT")
    for name in ("time_scale", "stall_after_s", "drift_period_hours"):
        if not math.isfinite(getattr(settings, name)):
            raise SettingsError(f"{source(name)}: {getattr(settings, name)} will not do: a finite number is needed")
    if not _INSTANCE.fullmatch(settings.instance):
        raise SettingsError(
            f"{source('instance')}: {settings.instance!r} is no instance name: letters, digits, dot, dash, underscore"
        )
    for name, schemes in _SCHEMES.items():
        url = getattr(settings, name)
        if name == "mqtt_url" and url == EMBEDDED:
            continue
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
            (host or "").encode("idna")
        except ValueError as error:
            raise SettingsError(f"{source(name)}: {mask(url)} is no URL: {error}") from None
        if parts.scheme not in schemes or not host:
            raise SettingsError(f"{source(name)}: {mask(url)} must be {' or '.join(s + '://host' for s in schemes)}")
        if parts.scheme in _PLAIN and host not in _LOOPBACK and not settings.allow_plaintext:
            raise SettingsError(
                f"{source(name)}: {mask(url)} is not encrypted and leaves this machine: "
                f"use {schemes[1]}://, or say --allow-plaintext"
            )
