"""Real documents of each kind through the real subprocess, and what becomes of it in each bad case."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import cast

import psutil
import pytest

from orchestrator.documents.model import Chunk, Chunking, Passages, Piece, Place
from orchestrator.documents.passages import PassagesDamaged, decode, encode
from orchestrator.documents.ports import Source
from orchestrator.errors import MachineRefused, Unreadable
from storage.extract import server, worker
from storage.extract.reader import LimitedReader
from storage.extract.source_text import read_text
from tests.storage import documents
from tests.stub import until

BYTES = 2**30
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
PROSE = "It is a truth universally acknowledged, that a single man must be in want of a wife. "


def reader(*, memory: int = BYTES, seconds: float = 60, text: int = 64 * 2**20, parallel: int = 2) -> LimitedReader:
    return LimitedReader(
        memory_bytes_max=memory, time_max_s=seconds, text_bytes_max=text, parallel_max=parallel, tokenizer=None
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where documents lie; when the test ends, neither a process nor a temporary folder may be left."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield tmp_path
    assert not list(temporary.iterdir())
    assert not warm()


def warm() -> list[psutil.Process]:
    """The processes that workers are forks of; ours."""
    return [child for child in psutil.Process().children() if _serves(child)]


def _serves(process: psutil.Process) -> bool:
    try:
        return server.__file__ in process.cmdline()
    except psutil.NoSuchProcess:
        return False  # it ended just now


def workers() -> list[psutil.Process]:
    """Those at work, and zombies."""
    return [worker for process in warm() for worker in process.children()]


def source_of(folder: Path, name: str, data: bytes, content_type: str = "") -> Source:
    path = folder / "source"
    path.write_bytes(data)
    return Source(path=path, filename=name, content_type=content_type)


def read(folder: Path, name: str, data: bytes, content_type: str = "", by: LimitedReader | None = None) -> Passages:
    with closing(by or reader()) as limited:
        source = source_of(folder, name, data, content_type)
        return asyncio.run(limited.read(source, Chunking(), piece_tokens_max=254))


def refused(folder: Path, name: str, data: bytes, by: LimitedReader | None = None) -> tuple[str, str]:
    with pytest.raises(Unreadable) as caught:
        read(folder, name, data, by=by)
    return caught.value.code, str(caught.value)


def text(passages: Passages) -> str:
    return "\n\n".join(chunk.text for chunk in passages.chunks)


# --- each kind ---


def test_plain_text(folder: Path) -> None:
    found = read(folder, "notes.txt", "Caf\u00e9 e\u0301!\r\n\r\nTwo\x07\x1b lines\r\nhere.".encode())
    assert text(found) == "Caf\u00e9 \u00e9!\n\nTwo lines\nhere."
    assert found.title == ""
    assert found.chunks[0].place == Place(start_byte=0, end_byte=32)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_text_in_many_encodings(encoding: str) -> None:
    said = "na\u00efve caf\u00e9 \u2013 \u201cquoted\u201d\nand a second line"
    data = said.encode(encoding)
    found = read_text(data)
    assert found.text == said
    assert found.locate is not None
    at = said.index("caf")
    start, end = found.locate(at, at + 4)
    plain = {"utf-16": "utf-16-le", "utf-32": "utf-32-le", "utf-8-sig": "utf-8"}.get(encoding, encoding)
    assert data[start:end].decode(plain) == "caf\u00e9"


def test_a_named_charset_and_broken_utf_8() -> None:
    assert (
        read_text("\u041f\u0440\u0438\u0432\u0435\u0442".encode("koi8-r"), "koi8-r").text
        == "\u041f\u0440\u0438\u0432\u0435\u0442"
    )
    broken = "\u00e9".encode() * 50 + b"\xff"
    assert read_text(broken).text == "\u00e9" * 50 + "\ufffd"
    assert read_text(b"caf\xe9", "no-such-charset").text == "caf\u00e9"


def test_markdown(folder: Path) -> None:
    data = (
        b"---\ntitle: The guide\n---\n# Top #\n\nIntro.\n\nSub\n---\n\n- one\n- two\n\n"
        b"| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        b"```python\n# no heading\n\nx = 1\n```\n"
    )
    found = read(folder, "guide.md", data)
    [chunk] = found.chunks
    assert found.title == "The guide"
    assert chunk.place.headings == ("Top",)
    assert "- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\n# no heading\n\nx = 1\n```" in chunk.text
    assert data[chunk.place.start_byte : chunk.place.end_byte].startswith(b"# Top")


def test_html(folder: Path) -> None:
    data = (
        b"<!doctype html><html><head><title>A &amp; B</title><style>p{}</style></head><body><nav>Home</nav><h1>One</h1>"
        b"<p>3 &lt; 4 <b>bo</b>ld<br>line</p><script>var x;</script><table><tr><th>k<th>v<tr><td>a<td>1</table>"
        b"<ul><li>first<li>second</ul><pre>x = 1\n  y</pre></body></html>"
    )
    found = read(folder, "no-suffix", data)
    [chunk] = found.chunks
    assert found.title == "A & B"
    assert chunk.text == "Home\n\nOne\n\n3 < 4 bold line\n\nk | v\na | 1\n\nfirst\nsecond\n\nx = 1\n  y"
    assert data[chunk.place.start_byte : chunk.place.end_byte].startswith(b"Home")


def test_tables_in_text_repeat_their_head(folder: Path) -> None:
    data = b"name,value\n" + b"".join(b"row %d,%d\n" % (row, row) for row in range(1000))
    found = read(folder, "table.csv", data)
    assert len(found.chunks) > 4
    assert all(chunk.text.startswith("name,value\n") for chunk in found.chunks)
    last = found.chunks[-1].place
    assert data[last.start_byte : last.end_byte].startswith(b"row ")


def test_code_is_cut_between_definitions(folder: Path) -> None:
    body = "".join(f"    total += step({line})\n\n" for line in range(20))
    data = "".join(f"def function_{number}():\n{body}\n\n" for number in range(20)).encode()
    found = read(folder, "program.py", data)
    assert len(found.chunks) > 2
    assert all(chunk.text.startswith("def function_") for chunk in found.chunks)


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_json(folder: Path, name: str) -> None:
    assert '"key": "v\u00e4lue"' in text(read(folder, name, '{"key": "v\u00e4lue"}\n{"key": 2}'.encode()))


def test_word(folder: Path) -> None:
    data = documents.docx(
        documents.w_paragraph("Terms & conditions", "berschrift1"),
        documents.w_paragraph("AT&T <says> 5 > 3."),
        documents.w_table([["k", "v"], ["a & b", "1"]]),
        documents.w_paragraph("an item", item=True),
        title="R&D",
    )
    found = read(folder, "a.docx", data)
    assert found.title == "R&D"
    assert text(found) == "Terms & conditions\n\nAT&T <says> 5 > 3.\n\nk | v\na & b | 1\n\nan item"
    assert found.chunks[0].place.headings == ("Terms & conditions",)


def test_powerpoint_in_the_order_of_the_show_with_notes(folder: Path) -> None:
    slides = [
        [documents.shape(f"Slide {name}", "title"), documents.shape(PROSE * 12), documents.shape("3", "sldNum")]
        for name in "ABC"
    ]
    found = read(folder, "a.pptx", documents.pptx(slides, "Say & smile", order=(3, 1, 2)))
    assert [chunk.place.page for chunk in found.chunks] == [1, 2, 3]
    assert [chunk.place.headings for chunk in found.chunks] == [("Slide C",), ("Slide A",), ("Slide B",)]
    assert "Say & smile" in found.chunks[1].text
    assert found.title == "Slide C"


def test_excel(folder: Path) -> None:
    rows = (
        '<row><c r="A1" t="s"><v>0</v></c><c r="B1" t="s"><v>1</v></c><c r="D1" t="inlineStr"><is><t>x</t></is></c>'
        '</row><row><c r="A2" s="1"><v>44197</v></c><c r="B2"><v>0.30000000000000004</v></c><c r="D2" t="b"><v>1</v>'
        '</c></row><row r="999999"><c r="C999999" t="str"><v>far away</v></c></row>'
    )
    found = read(folder, "a.xlsx", documents.xlsx({"R & D": rows, "Empty": ""}, ["day", "a < b"]))
    assert text(found) == "R & D\n\nday | a < b |  | x\n2021-01-01 | 0.3 |  | true\n|  | far away"
    assert found.chunks[0].place == Place(page=1, page_end=1, headings=("R & D",))


def test_epub(folder: Path) -> None:
    found = read(
        folder, "a.epub", documents.epub(["<h1>One &amp; only</h1><p>First.</p>", "<p>Second.</p>"], "The book")
    )
    assert (found.title, text(found)) == ("The book", "One & only\n\nFirst.\n\nSecond.")


def test_e_mail(folder: Path) -> None:
    data = documents.eml("Gr\u00fc\u00dfe", "Hello Bob,\n\nthe plan.", {"plan.txt": "step one", "photo.bin": b"\0\1"})
    found = read(folder, "a.eml", data)
    assert found.title == "Gr\u00fc\u00dfe"
    [chunk] = found.chunks
    assert chunk.text.startswith("Subject: Gr\u00fc\u00dfe\nFrom: Ada <ada@example.org>\nTo: bob@example.org")
    assert chunk.text.count("the plan.") == 1
    assert "Attachment: plan.txt\n\nstep one" in chunk.text
    assert chunk.text.endswith("Attachment: photo.bin")


PAGE = ["Chapter one", *[f"This is line {line} of a page that has enough words, see xml:lang." for line in range(20)]]


def test_pdf(folder: Path) -> None:
    found = read(folder, "a.pdf", documents.pdf([PAGE, ["Chapter two", *PAGE[1:]]], title="The report"))
    assert found.title == "The report"
    assert {chunk.place.page for chunk in found.chunks} == {1, 2} or found.chunks[0].place.page == 1
    assert text(found).count("see xml:lang.") >= 40
    assert "Chapter two" in text(found)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.rtf", rb"{\rtf1\ansi Hello \b rich\b0  world\par}"),
        (
            "a.odt",
            documents.zipped(
                {
                    "mimetype": "application/vnd.oasis.opendocument.text",
                    "content.xml": '<o:document-content xmlns:o="urn:oasis:names:tc:opendocument:xmlns:office:1.0"'
                    ' xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0"><o:body><o:text>'
                    "<text:p>Hello rich world</text:p></o:text></o:body></o:document-content>",
                }
            ),
        ),
    ],
)
def test_what_kreuzberg_reads(folder: Path, name: str, data: bytes) -> None:
    assert text(read(folder, name, data)) == "Hello rich world"


# --- what can't be read ---


@pytest.mark.parametrize(
    ("name", "data", "code", "message"),
    [
        ("a.txt", b"", "invalid_file", "holds no text"),
        ("a.txt", b" \n\t ", "invalid_file", "holds no text"),
        ("a.pdf", documents.pdf([["", ""]]), "invalid_file", "holds no text: its pages may be pictures"),
        ("a.pdf", b"hello", "invalid_file", "is not a PDF file, whatever its name says"),
        ("a.pdf", b"", "invalid_file", "is not a PDF file, whatever its name says"),
        ("a.pdf", documents.pdf([PAGE])[:400], "invalid_file", "is a broken PDF file"),
        ("a.docx", documents.docx()[:300], "invalid_file", "has a broken archive"),
        ("a.docx", documents.zipped({"word/document.xml": "<x/>"}), "invalid_file", "names no main part"),
        ("a.zip", documents.zipped({"a.txt": "x"}), "unsupported_file", "is an archive, not a document"),
        ("a.bin", bytes(range(256)) * 9, "unsupported_file", "is of no kind that can be read"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0\0", "unsupported_file", "is a PNG picture, not a document"),
        (
            "a.docx",
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"),
            "invalid_file",
            "is enc",
        ),
    ],
)
def test_what_cant_be_read_says_why(folder: Path, name: str, data: bytes, code: str, message: str) -> None:
    found_code, found = refused(folder, name, data)
    assert (found_code, found[: len(message)]) == (code, message)


def test_an_encrypted_pdf(folder: Path) -> None:
    lock = f"/Encrypt<</Filter/Standard/V 1/R 2/O<{'00' * 32}>/U<{'11' * 32}>/P -4>>/ID[<{'22' * 16}><{'22' * 16}>]"
    assert refused(folder, "a.pdf", documents.pdf([PAGE], trailer=lock)) == ("invalid_file", "is encrypted")


def test_too_much_time(folder: Path) -> None:
    code, message = refused(folder, "a.txt", b"word " * 4_000_000, by=reader(seconds=0.5))
    assert (code, message) == ("invalid_file", "took more than 0.5 s to read")


def test_too_much_memory(folder: Path) -> None:
    code, message = refused(folder, "a.txt", b"word " * 8_000_000, by=reader(memory=100 * 2**20))
    assert (code, message) == ("invalid_file", "needs more than 0.0976562 GiB of memory to be read")


def test_a_full_temporary_folder_is_not_the_documents_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = cast(worker.Job, {"folder": str(tmp_path / "gone"), "memory_bytes_max": 1})
    broken = Unreadable("is a broken PDF file")
    assert worker.failure(broken, job)["code"] == "invalid_file"
    monkeypatch.setattr(worker, "ROOM_BYTES_MIN", 2**62)
    assert worker.failure(broken, job)["code"] == worker.NO_ROOM


def test_too_much_text(folder: Path) -> None:
    limited = reader(text=2**20)
    for name, data in (
        ("a.txt", b"x" * (2**20 + 1)),
        ("a.docx", documents.docx(*[documents.w_paragraph(PROSE * 100)] * 200)),
    ):
        assert refused(folder, name, data, by=limited) == ("invalid_file", "holds more than 1 MiB of text")


def test_without_the_extra_the_remedy_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = tmp_path / "hidden"
    (hidden / "kreuzberg").mkdir(parents=True)
    (hidden / "kreuzberg" / "__init__.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(str(hidden))
    code, message = refused(folder, "a.pdf", documents.pdf([PAGE]))
    assert code == "unsupported_file"
    assert "pip install 'orchestrator[documents]'" in message
    assert text(read(folder, "a.docx", documents.docx(documents.w_paragraph("Word needs no extra."))))


# --- the subprocess ---

PROBE = """
import json, os, resource, sys
from orchestrator.errors import MachineRefused, Unreadable

