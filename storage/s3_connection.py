"""How an S3 store is reached: where, with which key, how long an answer may take, and what its errors mean."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from orchestrator.errors import ObjectsUnavailable

if TYPE_CHECKING:
    from boto3.session import Session
    from botocore.exceptions import BotoCoreError, ClientError
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 3
ANSWER_TIMEOUT_S = 6
"""For the head of an answer, and for each block of its body."""
ATTEMPTS_MAX = 2
"""Of each request; boto3 waits for up to a second between them."""
REFUSED_S_MAX = 3
"""A store that refuses connections is told of within this."""
SILENT_S_MAX = 15
"""One that says nothing, within this."""
OUTAGE_S = 1
"""After either, calls fail at once for this long, so that those who queue don't wait one by one."""
COMPLETE_TIMEOUT_S = 60
"""The last step of an upload in parts, when stores put them together. AWS sends blanks meanwhile, others nothing."""
CONNECTIONS_MAX = 64
"""Kept open between requests."""
REGION_DEFAULT = "us-east-1"

_KEY_REFUSED = "refuses the key: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what that key may do"
_OTHER_REGION = "is in another region: set AWS_REGION to its own"
_FULL = "is full: free some space in it"
_BUSY = "has too much to do: try again later"
_DAMAGED = "received other bytes than were sent: send them again"
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9.]")
_MEANINGS = {
    "NoSuchBucket": "does not exist: create it, or correct storage.url",
    "AccessDenied": _KEY_REFUSED,
    "InvalidAccessKeyId": _KEY_REFUSED,
    "SignatureDoesNotMatch": _KEY_REFUSED,
    "ExpiredToken": "refuses the session token, which has expired: get a new one",
    "InvalidToken": "refuses the session token: get a new one",
    "RequestTimeTooSkewed": "has another time than this machine: set the clock",
    "PermanentRedirect": _OTHER_REGION,
    "AuthorizationHeaderMalformed": _OTHER_REGION,
    "IllegalLocationConstraintException": _OTHER_REGION,
    "SlowDown": _BUSY,
    "ServiceUnavailable": _BUSY,
    "InsufficientStorage": _FULL,
    "QuotaExceeded": _FULL,
    "XMinioStorageFull": _FULL,
    "BadDigest": _DAMAGED,
    "XAmzContentSHA256Mismatch": _DAMAGED,
    "XAmzContentChecksumMismatch": _DAMAGED,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Place:
    """A bucket and how to reach it. What is None is found by boto3: in AWS's files, or by the machine's role."""

    bucket: str
    prefix: str = ""
    """Before every key; empty, or with a slash at its end."""
    endpoint_url: str | None = None
    public_endpoint_url: str | None = None
    """Where clients reach it, if that is not `endpoint_url`: for the URLs that are handed to them."""
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        bucket: str,
        prefix: str,
        *,
        endpoint_url: str | None,
        public_endpoint_url: str | None,
        region: str | None,
        environ: Mapping[str, str],
    ) -> S3Place:
        """As the settings say, and after them AWS's variables."""
        return cls(
            bucket=bucket,
            prefix=f"{prefix}/" if prefix else "",
            endpoint_url=endpoint_url or environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or None,
            public_endpoint_url=public_endpoint_url,
            region=region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or None,
            access_key=environ.get("AWS_ACCESS_KEY_ID") or None,
            secret_key=environ.get("AWS_SECRET_ACCESS_KEY") or None,
            session_token=environ.get("AWS_SESSION_TOKEN") or None,
        )

    @property
    def told(self) -> str:
        """How messages call it: without a password that the URL may hold."""
        if self.endpoint_url is None:
            return f"the bucket {self.bucket!r}"
        return f"the bucket {self.bucket!r} at {urlsplit(self.endpoint_url).netloc.rpartition('@')[2]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Clients:
    quick: S3Client
    slow: S3Client
    signing: S3Client


