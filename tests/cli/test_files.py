"""``orchestrator files``, ``stores`` and ``search`` as users run them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli import main
from orchestrator.cli.finding import Level
from orchestrator.cli.storage_checks import check_documents
from orchestrator.cli.text import NAME_BYTES_MAX, SNIPPET_CHARS, duration_s, printable, safe_name, snippet
from orchestrator.settings import ServerSettings, Settings
from tests.cli.documents_stub import PIECE_BYTES, Documents, documents_stub
from tests.stub import WAIT_S, service, until

HOSTILE = "../../\x1b[2J\u202eevil\r\n.txt"


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def server() -> Iterator[Documents]:
    with documents_stub() as found:
        yield found


@pytest.fixture
def stub(server: Documents) -> Documents:
    server.reset()
    return server


def run(stub: Documents, folder: Path, *args: str, given: bytes = b"") -> Done:
    """A command as its process would run it, in this one, which is quicker."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    handler, client = signal.getsignal(signal.SIGINT), httpx.Client
    with contextlib.ExitStack() as opened, pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.chdir(folder)
        patch.setenv("ORCHESTRATOR_URL", stub.url)
        patch.setattr(sys, "argv", ["orchestrator", *args])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setattr(httpx, "Client", lambda **how: opened.enter_context(client(**how)))
        try:
            main()
        finally:
            signal.signal(signal.SIGINT, handler)
    for stream in (out, err):
        stream.flush()
    said, errors = (stream.buffer.getvalue().decode("utf-8", "replace") for stream in (out, err))
    return Done(int(ended.value.code or 0), said, errors)


def test_a_document_is_put_found_brought_back_and_removed(tmp_path: Path) -> None:
    """By the service itself, which `doctor` finds well afterwards."""
    with service(tmp_path, '[embeddings]\nmodel = ""\n') as running:
        held = Documents(url=running.url)
        text = "# Wings\n\nThe flutter of wings at high speed.\n"
        (tmp_path / "a ü.md").write_text(text)
        (tmp_path / "b.bin").write_bytes(bytes(range(256)))
        assert run(held, tmp_path, "stores", "new", "docs").returncode == 0
        put = run(held, tmp_path, "files", "put", "a ü.md", "b.bin", "--store", "docs", "--expires-after", "2h")
        assert (put.returncode, "b.bin was not read" in put.stderr) == (1, True), put.stderr
        found = run(held, tmp_path, "search", "docs", "fluttering wing")
        assert (found.returncode, "a ü.md · Wings" in found.stdout) == (0, True), found.stderr
        page = json.loads(run(held, tmp_path, "search", "docs", "flutter", "--json").stdout)
        assert page["data"][0]["ranks"]["text"] == 1
        assert run(held, tmp_path, "search", "docs", "zebra").returncode == 1
        id = put.stdout.split()[0]
        assert run(held, tmp_path, "files", "get", id, "-o", "back.md").returncode == 0
        assert (tmp_path / "back.md").read_text() == text
        assert run(held, tmp_path, "files", "rm", id, "--yes").returncode == 0
        assert run(held, tmp_path, "search", "docs", "flutter").returncode == 1
        assert len(json.loads(run(held, tmp_path, "files", "ls", "--json").stdout)["data"]) == 1
        running.end()
        settings = Settings(server=ServerSettings(data_dir=tmp_path / "data"))
        assert {one.level for one in check_documents(settings, repair=False, quiet=True)} == {Level.OK}


# --- put ---