def told(**_):
    raise Unreadable(json.dumps({
        "environment": dict(os.environ), "held": os.listdir("."), "session": os.getsid(0) == os.getpid(),
        "memory": resource.getrlimit(resource.RLIMIT_AS), "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "argv": sys.argv,
        "modules": [name for name in ("kreuzberg", "asyncio", "numpy", "site") if name in sys.modules],
        "open": [os.readlink(f"/proc/self/fd/{fd}") for fd in range(64) if os.path.exists(f"/proc/self/fd/{fd}")],
    }))

ExtractionConfig = PageConfig = told
"""


def test_the_worker_has_no_secrets_and_little_else(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "ORCHESTRATOR_KEY", "PYTHONPATH"):
        monkeypatch.setenv(name, "s3cr3t")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "kreuzberg.py").write_text(PROBE)
    monkeypatch.syspath_prepend(str(hidden))
    told = json.loads(refused(folder, "s3cr3t.pdf", documents.pdf([PAGE]))[1])
    assert "s3cr3t" not in str(told)
    assert set(told["environment"]) <= {
        "HOME", "TMPDIR", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "MALLOC_ARENA_MAX", "OMP_NUM_THREADS",
        "RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM",
    }  # fmt: skip
    assert told["held"] == []
    assert told["session"] is True
    assert told["memory"] == [BYTES, BYTES]
    assert told["core"] == 0
    assert told["modules"] == ["kreuzberg"]
    assert [what.partition(":")[0] for what in told["open"]] == ["socket"] * 3


async def _hanging(folder: Path, by: LimitedReader, words: int = 6_000_000) -> asyncio.Task[Passages]:
    """A document whose reading takes long, under way."""
    source = source_of(folder, "a.txt", b"word " * words)
    task = asyncio.create_task(by.read(source, Chunking(), piece_tokens_max=254))
    await asyncio.to_thread(until, workers)
    return task


def test_cancelling_ends_the_worker(folder: Path) -> None:
    async def cancelled(by: LimitedReader) -> None:
        task = await _hanging(folder, by)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not workers()
        assert not list((folder / "temporary").iterdir())
        assert len(warm()) == 1

    with closing(reader()) as by:
        asyncio.run(cancelled(by))


def test_no_more_than_allowed_at_once(folder: Path) -> None:
    async def crowded(by: LimitedReader) -> int:
        source = source_of(folder, "a.txt", b"word " * 200_000)
        tasks = [asyncio.create_task(by.read(source, Chunking(), piece_tokens_max=254)) for _ in range(6)]
        most = 0
        while not all(task.done() for task in tasks):
            most = max(most, len(workers()))
            await asyncio.sleep(0.01)
        assert all(task.result().chunks for task in tasks)
        return most

    with closing(reader(parallel=2)) as by:
        assert 1 <= asyncio.run(crowded(by)) <= 2


def test_workers_are_forks_of_one_process_and_do_not_disturb_each_other(folder: Path) -> None:
    async def several(by: LimitedReader) -> list[Passages | BaseException]:
        (folder / "bad").write_bytes(b"word " * 8_000_000)
        bad = Source(path=folder / "bad", filename="a.txt", content_type="")
        good = source_of(folder, "a.txt", b"good " * 200_000)
        reads = [by.read(source, Chunking(), piece_tokens_max=254) for source in (bad, good, bad, good)]
        found = await asyncio.gather(*reads, return_exceptions=True)
        assert len(warm()) == 1
        assert not workers()
        return found

    with closing(reader(memory=150 * 2**20, parallel=4)) as by:
        found = asyncio.run(several(by))
    assert [str(each)[:15] for each in found[::2]] == ["needs more than"] * 2
    assert all(isinstance(each, Passages) for each in found[1::2])


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (signal.SIGSEGV, "made its reader crash (SIGSEGV)"),
        (signal.SIGABRT, "made its reader give up, most likely for want of memory"),
        (signal.SIGKILL, "needs more than 1 GiB of memory to be read"),
        (signal.SIGXCPU, "took more than 60 s to read"),
    ],
)
def test_how_a_worker_ended_is_told(folder: Path, end: signal.Signals, message: str) -> None:
    async def ended(by: LimitedReader) -> None:
        task = await _hanging(folder, by)
        [worker] = workers()
        await asyncio.to_thread(until, lambda: os.getsid(worker.pid) == worker.pid)  # before it looks at the document
        worker.send_signal(end)
        with pytest.raises(Unreadable) as caught:
            await task
        assert str(caught.value) == message

    with closing(reader()) as by:
        asyncio.run(ended(by))


def test_a_document_outlives_the_warm_process(folder: Path) -> None:
    async def survived(by: LimitedReader, ends: int) -> Passages:
        task = await _hanging(folder, by, words=1_000_000)
        for _ in range(ends):
            [process] = warm()
            process.kill()
            await asyncio.to_thread(until, partial(_replaced, process, task))
        return await task

    with closing(reader()) as by:
        assert asyncio.run(survived(by, 1)).chunks
        with pytest.raises(MachineRefused, match="could not be kept running"):
            asyncio.run(survived(by, 2))


def _replaced(process: psutil.Process, task: asyncio.Task[Passages]) -> bool:
    return task.done() or (process not in warm() and bool(workers()))


def test_a_service_managers_word_to_all_spoils_no_document(folder: Path) -> None:
    async def told(by: LimitedReader) -> Passages:
        task = await _hanging(folder, by, words=1_000_000)
        for process in (*workers(), *warm()):
            process.terminate()
        return await task

    with closing(reader()) as by:
        assert asyncio.run(told(by)).chunks


PARENT = """
import asyncio, sys
from pathlib import Path
from orchestrator.documents.model import Chunking
from orchestrator.documents.ports import Source
from storage.extract.reader import LimitedReader

