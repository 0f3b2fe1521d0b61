"""The door's inside: one module a command. Part of the door, so it may know every room; nobody imports it."""
