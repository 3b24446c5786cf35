"""Which files each store's searches may find, with their attributes: the catalogue's truth, kept at hand."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

from orchestrator.documents.model import IngestStatus, StoreFile
from orchestrator.documents.ports import Shelf

STORES_MAX = 64
"""Rosters kept; the least recently used goes first."""


class Roster:
    """The completed files of stores, by entry. Whoever changes a store's files in the catalogue tells it here, at once
    after; so a deleted file, or a changed attribute, counts in the very next search."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._stores: OrderedDict[str, dict[int, StoreFile]] = OrderedDict()
        self._loading: dict[str, asyncio.Lock] = {}
        self._changes = 0

    async def of(self, store: str) -> Mapping[int, StoreFile]:
        """The store's completed files. Not to be kept across an await: it changes."""
        known = self._stores.get(store)
        if known is None:
            async with self._loading.setdefault(store, asyncio.Lock()):
                known = self._stores.get(store) or await self._load(store)
            self._loading.pop(store, None)
        self._stores.move_to_end(store)
        return known

    def has(self, file: StoreFile) -> bool:
        """Whether it is found, or will be once the store's roster is read."""
        return file.entry in self._stores.get(file.store, {})

    async def admit(self, file: StoreFile) -> None:
        """A completed file is found from now on, with the attributes that it has by now; unless it is gone."""
        while True:
            before = self._changes
            current = await self._shelf.store_file(file.tenant, file.store, file.file)
            if self._changes == before:
                break
        known = self._stores.get(file.store)
        self._changes += 1
        if known is not None and current is not None and current.entry == file.entry:
            known[file.entry] = replace(file, attributes=current.attributes)

    def alter(self, file: StoreFile) -> None:
        """The file has these attributes."""
        self._changes += 1
        known = self._stores.get(file.store, {})
        if file.entry in known:
            known[file.entry] = replace(known[file.entry], attributes=file.attributes)

    def drop(self, file: StoreFile) -> None:
        """The file is not found any more."""
        self._changes += 1
        self._stores.get(file.store, {}).pop(file.entry, None)

    def forget(self, store: str) -> None:
        """The store is gone, or changed in ways not told one by one."""
        self._changes += 1
        self._stores.pop(store, None)

    async def _load(self, store: str) -> dict[int, StoreFile]:
        while True:
            before = self._changes
            files = await self._shelf.all_store_files(store)
            if self._changes == before:
                break
        known = {file.entry: file for file in files if file.status is IngestStatus.COMPLETED}
        self._stores[store] = known
        while len(self._stores) > STORES_MAX:
            self._stores.popitem(last=False)
        return known
