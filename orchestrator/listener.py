"""Who follows an answer without a task."""

from __future__ import annotations

from typing import Protocol

from orchestrator.errors import UpstreamError


class Listener(Protocol):
    """Follows one answer by callbacks; see `upstream.Connection.listen`."""

    def progressed(self) -> None:
        """Something came: the head, some of the body, or the end."""

    def failed(self, error: UpstreamError) -> None:
        """The answer broke off, or never began. Called once; nothing comes after."""