class S3Connection:
    """boto3's clients for a place. Everything here blocks, and may be called from any thread."""

    def __init__(self, place: S3Place) -> None:
        self._place = place
        self._making = threading.Lock()
        self._clients: _Clients | None = None
        self._silent_until = 0.0
        self._silent_because = ""

    @contextlib.contextmanager
    def asking(self, *, patient: bool = False) -> Iterator[S3Client]:
        """A client for some requests, whose errors become `ObjectsUnavailable`.

        `patient`: an answer may take `COMPLETE_TIMEOUT_S`.
        """
        if time.monotonic() < self._silent_until:
            raise ObjectsUnavailable(self._silent_because)
        with self.explaining():
            clients = self._made()
            yield clients.slow if patient else clients.quick

    @contextlib.contextmanager
    def signing(self) -> Iterator[S3Client]:
        """A client that signs URLs for others, and asks nothing."""
        with self.explaining():
            yield self._made().signing

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """boto3's errors become `ObjectsUnavailable`, and an outage is remembered. They don't show a signed URL."""
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            ConnectionError,
            HTTPClientError,
            IncompleteReadError,
            ResponseStreamingError,
        )

        try:
            yield
        except ClientError as error:
            raise ObjectsUnavailable(f"{self._place.told} {_answer(error)}") from None
        except (IncompleteReadError, ResponseStreamingError):
            raise ObjectsUnavailable(f"{self._place.told} broke off in the middle of an answer") from None
        except (ConnectionError, HTTPClientError) as error:
            self._silent_because = f"{self._place.told} {_silence(error)}"
            self._silent_until = time.monotonic() + OUTAGE_S
            raise ObjectsUnavailable(self._silent_because) from None
        except BotoCoreError as error:
            raise ObjectsUnavailable(f"{self._place.told} {_not_asked(error)}") from None

    def close(self) -> None:
        """Let go of the connections."""
        with self._making:
            if self._clients is not None:
                for client in (self._clients.quick, self._clients.slow, self._clients.signing):
                    client.close()
            self._clients = None

    def _made(self) -> _Clients:
        with self._making:
            if self._clients is None:
                self._clients = self._make()
            return self._clients

    def _make(self) -> _Clients:
        import boto3

        place = self._place
        session = boto3.session.Session(
            aws_access_key_id=place.access_key,
            aws_secret_access_key=place.secret_key,
            aws_session_token=place.session_token,
        )
        region = place.region or session.region_name or REGION_DEFAULT
        make, url = partial(_client, session, region), place.endpoint_url
        try:
            quick = make(url, answer_timeout_s=ANSWER_TIMEOUT_S)
            return _Clients(
                quick=quick,
                slow=make(url, answer_timeout_s=COMPLETE_TIMEOUT_S, attempts_max=1),
                signing=make(place.public_endpoint_url or url, answer_timeout_s=ANSWER_TIMEOUT_S),
            )
        except ValueError:
            raise ObjectsUnavailable(f"{place.told} has no proper address: correct AWS_ENDPOINT_URL_S3") from None


def _client(
    session: Session, region: str, endpoint_url: str | None, *, answer_timeout_s: int, attempts_max: int = ATTEMPTS_MAX
) -> S3Client:
    from botocore.config import Config

    config = Config(
        signature_version="s3v4",  # boto3's own choice for URLs is version 2, which SeaweedFS and others refuse
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=answer_timeout_s,
        retries={"mode": "standard", "total_max_attempts": attempts_max},
        max_pool_connections=CONNECTIONS_MAX,
        tcp_keepalive=True,
    )
    return session.client("s3", region_name=region, endpoint_url=endpoint_url, config=config)


def error_code(error: ClientError) -> str:
    """S3's name of an error, or the HTTP status of an answer without a body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _answer(error: ClientError) -> str:
    """What a store's refusal means."""
    code = error_code(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _MEANINGS:
        return _MEANINGS[code]
    if status == 507:
        return _FULL
    if status in (429, 503):
        return _BUSY
    if status in (401, 403):
        return _KEY_REFUSED
    return f"answered {_NOT_A_NAME.sub('', code)[:60] or 'with an error'} (HTTP {status})"


def _silence(error: Exception) -> str:
    """Why there was no answer. What boto3 says of it holds the URL."""
    from botocore.exceptions import ConnectTimeoutError, ReadTimeoutError, SSLError

    if isinstance(error, SSLError):
        return "has a certificate that is not trusted: set AWS_CA_BUNDLE to its authority's"
    if isinstance(error, (ConnectTimeoutError, ReadTimeoutError)):
        return "does not answer in time: see whether it runs"
    return "can't be reached: see whether it runs, and whether its address is right"


def _not_asked(error: BotoCoreError) -> str:
    """Why boto3 sent nothing, or did not believe what came."""
    from botocore.exceptions import (
        CredentialRetrievalError,
        FlexibleChecksumError,
        NoCredentialsError,
        PartialCredentialsError,
        ProfileNotFound,
    )

    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return "needs a key: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, ProfileNotFound):
        return "needs a key: AWS_PROFILE names a profile that is not there"
    if isinstance(error, CredentialRetrievalError):
        return "needs a key, which could not be fetched: see AWS's settings"
    if isinstance(error, FlexibleChecksumError):
        return "gave other bytes than its checksum says: the object is damaged"
    return f"can't be asked ({type(error).__name__}): see AWS's settings"
