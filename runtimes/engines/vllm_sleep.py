"""vLLM's sleep mode, over its development endpoints (``vllm/entrypoints/serve/dev/sleep/api_router.py``, 0.32).

Level 1 keeps the weights in the machine's memory; level 2 drops them, so that they are loaded anew on waking
(https://docs.vllm.ai/en/latest/features/sleep_mode.html). A request to an engine that sleeps hangs, while its
``/health`` answers 200: nothing but these calls is ever sent to one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.errors import EngineUnreachable

if TYPE_CHECKING:
    import httpx

ASK_TIMEOUT_S = 5.0
ACT_TIMEOUT_S = 300.0
"""Weights of hundreds of gigabytes move through the bus, or are read from the disk."""


async def asleep(endpoint: str) -> bool:
    """Whether it sleeps. Raises `EngineUnreachable`."""
    answer = await _call("GET", endpoint, "/is_sleeping", ASK_TIMEOUT_S)
    try:
        return bool(answer.json()["is_sleeping"])
    except (ValueError, KeyError, TypeError):
        raise EngineUnreachable("the engine does not say whether it sleeps") from None


async def sleep(endpoint: str, level: int) -> None:
    """Returns when it sleeps. Raises `EngineUnreachable`."""
    await _call("POST", endpoint, f"/sleep?level={level}", ACT_TIMEOUT_S)


async def wake(endpoint: str, level: int) -> None:
    """Returns when it is awake. Raises `EngineUnreachable`.

    ``/wake_up`` answers 200 too when a part of it sleeps on, and requests hang then.
    """
    if level == 1:
        await _call("POST", endpoint, "/wake_up", ACT_TIMEOUT_S)
    else:
        await _call("POST", endpoint, "/wake_up?tags=weights", ACT_TIMEOUT_S)
        await _call("POST", endpoint, "/collective_rpc", ACT_TIMEOUT_S, {"method": "reload_weights"})
        await _call("POST", endpoint, "/wake_up?tags=kv_cache", ACT_TIMEOUT_S)
    if await asleep(endpoint):
        raise EngineUnreachable("/wake_up was answered, but it sleeps on")


async def _call(
    method: str, endpoint: str, path: str, timeout_s: float, body: dict[str, str] | None = None
) -> httpx.Response:
    import httpx

    try:
        async with httpx.AsyncClient(timeout=timeout_s, trust_env=False) as client:
            answer = await client.request(method, endpoint + path, json=body)
    except httpx.HTTPError as error:
        raise EngineUnreachable(f"{path.partition('?')[0]}: {str(error) or type(error).__name__}") from None
    if answer.status_code != 200:
        raise EngineUnreachable(f"{path.partition('?')[0]} answered {answer.status_code}: {answer.text[:200]}")
    return answer
