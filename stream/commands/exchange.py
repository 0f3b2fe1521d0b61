"""`volcast exchange`: the shipped exchange on its own, playing candles in Binance's dialect."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import click

from stream import logs
from stream.cli import playback
from stream.cli.parameters import command
from stream.cli.playback import DEFAULT_SYMBOLS, Playback, close_market, make_tape
from stream.cli.signals import stop_on_signals
from stream.errors import RefusedError
from stream.testing.exchange import Exchange


@command
@playback.options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on.")
@click.option("--ws-port", type=click.IntRange(0, 65_535), default=9_443, show_default=True, help="WebSocket; 0 = any.")
@click.option("--rest-port", type=click.IntRange(0, 65_535), default=9_080, show_default=True, help="REST and control.")
def exchange(**options: Any) -> None:
    """The embedded exchange on its own: Binance's dialect, a tape, faults on order (POST /control/fault).

    Its clock stands still until somebody asks the time or subscribes. REST's port serves the bulk archive too, for
    `volcast fetch`.
    Faults: drop, duplicate_close, withhold_close, mute, unmute, refuse, flap, rest_status; of the archive
    truncated_zip, wrong_checksum, missing_archive, header_row, missing_rows, revised_archive. For instance
    curl -d '{"fault":"drop"}' http://127.0.0.1:9080/control/fault

    Example: volcast exchange --candles btc.parquet --from 2024-03-01 --speed 3600
    """
    _run(**options)


def _run(
    *,
    candles: Path | None,
    from_: str | None,
    hours: int | None,
    speed: str | None,
    symbols: str | None,
    seed: int,
    host: str,
    ws_port: int,
    rest_port: int,
) -> None:
    logs.configure("text")
    tape = make_tape(candles, from_, hours, speed, symbols, seed)
    asyncio.run(_exchange(tape, seed, host, ws_port, rest_port))


async def _exchange(tape: Playback, seed: int, host: str, ws_port: int, rest_port: int) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)
    server = Exchange.replaying(
        tape.candles, tape.from_ms, tape.hours, tape.speed, seed=seed, host=host, ws_port=ws_port, rest_port=rest_port
    )
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(server)
        except socket.gaierror as error:
            raise RefusedError(f"--host {host}: cannot listen there: {error.strerror}") from None
        closing = asyncio.create_task(close_market(server))
        scale = tape.speed or 0
        symbols = "" if tuple(tape.candles) == DEFAULT_SYMBOLS else f"--symbols {','.join(tape.candles)} "
        click.echo(f"volcast run {symbols}--ws-url {server.ws_url} --rest-url {server.rest_url} --time-scale {scale:g}")
        click.echo(f"archive:  volcast fetch --rest-url {server.rest_url} --from ISO --out FILE")
        click.echo(f"control:  {server.rest_url}/control/state (Ctrl-C ends)")
        await stop.wait()
        closing.cancel()
