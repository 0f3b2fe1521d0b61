"""One module a command: its options, its checks, the call and its output."""
