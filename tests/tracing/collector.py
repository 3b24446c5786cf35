"""A stand-in for an OpenTelemetry collector: takes OTLP over HTTP, and keeps what came."""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tests.stub import until


@dataclass(frozen=True)
class Seen:
    """A span as it came."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: dict[str, object]
    links: tuple[tuple[str, str], ...]
    failed: bool
    resource: dict[str, object]

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


class Collector:
    """What came, in the order it came."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: list[Seen] = []
        self.raw: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.released = threading.Event()
        self.released.set()

    def take(self, body: bytes, headers: dict[str, str]) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        self.raw.append(body)
        self.headers.append(headers)
        for group in request.resource_spans:
            resource = {each.key: _value(each.value) for each in group.resource.attributes}
            for scope in group.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        Seen(
                            name=span.name,
                            trace_id=span.trace_id.hex(),
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            kind=span.kind,
                            start_ns=span.start_time_unix_nano,
                            end_ns=span.end_time_unix_nano,
                            attributes={each.key: _value(each.value) for each in span.attributes},
                            links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                            failed=span.status.code == 2,
                            resource=resource,
                        )
                    )

    def roots(self, name: str) -> list[Seen]:
        """The first spans of that name, once there is one."""
        found: list[Seen] = until(lambda: [span for span in tuple(self.spans) if span.name == name])
        return found

    def trace(self, trace_id: str, outcome: str | None = None) -> list[Seen]:
        """A trace of a request, once it has come; its parts come together."""

        def whole() -> list[Seen]:
            found = [span for span in tuple(self.spans) if span.trace_id == trace_id]
            told = [span.attributes.get("orchestrator.outcome") for span in found]
            return found if outcome is None or outcome in told else []

        found: list[Seen] = until(whole)
        return found


def _value(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)


@contextlib.contextmanager
def collector(*, silent: bool = False) -> Iterator[Collector]:
    """One that listens on loopback. `silent`: it takes requests and does not answer until the test ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            found.take(body, {name.lower(): value for name, value in self.headers.items()})
            found.released.wait(60)
            with contextlib.suppress(OSError):  # whoever asked may be gone
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(f"http://127.0.0.1:{server.server_address[1]}")
    if silent:
        found.released.clear()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield found
    finally:
        found.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
