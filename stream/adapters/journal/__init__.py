"""The journal: a SQLite database that is written before anything is published."""
