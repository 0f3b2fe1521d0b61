"""`volcast check`: what `run` would run with, what it would refuse, and which hosts answer."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import Any

import aiomqtt
import click
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from stream import models, times
from stream.adapters import champions, policies
from stream.adapters import predictor as predictors
from stream.adapters.backoff import ADDRESS_RACE_S
from stream.adapters.bundles import model_path
from stream.adapters.data_dir import try_lock
from stream.adapters.feed.sockets import proxy_and_tls
from stream.adapters.journal.database import FILE_NAME
from stream.adapters.journal.files import damage
from stream.adapters.journal.store import SqliteJournal
from stream.adapters.mqtt.broker import broker_client
from stream.adapters.mqtt.rivals import Rivals
from stream.adapters.outbound import Way, way_to
from stream.adapters.rest.history import BinanceHistory
from stream.cli import settings_flags
from stream.cli.parameters import command
from stream.clock import Clock
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.policy import PER_UNIT, Policy
from stream.core.deciding.policy_file import PolicyError
from stream.core.forecasting.contract import ContractError, Model
from stream.core.market import binance
from stream.core.market.binance import UnknownSymbolError
from stream.errors import JournalError, RefusedError, UnreachableError
from stream.node import broker_tls, listen
from stream.settings import EMBEDDED, Settings
from stream.testing.broker import BrokerError, EmbeddedBroker
from stream.urls import mask

_TIMEOUT_S = 5.0
_DAY_MS = 86_400_000


@command
@settings_flags.options
def check(**flags: Any) -> None:
    """Show the effective settings (secrets masked), the model's contract and who can be reached.

    Exit code 1 only where `run` would refuse to start; an unreachable host is a warning.

    Example: volcast check --symbols BTCUSDT
    """
    inspect(settings_flags.load(flags))


def inspect(settings: Settings) -> None:
    """Prints what it finds. Raises `RefusedError`, which names every reason for which `run` would refuse to start."""
    click.echo("settings")
    for name, value in settings.masked().items():
        click.echo(f"  {name:<20} {value}")
    refusals: list[str] = []
    _model(settings, refusals)
    _policy(settings, refusals)
    _data_dir(settings, refusals)
    _port(settings, refusals)
    asyncio.run(_reach(settings, refusals))
    if refusals:
        raise RefusedError("run would refuse to start: " + "; ".join(refusals))
    click.echo("run would start")


def _print(mark: str, what: str, text: str) -> None:
    click.echo(f"{mark:<8} {what:<10} {text}")


def _model(settings: Settings, refusals: list[str]) -> None:
    path = model_path(settings.model, settings.data_dir)
    try:
        model = predictors.load(path).model
    except ContractError as error:
        refusals.append(str(error))
        _print("REFUSED", "model", str(error))
        return
    training = model.contract.training
    _print(
        "ok",
        "model",
        f"{path} version {model.version}, features {model.contract.features_version}, "
        f"trained on {','.join(training.symbols)} until {times.day(training.trained_until)}",
    )
    _origin(settings, model)
    if settings.shadow is not None:
        try:
            present = Rules.of(Policy(), model.contract)
            companion = models.load_later(settings.shadow, Policy(), present, settings.symbols).predictor.model
        except ContractError as error:
            refusals.append(str(error))
            _print("REFUSED", "shadow", str(error))
        else:
            _print("ok", "shadow", f"{settings.shadow} version {companion.version}")
    described = training.symbols[0]
    for name, level in (("medium", model.contract.regimes.medium_from), ("high", model.contract.regimes.high_from)):
        stated = ", ".join(f"{level * per:.2%} {unit}" for unit, per in PER_UNIT.items())
        _print("ok", "regime", f"{name} of {described} from σ {stated}")
    if any(symbol != described for symbol in settings.symbols):
        _print("ok", "regime", "other symbols have those of their own last half year")


def _origin(settings: Settings, model: Model) -> None:
    """Prints where the model comes from, and warns of one that is old."""
    known = champions.lineage(settings.data_dir, model.version)
    if known is not None:
        parents = f"after {', '.join(known.parents)}" if known.parents else "no parents"
        begun = f", promoted {times.day(known.promoted_at)} by {known.because}" if known.promoted_at else ""
        gate = "".join(
            f"; {of.symbol}: QLIKE {of.qlike_challenger:.4f}, its parent's {of.qlike_champion:.4f}" for of in known.gate
        )
        _print("ok", "lineage", f"{parents}{begun}; data {known.data_sha256[:12]}{gate}")
    age_days = (Clock().wall_ms() - model.contract.training.trained_until) // _DAY_MS
    if age_days > champions.OLD_DAYS:
        _print("warning", "model", f"it has learnt from nothing of the last {age_days} days: `volcast retrain`")


def _policy(settings: Settings, refusals: list[str]) -> None:
    try:
        policy = policies.load(settings.policy)
    except PolicyError as error:
        refusals.append(str(error))
        _print("REFUSED", "policy", str(error))
        return
    _print("ok", "policy", f"version {policy.version}, acts on {policy.forecast}")


def _data_dir(settings: Settings, refusals: list[str]) -> None:
    try:
        try_lock(settings.data_dir)
        if not (settings.data_dir / FILE_NAME).exists():
            _print("ok", "data", f"{settings.data_dir}, no journal yet")
            return
        if found := damage(settings.data_dir / FILE_NAME):
            _print("warning", "data", f"the journal is damaged ({found}); run will rebuild it and keep this one")
            return
        with contextlib.closing(SqliteJournal(settings.data_dir, read_only=True)) as journal:
            _print("ok", "data", f"{settings.data_dir}, journal of {journal.size_bytes()} bytes")
    except (JournalError, sqlite3.Error) as error:
        refusals.append(str(error))
        _print("REFUSED", "data", str(error))


def _port(settings: Settings, refusals: list[str]) -> None:
    try:
        listen(settings).close()
        _print("ok", "http", f"{settings.http_host}:{settings.http_port} is free")
    except RefusedError as error:
        refusals.append(str(error))
        _print("REFUSED", "http", str(error))


async def _reach(settings: Settings, refusals: list[str]) -> None:
    await _rest(settings, refusals)
    await _stream(settings, refusals)
    await _broker(settings, refusals)


async def _way(what: str, url: str, refusals: list[str]) -> Way | None:
    """Returns how `run` would reach that URL; None where it would refuse to try."""
    try:
        way = await asyncio.to_thread(way_to, url)
    except RefusedError as error:
        # Both URLs may be refused for the same reason, which is reported once.
        refusals += [str(error)] if str(error) not in refusals else []
        _print("REFUSED", what, str(error))
        return None
    if way.proxy is not None:
        _print("ok", what, f"{mask(url)} is reached through {mask(way.proxy)}")
    return way


async def _stream(settings: Settings, refusals: list[str]) -> None:
    way = await _way("stream", settings.ws_url, refusals)
    if way is None:
        return
    shown = mask(settings.ws_url)
    url = binance.stream_url(settings.ws_url, settings.symbols)
    try:
        async with (
            asyncio.timeout(_TIMEOUT_S),
            connect(
                url,
                **proxy_and_tls(way),
                open_timeout=_TIMEOUT_S,
                close_timeout=1.0,
                happy_eyeballs_delay=ADDRESS_RACE_S,
            ),
        ):
            _print("ok", "stream", shown)
    except (OSError, TimeoutError, WebSocketException, UnicodeError) as error:
        _print("warning", "stream", f"{shown} does not answer: {error or type(error).__name__}")


async def _rest(settings: Settings, refusals: list[str]) -> None:
    way = await _way("rest", settings.rest_url, refusals)
    if way is None:
        return
    try:
        async with asyncio.timeout(_TIMEOUT_S), BinanceHistory(settings.rest_url, clock=Clock(), way=way) as history:
            for symbol in settings.symbols:
                try:
                    info = await history.exchange_info(symbol)
                except UnknownSymbolError:
                    if _known(settings, symbol):
                        _print("warning", "symbol", f"{symbol} is not listed any more; the journal knows it")
                        continue
                    refusals.append(f"the exchange does not list {symbol}")
                    _print("REFUSED", "symbol", f"the exchange does not list {symbol}")
                    continue
                status = next((s.status for s in info.symbols if s.symbol == symbol), "unknown")
                _print("ok", "symbol", f"{symbol} is {status.lower()}")
    except (UnreachableError, TimeoutError) as error:
        _print("warning", "rest", f"{mask(settings.rest_url)} does not answer: {error or 'timeout'}")


def _known(settings: Settings, symbol: str) -> bool:
    try:
        with contextlib.closing(SqliteJournal(settings.data_dir, read_only=True)) as journal:
            return journal.last_open_time(symbol) is not None
    except (JournalError, sqlite3.Error):
        return False


async def _broker(settings: Settings, refusals: list[str]) -> None:
    if settings.mqtt_url == EMBEDDED:
        try:
            await asyncio.to_thread(_try_embedded)
            _print("ok", "broker", "embedded")
        except (BrokerError, OSError) as error:
            refusals.append(str(error))
            _print("REFUSED", "broker", str(error))
        return
    try:
        tls = await asyncio.to_thread(broker_tls, settings)
        rivals = Rivals(settings.instance, settings.symbols)
        client = broker_client(settings.mqtt_url, "volcast-check", tls=tls)
        async with asyncio.timeout(_TIMEOUT_S), client:
            blind = await rivals.look(client)
            _print("ok", "broker", mask(settings.mqtt_url))
        if blind is not None:
            _print("warning", "broker", f"it does not let us see other nodes ({blind})")
        if settings.standby and rivals.alive():
            _print("warning", "broker", f"run would stand by for {', '.join(rivals.alive())}")
        else:
            rivals.refuse()
    except RefusedError as error:
        refusals.append(str(error))
        _print("REFUSED", "broker", str(error))
    except (aiomqtt.MqttError, OSError, TimeoutError, UnicodeError) as error:
        _print("warning", "broker", f"{mask(settings.mqtt_url)} does not answer: {error or 'timeout'}")


def _try_embedded() -> None:
    with EmbeddedBroker():
        pass
