"""The proxy that one writes first: Starlette and httpx. ``python naive.py --port P --upstream URL``."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import AsyncIterator

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route


def app(upstream: str) -> Starlette:
    """One route that forwards and streams."""
    client = httpx.AsyncClient(base_url=upstream, timeout=600, limits=httpx.Limits(max_connections=2000))

    async def forward(request: Request) -> Response:
        body = await request.body()
        sent = client.build_request(
            "POST", request.url.path, content=body, headers={"content-type": "application/json"}
        )
        answer = await client.send(sent, stream=True)
        return StreamingResponse(
            answer.aiter_raw(), answer.status_code, {"content-type": answer.headers["content-type"]}
        )

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await client.aclose()

    return Starlette(routes=[Route("/v1/chat/completions", forward, methods=["POST"])], lifespan=lifespan)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    options = parser.parse_args()
    uvicorn.run(app(options.upstream), port=options.port, log_level="warning", access_log=False)
