"""`make peers`: the same frames through Volcast and through other clients, and its batch against the reference loop.

Usage: run.py ENVIRONMENTS [--frames N] [--rounds N] [--keras PYTHON] [--only NAME,NAME]. Each client is a process of
its own, which measures itself (meter.py); the rounds are interleaved, so that what the machine does besides meets all,
and medians count. The tables are printed as docs/performance.md has them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import batch
import frames as recorded
from install import STAMP

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
_TIMEOUT_S = 180.0


class Client(NamedTuple):
    """One line of the table: a function of clients.py, and what stands next to its figure."""

    name: str
    environment: str
    package: str
    title: str
    made_of: str
    gets: str


CLIENTS = (
    Client("volcast", "volcast", "volcast", "**Volcast**, the daemon's feed", "Python", "struct of floats, checked"),
    Client(
        "volcast-decode",
        "volcast",
        "volcast",
        "Volcast's decoder behind websockets",
        "Python",
        "struct of floats, checked",
    ),
    Client("websockets-msgspec", "volcast", "websockets", "websockets + msgspec", "by hand", "struct of floats"),
    Client("websockets-json", "volcast", "websockets", "websockets + json", "by hand", "named tuple of floats"),
    Client("picows-msgspec", "picows", "picows", "picows + msgspec", "by hand, Cython socket", "struct of floats"),
    Client("cryptofeed", "cryptofeed", "cryptofeed", "cryptofeed", "Cython types, uvloop", "`Candle` of `Decimal`s"),
    Client(
        "unicorn-dict",
        "unicorn-binance-websocket-api",
        "unicorn-binance-websocket-api",
        "unicorn-binance-websocket-api",
        "Cython",
        "dict of strings",
    ),
    Client(
        "unicorn-fy",
        "unicorn-binance-websocket-api",
        "unicorn-fy",
        "unicorn-binance-websocket-api, `UnicornFy`",
        "Cython",
        "dict, keys renamed",
    ),
    Client("ccxt-pro", "ccxt", "ccxt", "ccxt.pro", "Python", "list of floats"),
    Client("binance-sdk", "binance-sdk-spot", "binance-sdk-spot", "binance-sdk-spot", "Python", "pydantic model"),
    Client("python-binance", "python-binance", "python-binance", "python-binance", "Python", "dict of strings"),
    Client("nautilus-raw", "nautilus_trader", "nautilus_trader", "nautilus_trader, its socket", "Rust", "bytes"),
    Client(
        "nautilus-bar",
        "nautilus_trader",
        "nautilus_trader",
        "nautilus_trader, as a bar",
        "Rust, Cython",
        "`BinanceBar`",
    ),
)


@contextmanager
def served(folder: Path, frames: list[bytes]) -> Iterator[str]:
    """Runs the server; yields its URL."""
    path = folder / "frames"
    path.write_bytes(b"\n".join(frames))
    command = [sys.executable, str(HERE / "server.py"), str(path), str(len(recorded.SYMBOLS))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"ws://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.kill()


def measured(client: Client, python: Path, url: str, frames: int, close: float) -> float:
    """Returns µs of CPU a frame. Raises `ValueError` with the client's last words where it did not hand out all."""
    command = [str(python), str(HERE / "clients.py"), client.name, url, str(frames), ",".join(recorded.SYMBOLS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
        result = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise ValueError(f"not through after {_TIMEOUT_S:g} s") from None
    except (IndexError, json.JSONDecodeError):
        raise ValueError((done.stderr.strip().splitlines() or ["no result"])[-1]) from None
    if result["close"] != close:
        raise ValueError(f"the last close is {result['close']}, not {close}")
    return float(result["us_per_frame"])


def frames_table(results: dict[Client, list[float]], environments: Path) -> Iterator[str]:
    medians = {client: statistics.median(times) for client, times in results.items()}
    own = next(median for client, median in medians.items() if client.name == "volcast")
    yield "| client | version | made of | its user gets | µs CPU a frame (range) | frames a core-s | CPU ÷ Volcast's |"
    yield "|---|---|---|---|---|---|---|"
    for client in sorted(medians, key=medians.__getitem__):
        median, times = medians[client], results[client]
        cells = (
            client.title,
            _version(environments / client.environment, client.package),
            client.made_of,
            client.gets,
            f"{median:.1f} ({min(times):.1f}-{max(times):.1f})",
            f"{1e6 / median:,.0f}",
            f"{median / own:.2f}",
        )
        yield f"| {' | '.join(cells)} |"


def batch_table(lines: list[batch.Timed]) -> Iterator[str]:
    yield "| batch | its user gets | CPU s for 1,000 rows | ÷ Volcast's |"
    yield "|---|---|---|---|"
    for line in lines:
        ratio = line.cpu_s_per_1_000 / lines[0].cpu_s_per_1_000
        yield f"| {line.what} | {line.gets} | {line.cpu_s_per_1_000:.3f} | {ratio:.2f} |"


def _version(environment: Path, package: str) -> str:
    (site,) = environment.glob("lib/python*/site-packages")
    return next(iter(metadata.distributions(name=package, path=[str(site)]))).version


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("environments", type=Path)
    parser.add_argument("--frames", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", type=lambda names: names.split(","), help="clients, without the batch")
    parser.add_argument("--keras", type=Path, default=Path(".venv/bin/python"))
    asked = parser.parse_args()
    results: dict[Client, list[float]] = defaultdict(list)
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = list(recorded.made(asked.frames))
        close = float(json.loads(frames[-1])["data"]["k"]["c"])
        with served(folder, frames) as url:
            for _ in range(asked.rounds):
                for client in CLIENTS:
                    environment = asked.environments / client.environment
                    if client.name in left_out or (asked.only and client.name not in asked.only):
                        continue
                    if not (environment / STAMP).exists():
                        left_out[client.name] = "not installed here"
                        continue
                    try:
                        python = environment / "bin" / "python"
                        results[client].append(measured(client, python, url, len(frames), close))
                    except ValueError as error:
                        left_out[client.name] = str(error)
                        results.pop(client, None)
        print(f"{len(frames):,} frames of {len(recorded.SYMBOLS)} symbols, medians of {asked.rounds} rounds\n")
        print("\n".join(frames_table(results, asked.environments)), flush=True)
        for client_name, reason in left_out.items():
            print(f"{client_name}: left out, {reason}")
        if asked.only:
            return
        lines = list(batch.compared(folder, asked.rounds, asked.keras))
    print(f"\n{batch.CANDLES:,} hourly candles, medians of {asked.rounds} rounds\n")
    print("\n".join(batch_table([line for line in lines if not isinstance(line, str)])))
    print("\n".join(line for line in lines if isinstance(line, str)))


if __name__ == "__main__":
    main()
