"""The settings on the command line: the daemon's flags, and what other commands have in common with it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stream.commands.paths import DataDir, Input

if TYPE_CHECKING:
    from stream.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

FILE = Input()
MODEL = Input(shipped=("export", "models", "*.onnx"))
POLICY = Input(shipped=("stream", "policies", "*.toml"))

config_option = click.option("--config", type=FILE, help="TOML file of settings.  [default: volcast.toml, if present]")


def options(command: F) -> F:
    """The flags of `stream.settings.Settings`; each is also VOLCAST_<NAME> and a key of volcast.toml."""
    options = [
        config_option,
        click.option("--symbols", metavar="A,B", help="Symbols, comma-separated.  [default: BTCUSDT]"),
        click.option(
            "--model",
            type=MODEL,
            help="ONNX bundle.  [default: DATA_DIR/champion.onnx, else the packaged]",
        ),
        click.option(
            "--policy",
            type=POLICY,
            help="Policy file (TOML) or packaged name.  [default: target-40]",
        ),
        click.option("--ws-url", help="Market stream.  [default: wss://stream.binance.com:9443]"),
        click.option("--rest-url", help="REST.  [default: https://api.binance.com]"),
        click.option(
            "--mqtt-url", help="mqtt[s]://[user:password@]host or 'embedded'.  [default: mqtt://127.0.0.1:1883]"
        ),
        click.option("--mqtt-ca-file", type=FILE, help="PEM that vouches for mqtts://.  [default: the system's]"),
        click.option("--mqtt-cert-file", type=FILE, help="PEM that a mqtts:// broker knows us by.  [default: none]"),
        click.option("--mqtt-key-file", type=FILE, help="Its key, PEM.  [default: in the certificate's file]"),
        click.option("--http-host", help="Address to serve HTTP on.  [default: 127.0.0.1]"),
        click.option("--http-port", metavar="PORT", help="0 = any free, printed.  [default: 9464]"),
        click.option("--data-dir", type=DataDir(), help="Journal and reports.  [default: var]"),
        click.option("--instance", help="Name of this node in its MQTT topics.  [default: volcast]"),
        click.option("--standby", is_flag=True, default=None, help="Wait while another node publishes these symbols."),
        click.option("--log-format", type=click.Choice(["text", "json"]), help="Log lines on stderr.  [default: text]"),
        click.option("--allow-plaintext", is_flag=True, default=None, help="Unencrypted URLs beyond loopback."),
        click.option("--time-scale", metavar="X", help="Speed of the exchange's clock against ours.  [default: 1]"),
        click.option("--stall-after-s", metavar="S", help="Seconds without data before a reconnect.  [default: 60]"),
        click.option("--drift-period-hours", metavar="H", help="Exchange hours per drift run; 0 = off.  [default: 24]"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def load(flags: dict[str, Any]) -> Settings:
    """The daemon's settings; the log is set up by them, and told what looks wrong."""
    from stream import logs, settings, urls

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
    """The settings that a command shares with the daemon, from all their sources: `options` then holds them."""
    from stream import settings

    loaded = settings.load(options, os.environ, options.pop("config"), only=names)
    for line in settings.unknown_variables(os.environ):
        click.echo(f"volcast: warning: {line}", err=True)
    options.update((name, getattr(loaded, name)) for name in names if name in options)
    return loaded
