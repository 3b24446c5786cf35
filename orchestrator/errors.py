"""The errors we raise, in one small tree, and their OpenAI-shaped form."""

from __future__ import annotations

from typing import Any


class OrchestratorError(Exception):
    """Base of all errors that are ours."""


class ConfigError(OrchestratorError):
    """The configuration can't be used; the message names the key and the remedy. Exit code 2."""


class RuntimeUnavailable(OrchestratorError):
    """The runtime did not answer: what it holds is unknown, not gone."""


class LaunchFailed(OrchestratorError):
    """The engine was not started; the message is one sentence."""


class EngineUnreachable(OrchestratorError):
    """An engine did not do what it was told; the message is one sentence."""


class UpstreamError(OrchestratorError):
    """The engine did not give a whole answer."""


class UpstreamUnreachable(UpstreamError):
    """The request was not answered at all: there was no connection."""


class UpstreamLost(UpstreamUnreachable):
    """The connection closed before the first byte of an answer: whether the engine has seen the request is unknown."""


class UpstreamDeclined(UpstreamError):
    """It answered that it can't, as another engine may."""


class UpstreamBroken(UpstreamError):
    """It closed, or sent what is not HTTP, in the middle."""


class UpstreamTimeout(UpstreamError):
    """It was silent for too long."""


class NotFound(OrchestratorError):
    """No such thing."""


class PreflightFailed(OrchestratorError):
    """A look before the start saw that it would fail; the message is one sentence."""


class WeightsError(OrchestratorError):
    """A pull failed; the message is one sentence that says what to do."""

    permanent = False


class WeightsGated(WeightsError):
    """The hub wants a token that has accepted the model's terms."""

    permanent = True


class WeightsMissing(WeightsError):
    """The hub has no such model, revision, or usable weights in it."""

    permanent = True


class WeightsTooLarge(WeightsError):
    """The disk has no room for it."""

    permanent = True


class WeightsUnreachable(WeightsError):
    """The hub did not answer, or the download broke off too often."""


class ObjectsUnavailable(OrchestratorError):
    """The object store did not do what it was asked: what it holds is unknown. The message says what to do."""


class IndexUnavailable(OrchestratorError):
    """The index of a vector store did not do what it was asked. It may go better once it is opened again."""


class MachineRefused(OrchestratorError):
    """The operating system refused what it may grant later: a full disk, too many open files."""


class Unreadable(OrchestratorError):
    """A document can't be read, now or ever; the message is one sentence. `code` is OpenAI's."""

    def __init__(self, message: str, *, code: str = "invalid_file") -> None:
        super().__init__(message)
        self.code = code


class EmbedderUnavailable(OrchestratorError):
    """No vectors now; ask again in `retry_after_s`."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EmbedderFailed(OrchestratorError):
    """No vectors for these texts, ever; the message is one sentence."""


class ApiError(OrchestratorError):
    """An answer to a client. Shape: https://platform.openai.com/docs/guides/error-codes."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str | None = None,
        headers: dict[str, str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind or error_type(status)
        self.headers = headers or {}
        self.extra = extra or {}

    def body(self) -> dict[str, Any]:
        """The JSON body: ``{"error": {message, type, param, code}}`` and whatever `extra` adds beside it."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error, **self.extra}


class Elsewhere(ApiError):
    """Not for this process to answer; see `gateway`."""

    def __init__(self) -> None:
        super().__init__(421, "another process answers this", code="misdirected")


def error_type(status: int) -> str:
    """OpenAI's `type` for an HTTP status."""
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    if status == 429:
        return "rate_limit_error"
    if status == 503:
        return "service_unavailable"
    return "invalid_request_error" if status < 500 else "server_error"
