"""The journal: SQLite, written first and published from afterwards."""
