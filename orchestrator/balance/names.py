"""The names of the policies."""

from __future__ import annotations

from enum import StrEnum


class Balance(StrEnum):
    """How one of several engines of a model is chosen for a request; see `balance.policy`."""

    LEAST_LOADED = "least_loaded"
    PREFIX = "prefix"
    ROUND_ROBIN = "round_robin"
    RANDOM_TWO = "random_two"
