"""One HTTP port: metrics, health, the newest messages as JSON, and a page for people. Read-only.

Answers come from `stream.ports.Status`, the schemas in /openapi.json from the structs that are published by MQTT.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from litestar import Litestar, MediaType, Response, get
from litestar.exceptions import NotFoundException, ServiceUnavailableException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.params import PathParameter, QueryParameter
from litestar.response import Stream

from stream.core.messages.schemas import Decision, Drift, Forecast, ModelRef, Score
from stream.core.messages.shadows import ShadowScore
from stream.errors import JournalError
from stream.ports import Status
from stream.telemetry import HEARTBEAT_LIMIT_S, Latest

HISTORY_LIMIT = 1_000

_SYMBOL = PathParameter(pattern=r"^\w{2,40}$", description="As configured, e.g. BTCUSDT; any case.")
_FROM = "Open time, ms. Without it: the newest."
_PAGE = Path(__file__).with_name("page.html")


class Health(msgspec.Struct):
    """`heartbeat_age_s`: seconds since the pipeline's last heartbeat."""

    status: str
    heartbeat_age_s: float


class Ready(msgspec.Struct):
    ready: bool
    reasons: list[str]
    halted: list[str]
    symbols: list[str]
    #: Symbols for which `har` is served; `remarks` say why.
    serving_baseline: list[str]
    remarks: list[str]


class ModelInUse(msgspec.Struct):
    """The model that forecasts now. `lineage`: its `.json` in the data directory's `models`; null where no retraining
    has made it."""

    model: ModelRef
    lineage: dict[str, Any] | None


#: Gives the Prometheus text of the named metrics, or of all, in parts that take a few milliseconds each.
Metrics = Callable[[Collection[str] | None], Iterable[bytes]]


def _metrics(metrics: Metrics) -> HTTPRouteHandler:
    scrapes: dict[frozenset[str], asyncio.Task[list[bytes]]] = {}

    async def scrape(names: frozenset[str]) -> list[bytes]:
        parts = []
        for part in metrics(names or None):
            parts.append(part)
            await asyncio.sleep(0)
        return parts

    async def sent(parts: list[bytes]) -> AsyncIterator[bytes]:
        for part in parts:
            yield part
            await asyncio.sleep(0)

    @get("/metrics", include_in_schema=False)
    async def get_metrics(
        name: Annotated[list[str] | None, QueryParameter(name="name[]", description="Only these metrics.")] = None,
    ) -> Stream:
        # Who asks for the same at the same time shares the answer, so that scrapes do not pile up.
        names = frozenset(name or ())
        if names not in scrapes:
            scrapes[names] = asyncio.create_task(scrape(names))
            scrapes[names].add_done_callback(lambda _: scrapes.pop(names))
        parts = await asyncio.shield(scrapes[names])
        # In one piece, a text of many megabytes would hold the loop while it is copied into the socket.
        return Stream(sent(parts), media_type="text/plain; version=0.0.4")

    return get_metrics


def build_app(status: Status, metrics: Metrics, *, version: str, model: Callable[[], ModelInUse]) -> Litestar:
    """Builds the ASGI app. `model()` may read files."""
    page = _PAGE.read_bytes()

    def known(symbol: str) -> str:
        symbol = symbol.upper()
        if symbol not in status.symbols:
            raise NotFoundException(f"{symbol} is not among this node's symbols: {', '.join(status.symbols)}")
        return symbol

    async def latest(symbol: str) -> Latest:
        symbol = known(symbol)
        try:
            return await status.latest(symbol)
        except JournalError as error:
            raise ServiceUnavailableException(str(error)) from None

    def newest(payload: bytes | None, what: str) -> Response[bytes]:
        if payload is None:
            raise NotFoundException(f"there is no {what} yet")
        return Response(payload, media_type=MediaType.JSON)

    @get("/healthz", responses={503: ResponseSpec(Health, description="The pipeline does not move.")})
    async def get_health() -> Response[Health]:
        age_s = status.heartbeat_age_s
        alive = age_s <= HEARTBEAT_LIMIT_S
        return Response(Health("ok" if alive else "stuck", round(age_s, 3)), status_code=200 if alive else 503)

    @get("/readyz", responses={503: ResponseSpec(Ready, description="Not ready; `reasons` say why.")})
    async def get_ready() -> Response[Ready]:
        r = status.readiness()
        body = Ready(
            r.ready, list(r.reasons), list(r.halted), list(status.symbols), list(r.serving_baseline), list(r.remarks)
        )
        return Response(body, status_code=200 if r.ready else 503)

    @get("/api/v1/model", responses={200: ResponseSpec(ModelInUse, description="Which model, and its lineage.")})
    async def get_model() -> Response[ModelInUse]:
        return Response(await asyncio.to_thread(model))

    @get("/api/v1/forecast/{symbol:str}", responses={200: ResponseSpec(Forecast, description="The newest forecast.")})
    async def get_forecast(symbol: Annotated[str, _SYMBOL]) -> Response[bytes]:
        return newest((await latest(symbol)).forecast, "forecast")

    @get("/api/v1/decision/{symbol:str}", responses={200: ResponseSpec(Decision, description="The newest decision.")})
    async def get_decision(symbol: Annotated[str, _SYMBOL]) -> Response[bytes]:
        return newest((await latest(symbol)).decision, "decision")

    @get("/api/v1/drift/{symbol:str}", responses={200: ResponseSpec(Drift, description="The newest drift result.")})
    async def get_drift(symbol: Annotated[str, _SYMBOL]) -> Response[bytes]:
        return newest((await latest(symbol)).drift, "drift result")

    @get("/api/v1/score/{symbol:str}", responses={200: ResponseSpec(Score, description="Live scores, decay.")})
    async def get_score(symbol: Annotated[str, _SYMBOL]) -> Response[bytes]:
        return newest((await latest(symbol)).score, "score: no forecast has matured")

    @get("/api/v1/shadow/{symbol:str}", responses={200: ResponseSpec(ShadowScore, description="The model beside.")})
    async def get_shadow(symbol: Annotated[str, _SYMBOL]) -> Response[bytes]:
        return newest((await latest(symbol)).shadow, "forecast of a model beside: see --shadow")

    @get("/api/v1/history/{symbol:str}", responses={200: ResponseSpec(list[Forecast], description="Oldest first.")})
    async def get_history(
        symbol: Annotated[str, _SYMBOL],
        from_: Annotated[int | None, QueryParameter(name="from", ge=0, le=2**53, description=_FROM)] = None,
        to: Annotated[int | None, QueryParameter(ge=0, le=2**53, description="Open time, ms.")] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=HISTORY_LIMIT)] = 100,
    ) -> Response[bytes]:
        rows = await status.history(known(symbol), from_, to, limit)
        return Response(b"[" + b",".join(rows) + b"]", media_type=MediaType.JSON)

    @get("/", media_type=MediaType.HTML, include_in_schema=False)
    async def get_page() -> bytes:
        return page

    handlers: list[Any] = [
        _metrics(metrics), get_health, get_ready, get_model, get_forecast, get_decision, get_drift, get_score,
        get_shadow, get_history, get_page,
    ]  # fmt: skip

    @get("/openapi.json", include_in_schema=False, media_type=MediaType.JSON)
    async def get_openapi() -> dict[str, Any]:
        return app.openapi_schema.to_schema()

    app = Litestar(
        [*handlers, get_openapi],
        # Only the JSON document, under the path above too: the library's pages load their scripts from elsewhere.
        openapi_config=OpenAPIConfig(title="Volcast", version=version, render_plugins=[JsonRenderPlugin()]),
        logging_config=None,
    )
    return app
