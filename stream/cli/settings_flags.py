"""The settings on the command line: the daemon's flags, and those that other commands share with it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from stream import settings
from stream.cli.paths import DataDir, Input
from stream.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

FILE = Input()
MODEL = Input(shipped=("export", "models", "*.onnx"))
POLICY = Input(shipped=("stream", "policies", "*.toml"))

config_option = click.option("--config", type=FILE, help="TOML file of settings.  [default: volcast.toml, if present]")


#: Types of the flags whose values are more than text.
_TYPES: dict[str, click.ParamType[Any]] = {
    "model": MODEL,
    "policy": POLICY,
    "data_dir": DataDir(),
    "mqtt_ca_file": FILE,
    "mqtt_cert_file": FILE,
    "mqtt_key_file": FILE,
}


def options(command: F) -> F:
    """Adds the flags of `stream.settings.Settings`; each is also VOLCAST_<NAME> and a key of volcast.toml."""
    for setting in reversed(settings.about()):
        command = _option(setting)(command)
    return config_option(command)


def _option(setting: settings.About) -> Callable[[F], F]:
    text = f"{setting.text[0].upper()}{setting.text[1:]}".replace("`", "")
    if setting.is_switch:
        return click.option(setting.flag, is_flag=True, default=None, help=f"{text}.")
    kind = click.Choice(setting.choices) if setting.choices else _TYPES.get(setting.name)
    text = f"{text}.  [default: {setting.default.replace('`', '')}]"
    return click.option(setting.flag, type=kind, metavar=setting.metavar or None, help=text)


def load(flags: dict[str, Any]) -> Settings:
    """Returns the daemon's settings, sets up logging by them, and logs what looks wrong."""
    from stream import logs, urls

    loaded = settings.load(flags, os.environ, flags.pop("config", None))
    logs.configure(loaded.log_format)
    log = logging.getLogger(__name__)
    for line in settings.unknown_variables(os.environ):
        log.warning("%s", line)
    for name in ("mqtt_url", "ws_url", "rest_url"):
        if urls.mask(flags.get(name) or "") != (flags.get(name) or ""):
            log.warning(
                "--%s holds a password, and every user of this machine can read a command line: "
                "use VOLCAST_%s or the settings file",
                name.replace("_", "-"),
                name.upper(),
            )
    return loaded


def settle(options: dict[str, Any], *names: str) -> Settings:
    """Returns the settings that a command shares with the daemon, from all sources, and puts them in `options`."""
    loaded = settings.load(options, os.environ, options.pop("config"), only=names)
    for line in settings.unknown_variables(os.environ):
        click.echo(f"volcast: warning: {line}", err=True)
    options.update((name, getattr(loaded, name)) for name in names if name in options)
    return loaded
