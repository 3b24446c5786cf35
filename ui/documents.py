"""The pages of documents: files and stores, what became of uploads, and a playground for searches."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from orchestrator.access.key import Key
from orchestrator.model import Scope
from ui import inside
from ui.pages import HOME, PAGE_FIELDS, Page, may
from ui.ports import Json
from ui.ranks import hits, side_by_side
from ui.routes import View
from ui.sign_in import form

READ = (Scope.UPLOAD, Scope.REALTIME)
WRITE = (Scope.UPLOAD,)
SHOWN = "100"
RESULTS = 20
STORE = f"{HOME}/stores/{{store}}"
FILES = f"{HOME}/files"


def is_upload(path: bytes) -> bool:
    """Whether what is sent to this path is a file, and may be as large as one."""
    return path == FILES.encode() or (path.startswith(f"{HOME}/stores/".encode()) and path.endswith(b"/files"))


class DocumentPages:
    """Handlers. All that they know and do goes through the API, with the visitor's own key."""

    def views(self) -> tuple[View, ...]:
        """All of them."""
        return (
            View(FILES, "GET", READ, self._files),
            View(FILES, "POST", WRITE, self._upload),
            View(f"{HOME}/stores", "POST", WRITE, self._make_store),
            View(STORE, "GET", READ, self._store),
            View(f"{STORE}/files", "POST", WRITE, self._upload),
            View(f"{HOME}/search", "GET", READ, self._search),
        )

    async def _files(self, request: Request, key: Key) -> Page:
        files = await inside.call(request, "GET", "/v1/files", query={"limit": SHOWN})
        data = {"stores": await _stores(request), "files": files["data"], "more_files": files["has_more"]}
        return Page(template="files.html", title="Files", data=data, more=_rights(key))

    async def _store(self, request: Request, key: Key) -> Page:
        path = inside.at("/v1/vector_stores/{store}", store=request.path_params["store"])
        store = await inside.call(request, "GET", path)
        files = await inside.call(request, "GET", f"{path}/files", query={"limit": SHOWN})
        data = {"store": store, "files": files["data"]}
        return Page(template="store.html", title=store["name"] or store["id"], data=data, more=_rights(key))

    async def _make_store(self, request: Request, key: Key) -> Response:
        fields = await form(request)
        store = await inside.call(request, "POST", "/v1/vector_stores", body={"name": fields.get("name", "")})
        return _to(inside.at(STORE, store=store["id"]))

    async def _upload(self, request: Request, key: Key) -> Response:
        """The form's file becomes a file; on a store's page one of its files, too."""
        store = request.path_params.get("store")
        if store is not None:  # an unknown one says so before anything is kept
            await inside.call(request, "GET", inside.at("/v1/vector_stores/{store}", store=store))
        file = await inside.forward(request, "/v1/files")
        if store is None:
            return _to(FILES)
        path = inside.at("/v1/vector_stores/{store}/files", store=store)
        await inside.call(request, "POST", path, body={"file_id": file["id"]})
        return _to(inside.at(STORE, store=store))

    async def _search(self, request: Request, key: Key) -> Page:
        stores = await _stores(request)
        query, asked = request.query_params.get("q", ""), request.query_params.get("store", "")
        chosen = asked or (stores[0]["id"] if stores else "")
        found: Json | None = None
        if query.strip() and chosen:
            body = {"query": query, "max_num_results": RESULTS, "include": ["ranks"]}
            path = inside.at("/v1/vector_stores/{store}/search", store=chosen)
            found = await inside.call(request, "POST", path, body=body)
        shown = hits(found["data"]) if found else []
        data = {"stores": stores, "chosen": chosen, "query": query, "found": found}
        more = {"hits": shown, "lists": side_by_side(shown)}
        return Page(template="search.html", title="Search", data=data, more=more)


async def _stores(request: Request) -> list[Json]:
    found = await inside.call(request, "GET", "/v1/vector_stores", query={"limit": SHOWN})
    stores: list[Json] = found["data"]
    return stores


def _rights(key: Key) -> Json:
    return {"writes": may(key, *WRITE)}


def _to(path: str) -> Response:
    return RedirectResponse(path, 303, headers=PAGE_FIELDS)
