"""What watches the daemon: metrics, HTTP, drift. It is told facts; the live path never waits for it."""
