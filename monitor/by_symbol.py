"""Metrics that have a value for each symbol, kept as columns of numbers and written as text a column at a time.

prometheus_client keeps an object for each value and takes ten microseconds to write its line, all lines in one piece:
with a thousand symbols it holds the event loop for a second. Here a value is a number in an array, a scrape begins with
a copy of the arrays, and a line takes half a microsecond.

With very many symbols the text would be longer than a scrape should be; then only the first have all their lines.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import cached_property
from itertools import product

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

#: The first symbols have all their lines as long as the text is expected to stay below this. The rest of a megabyte is
#: for values that are longer than usual and for what is not of a symbol.
PLANNED_BYTES = 950_000
#: So many symbols have all their lines in any case.
FEWEST_IN_FULL = 5


class Form(Enum):
    """How a value is written, and how many characters it usually takes."""

    FLAG = ("%.0f", 1)
    COUNT = ("%.0f", 5)
    #: Seconds since the epoch.
    TIME = ("%.0f", 10)
    #: A float needs up to 17 digits to be exact; no panel shows more than four.
    NUMBER = ("%.6g", 8)


class Column:
    """One metric with one set of its other labels: a number for each symbol, NaN where there is none."""

    __slots__ = ("for_all", "line", "values")

    def __init__(self, line: str, values: array[float], for_all: bool) -> None:
        #: A template that takes symbol and value.
        self.line = line
        self.values = values
        #: Whether symbols that do not have all their lines have this one.
        self.for_all = for_all


class Family(Collector):
    """One metric: a column for each combination of its labels other than `symbol`."""

    def __init__(
        self,
        symbols: Mapping[str, int],
        name: str,
        kind: str,
        text: str,
        form: Form,
        labels: Mapping[str, Sequence[str]],
        *,
        initial: float,
        for_all: bool,
    ) -> None:
        self.name = f"{name}_total" if kind == "counter" else name
        self.form = form
        self._family, self._kind, self._text = name, kind, text
        self._symbols = symbols
        self._labels = tuple(labels)
        self._columns = {
            values: Column(self._template(values), array("d", [initial]) * len(symbols), for_all)
            for values in product(*labels.values())
        }

    def set(self, symbol: str, value: float, *labels: str) -> None:
        self._columns[labels].values[self._symbols[symbol]] = value

    def become(self, value: float, *labels: str) -> None:
        """Has these labels in place of all others, with the value for every symbol."""
        for_all = any(column.for_all for column in self.columns)
        column = Column(self._template(labels), array("d", [value]) * len(self._symbols), for_all)
        self._columns = {labels: column}

    def inc(self, symbol: str, *labels: str) -> None:
        self._columns[labels].values[self._symbols[symbol]] += 1

    def write_for_all(self, *labels: str) -> None:
        """Has the column of these labels written for every symbol."""
        self._columns[labels].for_all = True

    @property
    def columns(self) -> Collection[Column]:
        return self._columns.values()

    @property
    def head(self) -> str:
        return f"# HELP {self.name} {self._text}\n# TYPE {self.name} {self._kind}\n"

    def _template(self, values: Sequence[str]) -> str:
        labels = {name: _escaped(value).replace("%", "%%") for name, value in zip(self._labels, values, strict=True)}
        # In the order in which prometheus_client writes them.
        pairs = ",".join(f'{name}="{value}"' for name, value in sorted({"symbol": "%s", **labels}.items()))
        return f"{self.name}{{{pairs}}} {self.form.value[0]}\n"

    # --- what a registry asks for ------------------------------------------------------------------------------

    def describe(self) -> Iterable[Metric]:
        yield Metric(self._family, self._text, self._kind)

    def collect(self) -> Iterable[Metric]:
        """Yields the metric with every value of every symbol."""
        metric = Metric(self._family, self._text, self._kind)
        for values, column in self._columns.items():
            labels = dict(zip(self._labels, values, strict=True))
            for symbol, value in zip(self._symbols, column.values, strict=True):
                if value == value:
                    metric.add_sample(self.name, {"symbol": symbol, **labels}, value)
        yield metric


class BySymbol:
    """The metrics of a node that have a value for each symbol, and their text."""

    def __init__(self, symbols: Iterable[str], registry: CollectorRegistry) -> None:
        self._symbols = {symbol: row for row, symbol in enumerate(dict.fromkeys(symbols))}
        self._written = [_escaped(symbol) for symbol in self._symbols]
        self._registry = registry
        self._families: list[Family] = []

    def add(
        self,
        name: str,
        text: str,
        labels: Mapping[str, Sequence[str]],
        *,
        kind: str,
        form: Form,
        initial: float,
        for_all: bool,
    ) -> Family:
        """Adds a metric. `labels` are those beside `symbol`, with the values that they can have."""
        family = Family(self._symbols, name, kind, text, form, labels, initial=initial, for_all=for_all)
        self._registry.register(family)
        self._families.append(family)
        return family

    @cached_property
    def in_full(self) -> int:
        """How many symbols, the first ones, have all their lines.

        It depends on the number and the length of the symbols' names only, so that no series comes and goes.
        """
        # Of each column: what it takes without the symbol's name, and whether all symbols have it.
        columns = [
            (len(c.line % ("", 0)) - len("0") + family.form.value[1], c.for_all)
            for family in self._families
            for c in family.columns
        ]
        least = [size for size, for_all in columns if for_all]
        more = [size for size, for_all in columns if not for_all]
        spare_bytes = PLANNED_BYTES - sum(sum(least) + len(least) * len(symbol) for symbol in self._written)
        count = 0
        for symbol in self._written:
            spare_bytes -= sum(more) + len(more) * len(symbol)
            if spare_bytes < 0 and count >= FEWEST_IN_FULL:
                break
            count += 1
        return count

    def chunks(self, names: Collection[str] | None = None) -> Iterator[bytes]:
        """Returns the text as it is now, in parts of at most one line for each symbol.

        With `names`, it has these metrics only, and all their lines.
        """
        in_full = self.in_full if names is None else len(self._written)
        copies = [
            (family.head, [(c.line, c.values[: None if c.for_all else in_full]) for c in family.columns])
            for family in self._families
            if names is None or family.name in names
        ]
        return self._write(copies, in_full)

    def _write(self, copies: Iterable[tuple[str, list[tuple[str, array[float]]]]], in_full: int) -> Iterator[bytes]:
        if in_full < len(self._written):
            # A comment, for people who look for a line that is not there.
            yield (
                f"# Only the first {in_full} of {len(self._written)} symbols have all their lines; "
                "?name[]=METRIC has those of one metric for all symbols.\n"
            ).encode()
        for head, columns in copies:
            yield head.encode()
            for line, values in columns:
                # NaN is the only number that is not itself. The values may end before the symbols do.
                lines = [line % pair for pair in zip(self._written, values, strict=False) if pair[1] == pair[1]]
                yield "".join(lines).encode()


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
