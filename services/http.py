"""What the HTTP APIs of all services have in common: health, and how they say that something is wrong."""

from typing import Final

import psycopg
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from relay.messaging import Pool
from relay.messaging.retry import Trouble, trouble

RETRY_AFTER_S: Final = 2
"""When to ask again, for who was told that the database is away."""

HEALTH_TIMEOUT_S: Final = 0.8
"""How long /healthz waits for a connection: less than the second that those who ask often give it."""


def create_app(title: str, pool: Pool, router: APIRouter) -> FastAPI:
    """The HTTP API of a service: its own routes, and GET /healthz. The documentation is at /docs."""

    async def healthz() -> dict[str, str]:
        """Whether the service can do its work: 503 while its database is away."""
        async with pool.connection(timeout=HEALTH_TIMEOUT_S) as conn:
            await conn.execute("SELECT")
        return {"status": "ok"}

    app = FastAPI(title=title)
    app.include_router(router)
    app.add_api_route("/healthz", healthz, methods=["GET"], tags=["health"])
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(psycopg.Error, _unavailable)
    return app


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """Name what is wrong. Without the input, which may hold what JSON cannot say back: NaN, or half a character."""
    details = error.errors() if isinstance(error, RequestValidationError) else []
    shown = [{"loc": detail["loc"], "msg": detail["msg"], "type": detail["type"]} for detail in details]
    return JSONResponse({"detail": shown}, 422)


async def _unavailable(_: Request, error: Exception) -> JSONResponse:
    """Trying again helps when the database is away or another transaction was in the way; the rest is a bug."""
    if trouble(error) is Trouble.FAULT:
        raise error
    detail = "the database is not available just now"
    return JSONResponse({"detail": detail}, 503, headers={"Retry-After": str(RETRY_AFTER_S)})
