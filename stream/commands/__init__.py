"""One module for each command: its options, its checks, the call and its output."""
