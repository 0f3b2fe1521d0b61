"""The pure core: values in, values out. No clock, no sockets, no files, no randomness; numpy and msgspec only."""
