"""What Docker's own words mean, as a sentence that helps. Pure."""

from __future__ import annotations

import re

from docker.errors import APIError

CHARS_MAX = 300
_REMEDIES = (
    (
        "could not select device driver",
        "Docker there can't give GPUs to containers: install NVIDIA's container toolkit on that host, run "
        "`nvidia-ctk runtime configure --runtime=docker`, and restart Docker",
    ),
    ("bind source path does not exist", "that folder must be on the engines' host too, at the same path"),
    ("no space left on device", "make room on the host's disk: `docker system df` tells what Docker keeps there"),
)
_REFUSALS = (
    ("denied", "check its name, or `docker login` as the user whom the orchestrator runs as"),
    ("unauthorized", "`docker login` as the user whom the orchestrator runs as"),
    ("authentication required", "`docker login` as the user whom the orchestrator runs as"),
    ("manifest unknown", "check its name and tag"),
    ("not found", "check its name and tag"),
    ("no matching manifest", "take an image that was made for the host's kind of processor"),
    ("invalid reference format", "check its name"),
)
_NOT_RUN = re.compile(r"\[FATAL tini \(\d+\)\] exec (?P<program>.{1,200}) failed: (?P<why>.{1,100})")
NOT_RUN = (126, 127)
"""The exit codes of Docker's init where it could not run the program."""


def said(error: Exception) -> str:
    """What the daemon says, in one line; where we know what to do, that too."""
    text = error.explanation if isinstance(error, APIError) and error.explanation else str(error)
    line = (str(text).splitlines() or [type(error).__name__])[0][:CHARS_MAX]
    remedy = next((remedy for words, remedy in _REMEDIES if words in line.lower()), "")
    return f"{line}; {remedy}" if remedy else line


def refusal(text: str) -> str:
    """What to do about an image that a registry does not give; empty: its words are no refusal, but a fault."""
    return next((remedy for words, remedy in _REFUSALS if words in text.lower()), "")


def not_run(log: str) -> str:
    """Why Docker's init could not run the program, from its log; empty: it could."""
    found = _NOT_RUN.search(log)
    if found is None:
        return ""
    if "No such file" in found["why"]:
        return f"the image does not have the program {found['program']}"
    return f"the image's program {found['program']} can't be run: {found['why'].strip()}"
