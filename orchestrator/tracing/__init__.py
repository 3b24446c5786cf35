"""Traces of requests and starts, for OpenTelemetry. Only `otlp` needs its packages."""
