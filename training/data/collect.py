"""Collects one symbol's candles for a period: from the archive, and from REST what the archive lacks.

Rules of this module:
- Where both have an hour the archive wins, because it is what the exchange repairs. Differences are reported.
- A zip's checksum is fetched first, so that a revised zip is noticed and one that is stored is not fetched again.
- An hour that neither has is a hole once two REST answers, some time apart, lack it between two of their candles. An
  answer that is merely short proves nothing, and the request is repeated.
- Each answer is stored (`Parts`) before it counts, so whatever a killed fetch had finished is not requested again.
"""

from __future__ import annotations

import asyncio
import gzip
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import msgspec

from stream.adapters.rest.archive import BinanceArchive
from stream.adapters.rest.history import BinanceHistory
from stream.clock import Clock
from stream.core.market.binance import KLINES_PAGE
from stream.core.market.candle import HOUR_MS, Candle
from stream.errors import UnreachableError
from stream.times import utc
from training.data.archive import ArchiveError, Part, days, decode, parse_checksum, plan, sha256
from training.data.parts import FetchError, Parts

T = TypeVar("T")

ATTEMPTS = 5
#: A zip that is wrong or unreachable this many times is replaced by REST.
ZIP_ATTEMPTS = 3
_RETRY_S = 0.5
#: A fetch does not wait longer than this for a ban to end.
_LONGEST_SILENCE_S = 900.0
#: REST may still publish an hour for this long after its end. Such an hour is left out instead of being waited for.
_SETTLED_AFTER_MS = HOUR_MS
#: Pause between the two answers that prove a hole.
_APART_S = 2.0
#: Hours per request: as many as one page holds along with later candles, which prove that the last hour is absent.
_HOURS_A_QUESTION = KLINES_PAGE - 20


class Replaced(msgspec.Struct, frozen=True):
    """A part of the archive that could not be used and why; its hours come from REST."""

    part: str
    reason: str


class Disagreement(msgspec.Struct, frozen=True):
    """An hour in which archive and REST differ; each as open, high, low, close, volume."""

    open_time: int
    archive: tuple[float, float, float, float, float]
    rest: tuple[float, float, float, float, float]


class Facts(msgspec.Struct):
    """What to report about how a symbol's candles were collected."""

    revised: list[str] = []
    replaced: list[Replaced] = []
    #: Stored parts that could not be compared with the archive, or that it no longer has.
    unchecked: list[Replaced] = []
    disagreements: list[Disagreement] = []
    #: Rows of the archive that are no candle of this grid, by reason (off_grid, ohlc_order, ...).
    set_aside: dict[str, int] = {}


class _Page(msgspec.Struct):
    """One REST answer: the candles that open in [from_ms, to_ms] and were closed at `asked_at_ms`. `holes` are hours
    of that range that are proven not to exist."""

    asked_at_ms: int
    from_ms: int
    to_ms: int
    candles: list[Candle]
    holes: list[int] = []


