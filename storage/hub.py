"""What a hub has of a model, and which of its files are wanted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from orchestrator.errors import WeightsError, WeightsGated, WeightsMissing, WeightsUnreachable

METADATA_TIMEOUT_S = 20.0
_OFFLINE = {"1", "true", "yes", "on"}
_UNWANTED = re.compile(
    r"(^|/)(original|onnx|openvino|coreml|figures|assets|runs|logs)/|^\.|(^|/)(training_args|optimizer|scheduler|rng_state)"
    r"|\.(py|onnx|onnx_data|msgpack|h5|ot|tflite|mlmodel|pb|md|png|jpe?g|gif|svg|webp|mp4|pdf|zip|gz|tar)$"
)
_OLD_FORMATS = re.compile(r"\.(bin|pt|pth|ckpt)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class HubFile:
    """One file of a plan."""

    path: str
    size: int
    blob: str
    """Its name in the cache: the SHA-256 of large files, git's SHA-1 of small ones."""
    url: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All that a pull fetches, at one commit."""

    repo: str
    revision: str
    commit: str
    files: tuple[HubFile, ...]


def choose(names: Iterable[str]) -> tuple[str, ...]:
    """The files an engine needs: configuration, tokenizer, and one format of weights. Pure.

    Safetensors win over pickles (which can carry code), those over GGUF; no pictures, no code, no other formats.
    """
    wanted = [name for name in names if not _UNWANTED.search(name)]
    has_safetensors = any(name.endswith(".safetensors") for name in wanted)
    if has_safetensors:
        wanted = [name for name in wanted if not _OLD_FORMATS.search(name) and not name.endswith(".bin.index.json")]
        if any(not _consolidated(name) for name in wanted if name.endswith(".safetensors")):
            wanted = [name for name in wanted if not _consolidated(name)]
    if has_safetensors or any(_OLD_FORMATS.search(name) for name in wanted):
        wanted = [name for name in wanted if not name.endswith(".gguf")]
    return tuple(sorted(wanted))


def _consolidated(name: str) -> bool:
    """Mistral's second copy of the same weights."""
    return name.startswith("consolidated")


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where the hub's cache is, by the variables that huggingface_hub documents."""
    if found := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(found).expanduser()
    home = environ.get("HF_HOME")
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(home) if home else Path(cache) / "huggingface").expanduser() / "hub"


def plan(repo: str, revision: str, environ: Mapping[str, str]) -> Plan:
    """Ask the hub. Blocks. Raises `WeightsError`."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    if environ.get("HF_HUB_OFFLINE", "").lower() in _OFFLINE:
        raise WeightsUnreachable(f"{repo} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it")
    endpoint = environ.get("HF_ENDPOINT") or None
    try:
        info = HfApi(endpoint=endpoint, token=token(environ) or False).model_info(
            repo, revision=revision, files_metadata=True, timeout=METADATA_TIMEOUT_S
        )
    except GatedRepoError:
        raise _gated(repo, environ) from None
    except RevisionNotFoundError:
        raise WeightsMissing(f"{repo} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise WeightsMissing(_missing(repo, environ)) from None
    except HfHubHTTPError as error:
        raise of_status(error.response.status_code, repo, environ) from None
    except (_transport_error(), OSError) as error:
        raise WeightsUnreachable(
            f"the hub can't be reached for {repo}: {str(error) or type(error).__name__}; see HF_ENDPOINT"
        ) from None
    by_name = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    files = []
    for name in choose(by_name):
        sibling = by_name[name]
        blob = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        url = hf_hub_url(repo, name, revision=info.sha, endpoint=endpoint)
        if _safe(name) and blob and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob):
            files.append(HubFile(path=name, size=sibling.size or 0, blob=blob, url=url))
    if not info.sha or not any(re.search(r"\.(safetensors|bin|pt|pth|gguf)$", file.path) for file in files):
        raise WeightsMissing(f"{repo} holds no weights that an engine here can load")
    return Plan(repo=repo, revision=revision, commit=info.sha, files=tuple(files))


def _transport_error() -> type[Exception]:
    """What the hub's library raises when the network fails: httpx's base error, or that of its successor httpx2."""
    from huggingface_hub import get_session

    library = import_module(type(get_session()).__module__.partition(".")[0])
    error: type[Exception] = library.HTTPError
    return error


def token(environ: Mapping[str, str]) -> str | None:
    """The hub token: the environment's, else the one that `hf auth login` left."""
    from huggingface_hub import get_token

    return environ.get("HF_TOKEN") or get_token()


def of_status(status: int, repo: str, environ: Mapping[str, str]) -> WeightsError:
    """What a hub's answer means for a pull."""
    if status in (401, 403):
        return _gated(repo, environ)
    if status == 404:
        return WeightsMissing(_missing(repo, environ))
    return WeightsUnreachable(f"the hub answers {status} for {repo}")


def _gated(repo: str, environ: Mapping[str, str]) -> WeightsGated:
    endpoint = (environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    return WeightsGated(f"{repo} is gated: accept its terms at {endpoint}/{repo} and set HF_TOKEN")


def _missing(repo: str, environ: Mapping[str, str]) -> str:
    hint = "" if environ.get("HF_TOKEN") else ", or it is private and HF_TOKEN is not set"
    return f"the hub has no model {repo}{hint}"


def _safe(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/") and "\0" not in name and "\\" not in name
