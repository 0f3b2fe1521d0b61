"""Drift: its detection, and the periodic job in a process of its own."""
