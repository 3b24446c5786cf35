"""A model's name where only plain letters are allowed."""

from __future__ import annotations

import re


def slug(model: str) -> str:
    """A model's name as part of a file or container name."""
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:60]