async def patiently(question: Callable[[], Awaitable[T]], history: BinanceHistory, clock: Clock) -> T:
    """Awaits `question()` up to `ATTEMPTS` times and returns its answer. Raises the last `UnreachableError` where none
    came, and `FetchError` where the exchange demands a pause that is too long to wait for."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return await question()
        except UnreachableError as error:
            if history.silent_for_s > _LONGEST_SILENCE_S:
                raise FetchError(f"{error}; run the same command after that: it resumes") from None
            await clock.sleep(_RETRY_S * 2**attempt)
    return await question()


class Collector:
    """Collects the hours of `symbol` that open in [start_ms, end_ms), all of them closed at `now_ms`."""

    def __init__(
        self,
        symbol: str,
        start_ms: int,
        end_ms: int,
        now_ms: int,
        *,
        archive: BinanceArchive,
        history: BinanceHistory,
        parts: Parts,
        clock: Clock,
        progress: Callable[[int], None],
    ) -> None:
        """`progress` is called with the number of hours that are settled."""
        self.symbol = symbol
        self.facts = Facts()
        self.from_archive: dict[int, Candle] = {}
        self.from_rest: dict[int, Candle] = {}
        self._start_ms, self._end_ms, self._now_ms = start_ms, end_ms, now_ms
        self._archive, self._history, self._parts = archive, history, parts
        self._clock, self._progress = clock, progress
        self._hours = range(start_ms, end_ms, HOUR_MS)
        #: Hours that do not exist, or that are so recent that they are left out.
        self._settled: set[int] = set()
        #: Hours that one answer lacked between two of its candles.
        self._lacked: set[int] = set()
        self._set_aside: Counter[str] = Counter()

    async def collect(self) -> list[Candle]:
        """Returns the candles in order. Raises `FetchError` or `UnreachableError` where REST neither has a missing hour
        nor proves its absence."""
        await self._each(plan(self.symbol, self._start_ms, self._end_ms, self._now_ms))
        await self._ask_rest()
        self._conclude()
        return [self.from_archive.get(h) or self.from_rest[h] for h in self._hours if self._has(h)]

    @property
    def rest_hours(self) -> int:
        return len(self.from_rest.keys() - self.from_archive.keys())

    def _has(self, hour: int) -> bool:
        return hour in self.from_archive or hour in self.from_rest

    # -- the archive

    async def _each(self, parts: Sequence[Part]) -> None:
        tasks = [asyncio.create_task(self._take(part)) for part in parts]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self, part: Part) -> None:
        in_hand = await asyncio.to_thread(self._parts.get, part.name)
        revised = False
        for attempt in range(ZIP_ATTEMPTS):
            try:
                checksum = await self._archive.file(part.checksum_path)
                if checksum is None:
                    await self._absent(part, in_hand)
                    return
                wanted = parse_checksum(checksum, part)
                if in_hand is not None and sha256(in_hand) == wanted:
                    self._learn(part, in_hand)
                    return
                revised = in_hand is not None
                content = await self._verified(part, wanted)
                self._learn(part, content)
                await asyncio.to_thread(self._keep, part, content)
                if revised:
                    self.facts.revised.append(part.label)
                return
            except (UnreachableError, ArchiveError) as error:
                reason = str(error)
            if attempt < ZIP_ATTEMPTS - 1:
                await self._clock.sleep(_RETRY_S * 2**attempt)
        if in_hand is not None and not revised:
            self._learn(part, in_hand)
            self.facts.unchecked.append(Replaced(part.label, reason))
        else:
            self.facts.replaced.append(Replaced(part.label, reason))

    def _keep(self, part: Part, content: bytes) -> None:
        self._parts.put(part.name, content)
        if part.monthly:
            # A month that was not published yet was fetched as days.
            for day in self._parts.names(f"{part.name.removesuffix('.zip')}-"):
                self._parts.drop(day)

    async def _absent(self, part: Part, in_hand: bytes | None) -> None:
        if in_hand is not None:
            self._learn(part, in_hand)
            self.facts.unchecked.append(Replaced(part.label, "the archive no longer has it"))
        elif part.monthly:
            await self._each(days(part, self._start_ms, self._end_ms))

    async def _verified(self, part: Part, wanted: str) -> bytes:
        content = await self._archive.file(part.path)
        if content is None:
            raise ArchiveError(f"{part.name} is absent though its checksum is there")
        if sha256(content) != wanted:
            raise ArchiveError(f"{part.name}: its checksum is wrong, or it is not whole")
        return content

    def _learn(self, part: Part, content: bytes) -> None:
        rows = decode(content, part)
        self._set_aside += rows.set_aside
        self.from_archive.update((c.open_time, c) for c in rows.candles if self._start_ms <= c.open_time < self._end_ms)
        self._progress(len(self.from_archive))

    # -- REST

    async def _ask_rest(self) -> None:
        prefix = f"{self.symbol}-rest-"
        for name in await asyncio.to_thread(self._parts.names, prefix):
            content = await asyncio.to_thread(self._parts.get, name)
            page = None if content is None else _page(content)
            if page is not None:
                self._turn(page)
            if page is None or not self._is_of_use(page):
                await asyncio.to_thread(self._parts.drop, name)
        fruitless = 0
        while missing := [h for h in self._hours if not (self._has(h) or h in self._settled)]:
            last = missing[-1]
            # A page costs the same whatever its length, and a full one shows where archive and REST differ.
            first = max(self._start_ms, last - _HOURS_A_QUESTION * HOUR_MS)
            question = partial(self._history.candles, self.symbol, first, last)
            answer = await patiently(question, self._history, self._clock)
            holes = sorted(self._lacked.intersection(answer.absent))
            page = _Page(answer.asked_at_ms, first, last, answer.candles, holes)
            name = f"{prefix}{first}-{last}.json.gz"
            await asyncio.to_thread(self._parts.put, name, gzip.compress(msgspec.json.encode(page), mtime=0))
            before = self._learnt
            self._turn(page)
            self._lacked.update(answer.absent)
            unproven = [h for h in missing if h >= first and not (self._has(h) or h in self._settled)]
            if unproven:
                fruitless = fruitless + 1 if self._learnt == before else 0
                if fruitless == ATTEMPTS:
                    raise FetchError(
                        f"{self.symbol}: the exchange neither shows nor disproves {len(unproven)} hour(s) from "
                        f"{utc(unproven[0])} on; run the same command later: it resumes"
                    )
                await self._clock.sleep(_APART_S)
            self._progress(sum(1 for h in self._hours if self._has(h) or h in self._settled))

    @property
    def _learnt(self) -> int:
        return len(self._lacked) + len(self._settled) + len(self.from_rest)

    def _is_of_use(self, page: _Page) -> bool:
        """Returns whether the page covers an hour that the archive lacks or that lies outside the period asked for."""
        hours = range(page.from_ms, page.to_ms + 1, HOUR_MS)
        return any(h not in self.from_archive for h in hours)

    def _turn(self, page: _Page) -> None:
        self.from_rest.update((c.open_time, c) for c in page.candles if self._start_ms <= c.open_time < self._end_ms)
        self._settled.update(page.holes)
        hours = range(page.from_ms, page.to_ms + 1, HOUR_MS)
        young = (h for h in hours if h + HOUR_MS + _SETTLED_AFTER_MS > page.asked_at_ms)
        self._settled.update(h for h in young if page.asked_at_ms >= self._now_ms)

    def _conclude(self) -> None:
        both = sorted(self.from_archive.keys() & self.from_rest.keys())
        pairs = ((h, self.from_archive[h].ohlcv, self.from_rest[h].ohlcv) for h in both)
        self.facts.disagreements = [Disagreement(h, a, r) for h, a, r in pairs if a != r]
        self.facts.set_aside = dict(sorted(self._set_aside.items()))
        self.facts.revised.sort()
        self.facts.replaced.sort(key=lambda r: r.part)
        self.facts.unchecked.sort(key=lambda r: r.part)


def _page(content: bytes) -> _Page | None:
    try:
        return msgspec.json.decode(gzip.decompress(content), type=_Page)
    except (OSError, msgspec.DecodeError):
        return None  # written by another version