def test_put_sends_files_folders_and_the_standard_input(stub: Documents, tmp_path: Path) -> None:
    (tmp_path / 'a b"ü.txt').write_bytes(b"one")
    (tmp_path / "more" / "deep").mkdir(parents=True)
    (tmp_path / "more" / "deep" / "empty.md").touch()
    (tmp_path / "more" / ".hidden").write_bytes(b"not this")
    done = run(stub, tmp_path, "files", "put", "-r", 'a b"ü.txt', "more", "--expires-after", "7d")
    assert done.returncode == 0, done.stderr
    piped = run(stub, tmp_path, "files", "put", "-", "--name", "said.txt", "--purpose", "user_data", given=b"hello")
    assert piped.returncode == 0, piped.stderr
    kept = [(view["filename"], view["purpose"], data) for view, data in stub.files.values()]
    assert [(name.replace("%22", '"'), *rest) for name, *rest in kept] == [
        ('a b"ü.txt', "assistants", b"one"),
        ("empty.md", "assistants", b""),
        ("said.txt", "user_data", b"hello"),
    ]
    assert stub.forms[0] == {
        "purpose": "assistants",
        "expires_after[anchor]": "created_at",
        "expires_after[seconds]": str(7 * 86400),
    }
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(stub.files)[:2]
    assert done.stderr == ""


def test_put_waits_while_the_service_asks_for_patience(stub: Documents, tmp_path: Path) -> None:
    stub.busy = 1
    (tmp_path / "a.txt").write_bytes(b"x" * 300_000)
    done = run(stub, tmp_path, "files", "put", "a.txt", "--json")
    assert done.returncode == 0
    assert "the object store is away; once more in 1 s" in done.stderr
    (view,) = json.loads(done.stdout)["data"]
    assert stub.files[view["id"]][1] == b"x" * 300_000


def test_put_into_a_store_waits_and_names_what_was_not_read(stub: Documents, tmp_path: Path) -> None:
    stub.make_store("docs")
    stub.unread.add("bad.bin")
    for name in ("good.txt", "bad.bin"):
        (tmp_path / name).write_bytes(b"x")
    done = run(stub, tmp_path, "files", "put", "good.txt", "bad.bin", "gone.txt", "--store", "docs")
    assert done.returncode == 1
    assert "gone.txt: No such file or directory" in done.stderr
    assert "1 of 2 read" in done.stderr
    assert "bad.bin was not read: it is of no known kind" in done.stderr
    fine = run(stub, tmp_path, "files", "put", "good.txt", "--store", stub.stores[0]["id"], "--json")
    assert fine.returncode == 0
    (view,) = json.loads(fine.stdout)["data"]
    assert view["vector_store_file"]["status"] == "completed"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("files", "put", "-"), "--name"),
        (("files", "put", "."), "--recursive"),
        (("files", "put", "a", "b", "--name", "c"), "--name"),
        (("files", "put", "a", "--expires-after", "soon"), "no length of time"),
        (("files", "rm", "file-1"), "--yes"),
        (("search", "docs", "x", "--filter", "year"), "KEY=VALUE"),
        (("search", "docs", "x", "--limit", "0"), "limit"),
    ],
)
def test_wrong_usage_is_2(tmp_path: Path, args: tuple[str, ...], said: str) -> None:
    done = run(Documents(url="http://127.0.0.1:9"), tmp_path, *args)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_no_service_is_1_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    for args in (("files", "ls"), ("files", "put", "a", "a"), ("search", "docs", "x")):
        done = run(Documents(url="http://127.0.0.1:9"), tmp_path, *args)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert "orchestrator serve" in done.stderr


# --- ls, rm ---


def test_ls_goes_through_all_pages_and_rm_removes(stub: Documents, tmp_path: Path) -> None:
    ids = [stub.keep(f"{number}.txt", b"x", "batch" if number % 2 else "assistants") for number in range(5)]
    stub.keep(HOSTILE, b"x")
    done = run(stub, tmp_path, "files", "ls")
    assert len(done.stdout.splitlines()) == 7
    assert "\x1b" not in done.stdout and "\u202e" not in done.stdout
    listed = json.loads(run(stub, tmp_path, "files", "ls", "--json", "--purpose", "batch").stdout)["data"]
    assert [view["filename"] for view in listed] == ["3.txt", "1.txt"]
    assert len(json.loads(run(stub, tmp_path, "files", "ls", "--json", "--limit", "3").stdout)["data"]) == 3
    gone = run(stub, tmp_path, "files", "rm", ids[0], "file-nothing", "--yes")
    assert (gone.returncode, gone.stdout) == (1, f"removed {ids[0]}\n")
    assert "no such file" in gone.stderr
    assert ids[0] not in stub.files


