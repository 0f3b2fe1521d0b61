"""The command line's entry point. It loads only the command that is asked for (`stream.commands`), and prints an error
as one line.

Exit codes: 0 done, 1 could not do it (the reason on stderr), 2 wrong usage, 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

if os.getpid() == 1:
    # The kernel withholds signals without a handler from the first process of a container, also while it imports.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))

try:
    import click

    from stream.cli import environment, parameters, process
    from stream.errors import MisuseError, VolcastError
except KeyboardInterrupt:
    # Nothing is loaded yet that could turn it into an exit code.
    sys.exit(130)

#: Each command is a module of `stream.commands`; listing them loads none.
COMMANDS = {
    "backtest": "What the daemon's decisions would have come to, beside benchmarks (needs `research`).",
    "backup": "Copy the journal into one file while the daemon goes on.",
    "check": "Show the effective settings, the model's contract and who can be reached.",
    "demo": "The whole thing on this machine: an exchange, a broker and the real monitor on them.",
    "drift": "Compare the newest candles with what the model was trained on (needs `drift`).",
    "evaluate": "Score models beside the baselines, also where they win (needs `research`).",
    "exchange": "The embedded exchange on its own: Binance's dialect, faults on order.",
    "export": "Turn a training run into one ONNX bundle (needs `train`).",
    "fetch": "Fetch closed candles into one candle file, from the bulk archive and from REST.",
    "predict": "Forecasts and decisions for a candle file, the same numbers as the daemon's.",
    "report": "Pages on drift and forecast quality of a period (needs `drift`).",
    "retrain": "Train a challenger and promote it if it beats the champion (needs `train`, `research`).",
    "run": "Run the daemon against a real exchange and broker.",
    "train": "Train the LSTM on a candle file (needs `train`).",
}
#: Commands that run for long alongside other programs.
_FRUGAL = ("run", "demo", "exchange")


class _CommandLine(click.Group):
    """The group of all commands. A `VolcastError` becomes one line, with exit code 2 for wrong usage and 1 for what
    could not be done; a defect keeps its traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name in _FRUGAL and process.is_ours:
            process.few_threads()
        found: click.Command = getattr(importlib.import_module(f"stream.commands.{cmd_name}"), cmd_name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        try:
            with parameters.errors_in_one_line():
                return super().make_context(*args, **options)
        except KeyboardInterrupt:
            sys.exit(process.INTERRUPTED)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with parameters.errors_in_one_line():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(process.INTERRUPTED)
        except VolcastError as error:
            from stream import logs

            logs.last_words(f"volcast: {' '.join(str(error).split())}")
            ctx.exit(2 if isinstance(error, MisuseError) else 1)


@click.group(cls=_CommandLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="volcast")
def cli() -> None:
    """Volcast listens to an exchange's hourly candles, forecasts how volatile the next 24 hours will be, turns that
    into a risk decision, publishes both over MQTT, and keeps checking whether it can still be trusted.

    Try it: volcast demo
    """


def main() -> None:
    environment.forget_others()
    with process.in_order():
        cli(prog_name="volcast")


if __name__ == "__main__":
    main()
