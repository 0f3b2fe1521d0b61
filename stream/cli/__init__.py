"""What commands share: options, paths, tables, how they end. Each command is a file in `stream.commands`."""