# --- get ---


def test_get_goes_on_where_it_broke_off(stub: Documents, tmp_path: Path) -> None:
    content = os.urandom(5 * PIECE_BYTES)
    id = stub.keep("data.bin", content)
    stub.cut = 2
    done = run(stub, tmp_path, "files", "get", id)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data.bin").read_bytes() == content
    assert stub.ranges[0] is None and all(stub.ranges[1:]) and len(stub.ranges) == 3
    assert list(tmp_path.iterdir()) == [tmp_path / "data.bin"]
    assert run(stub, tmp_path, "files", "get", stub.keep("small", b"\x00\xff\n"), "-o", "-").returncode == 0


def test_get_stays_in_the_folder_and_overwrites_nothing(stub: Documents, tmp_path: Path) -> None:
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    id = stub.keep(HOSTILE, b"new")
    assert run(stub, folder, "files", "get", id).returncode == 0
    (found,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert found.parent == folder and printable(found.name) == found.name
    found.write_bytes(b"old")
    again = run(stub, folder, "files", "get", id)
    assert (again.returncode, "--force" in again.stderr, found.read_bytes()) == (1, True, b"old")
    assert run(stub, folder, "files", "get", id, "--force").returncode == 0
    assert found.read_bytes() == b"new"
    assert run(stub, folder, "files", "get", id, "-o", str(tmp_path / "out")).returncode == 0
    assert (tmp_path / "out").read_bytes() == b"new"
    assert run(stub, folder, "files", "get", id, "-o", "/no/such/folder").returncode == 1
    assert run(stub, folder, "files", "get", "file-nothing").returncode == 1
    assert run(stub, folder, "files", "get", "../../api/models").returncode == 1


def test_ctrl_c_in_a_download_leaves_nothing(stub: Documents, tmp_path: Path) -> None:
    stub.hang = True
    id = stub.keep("data.bin", b"x" * 10 * PIECE_BYTES)
    argv = (sys.executable, "-m", "orchestrator", "files", "get", id, "--url", stub.url)
    with subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: [path for path in tmp_path.glob(".*.part") if path.stat().st_size])
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130
        assert process.stderr is not None and process.stderr.read() == ""
    assert list(tmp_path.iterdir()) == []


# --- stores, search ---


def found_page(*, notice: bool = False) -> dict[str, object]:
    text = "Nothing here. " * 60 + "The flutter of wings\x1b[2J at high speed. " + "More. " * 60
    result = {
        "file_id": "file-1",
        "filename": "report\x1b.pdf",
        "score": 0.8251,
        "attributes": {},
        "content": [{"type": "text", "text": text}],
        "place": {"page": 3, "headings": ["Results", "Wings"], "start_byte": None, "end_byte": None},
    }
    told = {"message": "found by words alone: the embedding model is starting", "retry_after_s": 12.0}
    return {"data": [result], "has_more": False, "notice": told if notice else None}


def test_search_shows_score_name_place_and_snippet(stub: Documents, tmp_path: Path) -> None:
    stub.make_store("docs")
    stub.page = found_page(notice=True)
    options = ("--filter", "lang=en", "--filter", "year=2020", "--threshold", "0.5", "-n", "3")
    done = run(stub, tmp_path, "search", "docs", "wing flutter", *options)
    assert done.returncode == 0, done.stderr
    head, body = done.stdout.splitlines()
    assert head == "0.83  report\N{REPLACEMENT CHARACTER}.pdf · page 3 · Results › Wings (file-1)"
    assert "flutter of wings" in body and "\x1b" not in done.stdout
    assert "words alone: the embedding model is starting (about 12 s)" in done.stderr
    either = [{"type": "eq", "key": "year", "value": "2020"}, {"type": "eq", "key": "year", "value": 2020}]
    lang = {"type": "eq", "key": "lang", "value": "en"}
    assert stub.asked == [
        {
            "query": "wing flutter",
            "max_num_results": 3,
            "filters": {"type": "and", "filters": [lang, {"type": "or", "filters": either}]},
            "ranking_options": {"score_threshold": 0.5},
        }
    ]
    as_json = run(stub, tmp_path, "search", stub.stores[0]["id"], "wing", "--json")
    assert json.loads(as_json.stdout) == stub.page
    assert stub.asked[-1]["include"] == ["ranks"]


