"""Figures of a benchmark beside their limits: all are printed before one that is missed fails it."""

from __future__ import annotations


class Measured:
    def __init__(self) -> None:
        self._missed: list[str] = []
        print()

    def show(self, what: str, value: float, unit: str, limit: float | None = None, *, at_least: bool = False) -> None:
        """Prints a figure, and remembers it if it is on the wrong side of its limit."""
        missed = limit is not None and (value < limit if at_least else value > limit)
        bound = "" if limit is None else f"   limit {limit:g} {unit}{': missed' if missed else ''}"
        print(f"{what:<62} {value:9.2f} {unit}{bound}")
        if missed:
            self._missed.append(what)

    def check(self) -> None:
        assert not self._missed, f"limits missed: {'; '.join(self._missed)}"
