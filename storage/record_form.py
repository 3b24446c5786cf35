"""The form of a record, and how many are read and written at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import TypeVar

import msgspec

from orchestrator.documents.model import StoreFile
from storage.shelf_facts import KINDS, Fact, named

AT_ONCE_MAX = 16
RECORD_BYTES_MAX = 2**20

T = TypeVar("T")


class _Record(msgspec.Struct):
    kind: str
    tenant: str
    serial: int
    value: msgspec.Raw


def encode(fact: Fact) -> bytes:
    """The record of a fact: JSON."""
    value = msgspec.Raw(msgspec.json.encode(fact.value))
    return msgspec.json.encode(_Record(fact.name.kind, fact.name.tenant, fact.serial, value))


def decode(key: str, data: bytes) -> Fact:
    """The fact of a record that lies under `key`. Raises `ValueError` when it is none, or another's."""
    record = msgspec.json.decode(data, type=_Record)
    if record.kind not in KINDS:
        raise ValueError(f"unknown kind {record.kind[:40]!r}")
    value = msgspec.json.decode(record.value, type=KINDS[record.kind])
    if isinstance(value, StoreFile):  # of numbers, `Attributes` tells only that they are some: an int stays one
        value = replace(value, attributes=msgspec.json.decode(record.value)["attributes"])
    name = named(value, record.tenant)
    if name.key != key:
        raise ValueError("it is the record of something else")
    return Fact(name, value, record.serial)


async def each(work: Callable[[T], Awaitable[None]], items: Collection[T]) -> None:
    """Do `work` on every item, at most `AT_ONCE_MAX` at a time. After a failure no more are begun, and it is raised
    once those under way have ended."""
    left = iter(items)

    async def worker() -> None:
        for item in left:
            try:
                await work(item)
            except BaseException:
                for _ in left:
                    pass
                raise

    ends = await asyncio.gather(*(worker() for _ in range(min(AT_ONCE_MAX, len(items)))), return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException):
            raise end
