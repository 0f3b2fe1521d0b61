"""Every command of `volcast`, loaded."""

from __future__ import annotations

import click

from stream.__main__ import cli

_CONTEXT = click.Context(cli)
COMMANDS = {name: found for name in cli.list_commands(_CONTEXT) if (found := cli.get_command(_CONTEXT, name))}