def test_search_for_what_is_not_there_is_1(stub: Documents, tmp_path: Path) -> None:
    stub.make_store("docs")
    stub.page = {"data": [], "has_more": False, "notice": None}
    done = run(stub, tmp_path, "search", "docs", "nothing\x1b")
    assert (done.returncode, done.stdout, "nothing found" in done.stderr) == (1, "", True)
    assert "\x1b" not in done.stderr
    unknown = run(stub, tmp_path, "search", "dcos", "x")
    assert (unknown.returncode, "orchestrator stores new" in unknown.stderr) == (1, True)
    stub.make_store("docs")
    twice = run(stub, tmp_path, "search", "docs", "x")
    assert twice.returncode == 1 and stub.stores[1]["id"] in twice.stderr


def test_words_are_lit_on_a_terminal_alone(stub: Documents, tmp_path: Path) -> None:
    stub.make_store("docs")
    stub.page = found_page()
    ours, theirs = pty.openpty()
    argv = (sys.executable, "-m", "orchestrator", "search", "docs", "wing", "--url", stub.url)
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    try:
        subprocess.run(argv, cwd=tmp_path, env=env, stdout=theirs, timeout=WAIT_S, check=True)
        shown = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert re.search(r"\x1b\[[0-9;]+mwings", shown)
    assert "\x1b[2J" not in shown


def test_stores_are_made_listed_and_filled(stub: Documents, tmp_path: Path) -> None:
    made = run(stub, tmp_path, "stores", "new", "docs")
    assert made.stdout.strip() == stub.stores[0]["id"]
    assert run(stub, tmp_path, "stores", "new", "docs").returncode == 1
    assert "docs" in run(stub, tmp_path, "stores", "ls").stdout
    id = stub.keep("a.txt", b"x")
    added = run(stub, tmp_path, "stores", "add", "docs", id, "--json")
    assert (added.returncode, json.loads(added.stdout)["data"][0]["status"]) == (0, "completed")


# --- text ---


@given(st.text())
def test_a_safe_name_is_one_component_and_printable(name: str) -> None:
    found = safe_name(name, "file-1")
    assert found and "/" not in found and "\\" not in found and found[0] not in ".-~ "
    assert printable(found).encode() and len(found.encode()) <= NAME_BYTES_MAX
    assert found.isprintable() or "\x1b" not in found


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\temp\\a.txt", "a.txt"),
        (".bashrc", "_bashrc"),
        ("..", "file-1"),
        ("-rf", "_rf"),
        ("", "file-1"),
        ("a\x00b\x1b.txt", "a_b_.txt"),
        ("ü" * 200 + ".txt", "ü" * 98 + ".txt"),
    ],
)
def test_safe_names(name: str, safe: str) -> None:
    assert safe_name(name, "file-1") == safe


@given(st.text(max_size=2000), st.text(max_size=50))
def test_a_snippet_is_short_and_printable(text: str, query: str) -> None:
    found = snippet(text, query)
    assert len(found) <= SNIPPET_CHARS + 2
    assert printable(found) == found


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("12h", 43200), ("7d", 604800), ("30", 30), ("5s", 5)])
def test_lengths_of_time(text: str, seconds: int) -> None:
    assert duration_s(text) == seconds