reader = LimitedReader(
    memory_bytes_max=2**30, time_max_s=60, text_bytes_max=2**30, parallel_max=1, tokenizer=None
)
source = Source(path=Path(sys.argv[1]), filename="a.txt", content_type="")
asyncio.run(reader.read(source, Chunking(), piece_tokens_max=254))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_killed_parent_takes_all_along(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"word " * 10_000_000)
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", PARENT, str(path)], env=environ) as parent:
        warm = until(lambda: psutil.Process(parent.pid).children())
        children = warm + until(warm[0].children)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children), 10)


def test_folders_that_a_killed_process_left_are_cleared_away(folder: Path) -> None:
    old, fresh = (folder / "temporary" / f"orchestrator-read-{name}" for name in ("old", "fresh"))
    for made in (old, fresh):
        made.mkdir()
        (made / "library.so").touch()
    os.utime(old, (0, 0))
    reader()
    assert not old.exists()
    assert fresh.exists()
    shutil.rmtree(fresh)


def test_the_version_tells_what_reading_depends_on(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    counted = LimitedReader(
        memory_bytes_max=BYTES, time_max_s=1, text_bytes_max=1, parallel_max=1, tokenizer=tmp_path / "tokenizer.json"
    )
    assert counted.version != reader().version
    assert "kreuzberg-" in counted.version


# --- passages as bytes ---

PASSAGES = Passages(
    title="T\u00e4tle",
    chunks=tuple(
        Chunk(
            text=f"chunk {number} \U0001f600" * 50,
            place=Place(page=number or None, headings=("a", "b"), start_byte=number, end_byte=None),
            pieces=(Piece(start=0, end=10, place=Place(page=number, headings=("a", "b"))), Piece(start=11, end=400)),
        )
        for number in range(3000)
    ),
)


def test_passages_come_back_from_bytes() -> None:
    assert decode(encode(PASSAGES)) == PASSAGES
    assert decode(encode(Passages())) == Passages()


def test_damaged_passages_are_told() -> None:
    data = encode(PASSAGES)
    damaged = [b"", data[:1], data[:-1], data[:500], b"\1" + data[1:], data[:400] + b"\0\0\0" + data[403:]]
    for bad in damaged:
        with pytest.raises(PassagesDamaged):
            decode(bad)
