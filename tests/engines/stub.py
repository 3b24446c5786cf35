"""A stand-in for an engine, as a program of its own: speaks the OpenAI API, starts as slowly as it is told, and
misbehaves on request. Standard library only, so that it is up in a tenth of a second.

With ``--enable-sleep-mode`` it sleeps and wakes as vLLM does: what comes while it sleeps hangs.

A request's ``user`` field, or the mood file, picks a fault: hang, huge-header, endless, garbage, garbage-sse, rst,
cut, error-done, status-500, int-code, slow. Every request is written to ``--record`` as a JSON line when it ends, with
the usage that was told last.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"


class Stub:
    """The engine's state."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.ready_at = time.monotonic() + options.start_s
        self.running = 0
        self.peak = 0
        self.paused = 0
        self.slept: set[str] = set()
        """What of it sleeps: weights, kv_cache."""
        self.sleeps = 0
        self.awake = asyncio.Event()
        self.awake.set()

    def ready(self) -> bool:
        return time.monotonic() >= self.ready_at and not Path(self.options.sick_file or "/nonexistent").exists()

    def record(self, **facts: Any) -> None:
        if self.options.record:
            with Path(self.options.record).open("a", encoding="utf-8") as file:
                file.write(json.dumps(facts) + "\n")


async def serve_connection(stub: Stub, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    ahead: bytes | None = b""
    try:
        while ahead is not None:
            ahead = await serve_request(stub, reader, writer, ahead)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def serve_request(
    stub: Stub, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ahead: bytes
) -> bytes | None:
    """Serve one request; what was read of the next one, or None when there is no next."""
    line = ahead + await reader.readline()
    if not line:
        return None
    method, path, _ = line.decode("latin-1").split(" ", 2)
    headers = {}
    while field := (await reader.readline()).decode("latin-1").strip():
        name, _, value = field.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    facts = {"method": method, "path": path, "headers": headers, "sha": hashlib.sha256(body).hexdigest()}
    if method == "GET" or path.startswith("/pause"):
        stub.paused += path.startswith("/pause")
        await answer_get(stub, path, writer)
        stub.record(**facts, outcome="done")
        return None if headers.get("connection") == "close" else b""
    if stub.options.enable_sleep_mode and path.partition("?")[0] in SLEEP_PATHS:
        stub.record(**facts, body=body.decode(), running=stub.running, outcome="asked")
        await answer_sleeper(stub, path, writer)
        return b""
    stub.running += 1
    stub.peak = max(stub.peak, stub.running)
    began = time.time()
    told: dict[str, Any] = {}
    work = asyncio.ensure_future(answer_post(stub, path.partition("?")[0], body, writer, told))
    gone = asyncio.ensure_future(reader.read(1))
    await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
    stub.running -= 1
    if not work.done():
        work.cancel()
        stub.record(**facts, outcome="left", began=began, ended=time.time(), peak=stub.peak, usage=told)
        return None
    stub.record(**facts, outcome="done", began=began, ended=time.time(), peak=stub.peak, usage=told)
    gone.cancel()
    await asyncio.wait((gone,))  # else the next reader would find this one still waiting
    ahead = b"" if gone.cancelled() else gone.result()
    return ahead if work.result() else None


async def answer_get(stub: Stub, path: str, writer: asyncio.StreamWriter) -> None:
    if path == "/health" and not stub.ready():
        if stub.options.hang_health:
            await asyncio.sleep(3600)
        await send(writer, 503, {"status": "starting"})
    elif path == "/metrics":
        text = f"vllm:num_requests_running {stub.running}\nvllm:num_requests_waiting 0\nstub:peak {stub.peak}\n"
        await send(writer, 200, text.encode(), "text/plain")
    elif path == "/is_sleeping":
        await send(writer, 200, {"is_sleeping": bool(stub.slept)})
    else:
        await send(writer, 200, {"status": "ok", "paused": stub.paused, "pid": os.getpid()})


SLEEP_PATHS = ("/sleep", "/wake_up", "/collective_rpc")


async def answer_sleeper(stub: Stub, path: str, writer: asyncio.StreamWriter) -> None:
    """As vLLM 0.32 does: it is awake again once all of it is."""
    name, _, query = path.partition("?")
    fault = {"/sleep": stub.options.sleep_fault, "/wake_up": stub.options.wake_fault}.get(name)
    if fault == "hang":
        await asyncio.sleep(3600)
    elif fault == "partial":
        stub.slept.discard("weights")
    elif fault:
        await send(writer, 500, {"error": {"message": f"{name} was told to fail", "code": 500}})
        return
    if name == "/sleep":
        stub.sleeps += 1
        stub.awake.clear()
        stub.slept = {"weights", "kv_cache"}
        await asyncio.sleep(stub.options.sleep_s)
    elif name == "/wake_up" and not fault:
        await asyncio.sleep(stub.options.wake_s)
        stub.slept -= {query.removeprefix("tags=")} if query else {"weights", "kv_cache"}
        if not stub.slept:
            stub.awake.set()
    await send(writer, 200, {"status": "sleeping" if stub.slept else "awake"})


async def answer_post(stub: Stub, path: str, body: bytes, writer: asyncio.StreamWriter, told: dict[str, Any]) -> bool:
    await stub.awake.wait()
    try:
        asked = json.loads(body)
    except ValueError:
        asked = {}
    fault = mood(stub) or (asked.get("user") if isinstance(asked.get("user"), str) else "")
    if fault in FAULTS:
        return await FAULTS[fault](writer)
    if (refusal := refused(stub, path, asked)) is not None:
        await send(writer, *refusal)
        return True
    if asked.get("model") and stub.options.model and asked["model"] != stub.options.model:
        await send(
            writer, 404, {"error": {"message": "The model does not exist.", "type": "NotFoundError", "code": 404}}
        )
        return True
    delay_s = float(fault.removeprefix("slow:")) if fault.startswith("slow:") else stub.options.token_delay_s
    if asked.get("stream"):
        await stream(stub, asked, writer, delay_s, told)
    else:
        await asyncio.sleep(delay_s)
        answer = whole(stub, path, asked)
        told.update(answer.get("usage", {}))
        await send(writer, 200, answer)
    return True


def mood(stub: Stub) -> str:
    """The fault that all requests get now."""
    file = Path(stub.options.mood_file or "/nonexistent")
    return file.read_text().strip() if file.exists() else ""


def text_of(asked: dict[str, Any]) -> str:
    messages = asked.get("messages") or [{}]
    said = messages[-1].get("content") if isinstance(messages[-1], dict) else ""
    return "The capital of France is Paris." if "France" in str(said) else f"echo: {said}"


def whole(stub: Stub, path: str, asked: dict[str, Any]) -> dict[str, Any]:
    usage = {"prompt_tokens": 7, "completion_tokens": stub.options.tokens, "total_tokens": 7 + stub.options.tokens}
    base = {"id": "stub-1", "created": 1, "model": asked.get("model"), "usage": usage}
    if path == EMBEDDINGS:
        return {**base, "object": "list", "data": embeddings(asked, stub.options.dimension)}
    if path == "/v1/rerank":
        return {"id": "stub-1", "model": asked.get("model"), "results": reranked(asked)}
    if path == CHAT:
        message = {"role": "assistant", "content": text_of(asked)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {**base, "object": "chat.completion", "choices": [choice]}
    if path == "/v1/responses":
        return {**base, "id": f"resp_{os.getpid()}_{time.monotonic_ns()}", "object": "response", "output": []}
    return {**base, "object": path, "choices": [{"index": 0, "text": text_of(asked), "finish_reason": "stop"}]}


def embeddings(asked: dict[str, Any], dimension: int) -> list[dict[str, Any]]:
    """Numbers that follow from each text, as a list or in base64, the last first: their `index` orders them."""
    texts = asked.get("input") or ""
    rows = []
    for index, text in enumerate(texts if isinstance(texts, list) else [texts]):
        digest = hashlib.sha256(str(text).encode()).digest()
        numbers = [byte - 127.5 for byte in (digest * (dimension // len(digest) + 1))[:dimension]]
        packed = base64.b64encode(struct.pack(f"<{dimension}f", *numbers)).decode()
        vector = packed if asked.get("encoding_format") == "base64" else numbers
        rows.append({"object": "embedding", "index": index, "embedding": vector})
    return rows[::-1]


def refused(stub: Stub, path: str, asked: dict[str, Any]) -> tuple[int, Any] | None:
    """What goes wrong with embeddings: as ``--fault-file`` says now, and for good with a text that can't be had."""
    if path != EMBEDDINGS:
        return None
    file = Path(stub.options.fault_file or "/nonexistent")
    fault = file.read_text().strip() if file.exists() else ""
    if fault == "garbage":
        return 200, {"data": "no vectors"}
    if fault:
        return int(fault), {"error": {"message": "the stub was told to fail", "code": int(fault)}}
    if any("unembeddable" in str(text) for text in asked.get("input") or ()):
        return 400, {"error": {"message": "this text is too long for the model", "code": 400}}
    return None


def reranked(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The share of the query's words that each document has; best first."""
    query = set(str(asked.get("query")).lower().split())
    scores = [
        {"index": index, "relevance_score": len(query & set(str(document).lower().split())) / max(len(query), 1)}
        for index, document in enumerate(asked.get("documents") or ())
    ]
    return sorted(scores, key=lambda score: -score["relevance_score"])


def chunk(asked: dict[str, Any], delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    head = {"id": "stub-1", "object": "chat.completion.chunk", "created": 1, "model": asked.get("model")}
    return b"data: " + json.dumps({**head, "choices": [choice], **more}).encode() + b"\n\n"


async def stream(
    stub: Stub, asked: dict[str, Any], writer: asyncio.StreamWriter, delay_s: float, told: dict[str, Any]
) -> None:
    async for piece in pieces(stub, asked, delay_s, told):
        if not piece:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        else:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def pieces(stub: Stub, asked: dict[str, Any], delay_s: float, told: dict[str, Any]) -> AsyncIterator[bytes]:
    """With `continuous_usage_stats`, unless the engine is told not to know them, usage is in every event, as vLLM's."""
    yield b""
    words = text_of(asked).split(" ")
    count, slept_before = max(stub.options.tokens, len(words)), stub.sleeps
    options = asked.get("stream_options") or {}
    continuous = options.get("continuous_usage_stats") and not stub.options.plain_usage

    def usage(tokens: int) -> dict[str, Any]:
        told.update(prompt_tokens=7, total_tokens=7 + tokens, completion_tokens=tokens)
        return {"usage": dict(told)}

    for index in range(count):
        if stub.sleeps != slept_before:  # vLLM aborts what it has in hand, and says so in a whole answer
            yield chunk(asked, {}, "abort")
            break
        word = words[index] if index < len(words) else "…"
        delta = {"role": "assistant", "content": word if not index else f" {word}"}
        yield chunk(asked, delta, **(usage(index + 1) if continuous else {}))
        await asyncio.sleep(delay_s)
    else:
        yield chunk(asked, {}, "stop", **(usage(count) if continuous else {}))
    if options.get("include_usage"):
        last = {"id": "stub-1", "choices": [], **usage(count)}
        last["usage"]["prompt_tokens_details"] = {"cached_tokens": 3}
        yield b"data: " + json.dumps(last).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


async def send(writer: asyncio.StreamWriter, status: int, content: Any, kind: str = "application/json") -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


# --- faults ---

SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def hang(writer: asyncio.StreamWriter) -> bool:
    await asyncio.sleep(3600)
    return False


async def huge_header(writer: asyncio.StreamWriter) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\nx-huge: " + b"a" * 1_000_000 + b"\r\ncontent-length: 2\r\n\r\n{}")
    await writer.drain()
    return False


async def endless(writer: asyncio.StreamWriter) -> bool:
    writer.write(SSE_HEAD)
    while True:
        writer.write(b"8\r\ndata: x\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.005)


async def garbage_sse(writer: asyncio.StreamWriter) -> bool:
    writer.write(SSE_HEAD + b"5\r\n\xff\xfe\x00\x01\x02\r\nZZZZ not a chunk\r\n")
    await writer.drain()
    return False


async def garbage(writer: asyncio.StreamWriter) -> bool:
    writer.write(b"\x16\x03\x01 not HTTP at all\r\n\r\n" * 10)
    await writer.drain()
    return False


async def rst(writer: asyncio.StreamWriter) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{")
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


async def cut(writer: asyncio.StreamWriter) -> bool:
    writer.write(SSE_HEAD + b"9\r\ndata: 1\n\n\r\n")
    await writer.drain()
    await asyncio.sleep(0.05)
    return False


async def error_done(writer: asyncio.StreamWriter) -> bool:
    pieces = (b'data: {"error": {"message": "EngineDeadError", "code": 500}}\n\n', b"data: [DONE]\n\n")
    writer.write(SSE_HEAD + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n")
    await writer.drain()
    return True


async def status_500(writer: asyncio.StreamWriter) -> bool:
    await send(writer, 500, b"Internal Server Error", "text/plain")
    return True


async def int_code(writer: asyncio.StreamWriter) -> bool:
    await send(writer, 400, {"object": "error", "message": "too long", "type": "BadRequestError", "code": 400})
    return True


FAULTS = {
    "hang": hang,
    "huge-header": huge_header,
    "endless": endless,
    "garbage": garbage,
    "garbage-sse": garbage_sse,
    "rst": rst,
    "cut": cut,
    "error-done": error_done,
    "status-500": status_500,
    "int-code": int_code,
}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", "--served-model-name", default="")
    parser.add_argument("--start-s", type=float, default=0.0)
    parser.add_argument("--fail-after-s", type=float)
    parser.add_argument("--fail-line", default="ValueError: the stub was told to fail")
    parser.add_argument("--fail-code", type=int, default=1)
    parser.add_argument("--hang-health", action="store_true")
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--sick-file")
    parser.add_argument("--token-delay-s", type=float, default=0.0)
    parser.add_argument("--plain-usage", action="store_true")
    parser.add_argument("--tokens", type=int, default=5)
    parser.add_argument("--record")
    parser.add_argument("--dimension", type=int, default=8, help="of embeddings")
    parser.add_argument("--fault-file", help="while it holds a status, or garbage, that is the answer to embeddings")
    parser.add_argument("--mood-file", help="while it holds a fault, all requests get it")
    parser.add_argument("--eat-bytes", type=int, default=0, help="memory to fill before anything else")
    parser.add_argument("--lines", type=int, default=0)
    parser.add_argument("--enable-sleep-mode", action="store_true")
    parser.add_argument("--disable-uvicorn-access-log", action="store_true")
    parser.add_argument("--sleep-s", type=float, default=0.0)
    parser.add_argument("--wake-s", type=float, default=0.0)
    parser.add_argument("--sleep-fault", choices=("500", "hang"))
    parser.add_argument("--wake-fault", choices=("500", "hang", "partial"))
    parser.add_argument("--note", help="ignored; for looking at the command line")
    return parser.parse_args()


async def main() -> None:
    chosen = options()
    stub = Stub(chosen)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, (lambda: None) if chosen.ignore_sigterm else ended.set)
    for number in range(chosen.lines):
        print(f"line {number} " + "x" * 100, flush=True)
    eaten = bytearray()
    while len(eaten) < chosen.eat_bytes:
        eaten += b"x" * 2**20
    if chosen.fail_after_s is not None:
        await asyncio.sleep(chosen.fail_after_s)
        print(chosen.fail_line, file=sys.stderr, flush=True)
        sys.exit(chosen.fail_code)
    server = await asyncio.start_server(
        lambda r, w: serve_connection(stub, r, w), chosen.host, chosen.port, backlog=1024, limit=2**20
    )
    print("Application startup complete.", flush=True)
    await ended.wait()
    server.close()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
