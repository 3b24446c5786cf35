"""What is configured of servers that somebody else runs: frozen values, and the form of their addresses. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

URL_CHARS_MAX = 500
_HOST = re.compile(r"[a-z0-9]([a-z0-9_.-]{0,251}[a-z0-9])?\.?|[0-9a-f:.]*:[0-9a-f:.]*")
_BASE = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthRules:
    """How a server is looked at, and what it must keep to. See `judge`."""

    interval_s: float = 5.0
    timeout_s: float = 2.0
    window: int = 10
    """How many of the last checks count."""
    success_min: float = 0.5
    """The least part of them that must have gone well, 0 … 1."""
    slow_s: float = 0.0
    """The most that the median of them may take; 0: whatever `timeout_s` allows."""
    dns_refresh_s: float = 5.0
    """How often a name is looked up again. `getaddrinfo` does not tell for how long an answer is good."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """One server, or all that its DNS name stands for."""

    url: str
    """As `normal_url` writes it."""
    max_concurrent_requests: int = 0
    """At each server; 0: as many as come."""
    key: str = field(default="", repr=False)
    """What it wants to see as ``Authorization: Bearer``; empty: nothing."""
    model: str = ""
    """What it calls the model; empty: what we do."""
    weight: float = 1.0
    """Its part of what its capacity would get."""
    added: bool = False
    """By an admin, not by the configuration."""
    draining: bool = False
    """It gets no more requests."""

    @property
    def secure(self) -> bool:
        """Whether it is spoken to by TLS."""
        return self.url.startswith("https:")

    @property
    def host(self) -> str:
        """Name or address, an IPv6 one without brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """As given, or the scheme's."""
        return urlsplit(self.url).port or (443 if self.secure else 80)

    @property
    def authority(self) -> str:
        """The field ``Host``."""
        return urlsplit(self.url).netloc

    @property
    def base(self) -> str:
        """What stands before our paths: empty, or as ``/llm``."""
        return urlsplit(self.url).path


def normal_url(url: str) -> str:
    """``http(s)://host[:port][/base]``, lower case where that means nothing, without a slash or OpenAI's ``/v1`` at
    its end: so each server has one name. Raises ValueError with a sentence that does not repeat the address, which
    may hold a secret."""
    if len(url) > URL_CHARS_MAX or not url.isascii() or not url.isprintable() or set(url) & set(" \\?#%"):
        raise ValueError("an address is http(s)://host[:port][/base], without spaces, '?', '#' and '%'")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"not an address: {error}") from None
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host) or port == 0:
        raise ValueError("an address is http(s)://host[:port][/base]")
    if "@" in parts.netloc:
        raise ValueError("an address holds no user and no password; a server's key is `key` or `key_env`")
    base = parts.path.rstrip("/")
    base = base.removesuffix("/v1").rstrip("/")
    if not _BASE.fullmatch(base) or {".", ".."} & set(base.split("/")):
        raise ValueError("the path of an address is plain: letters, digits, and no '..'")
    shown = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{shown}{f':{port}' if port not in (None, default) else ''}{base}"
