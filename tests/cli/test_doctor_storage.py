"""``orchestrator doctor`` on stored documents."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli.finding import Finding, Level
from orchestrator.cli.storage_checks import check_documents
from orchestrator.documents.ownership import Ownership
from orchestrator.instance_lock import InstanceLock
from orchestrator.settings import ServerSettings, Settings, StorageSettings
from storage.objects_folder import FolderObjects
from tests.cli.test_cli import orc
from tests.storage.stored import FILES, fill


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("stored") / "data"
    fill(data)
    return data


@pytest.fixture
def data(filled: Path, tmp_path: Path) -> Path:
    return shutil.copytree(filled, tmp_path / "data")


def doctor(data: Path, *, repair: bool = False, url: str = "") -> list[Finding]:
    """What it finds about documents."""
    storage = StorageSettings(url=url) if url else StorageSettings()
    settings = Settings(server=ServerSettings(data_dir=data), storage=storage)
    return list(check_documents(settings, repair=repair, quiet=True))


def worst(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level is not Level.OK]


def test_documents_that_are_well(data: Path) -> None:
    findings = doctor(data)
    assert worst(findings) == []
    assert any(f"with their content: {FILES}" in finding.what for finding in findings)


def test_no_documents_and_nothing_is_made(tmp_path: Path) -> None:
    assert [finding.what for finding in doctor(tmp_path / "data")] == ["no documents are stored yet"]
    assert not (tmp_path / "data").exists()
    (tmp_path / "data").mkdir()
    assert worst(doctor(tmp_path / "data")) == []
    assert not (tmp_path / "data" / "catalog.duckdb").exists()


def test_beside_a_service_it_says_how(data: Path) -> None:
    lock = InstanceLock(data)
    try:
        (finding,) = doctor(data)
    finally:
        lock.release()
    assert finding.level is Level.WARN
    assert "is at work on" in finding.what and "stop it" in finding.remedy


def test_repair_beside_a_service_has_failed(data: Path) -> None:
    lock = InstanceLock(data)
    try:
        (finding,) = doctor(data, repair=True)
    finally:
        lock.release()
    assert finding.level is Level.FAIL


async def nowhere(turn: int) -> None:
    """Another's catalogue is of no interest."""


def claimed(data: Path, *, left: bool) -> None:
    """Another data folder has the object store."""

    async def claim() -> None:
        objects = FolderObjects(data / "objects")
        other = Ownership(objects, instance="another", monotonic=lambda: 0.0, note=nowhere)
        await other.claim(0)
        if left:
            await other.leave()

    asyncio.run(claim())


@pytest.mark.parametrize("repair", [False, True])
def test_what_another_orchestrator_has_is_left_alone(data: Path, repair: bool) -> None:
    claimed(data, left=False)
    before = sorted(path for path in data.rglob("*") if path.name not in ("instance", "orchestrator.lock"))
    (last,) = worst(doctor(data, repair=repair))
    assert last.level is Level.FAIL and "another data folder" in last.what
    assert sorted(path for path in data.rglob("*") if path.name not in ("instance", "orchestrator.lock")) == before


def test_what_another_orchestrator_had_is_read_anew(data: Path) -> None:
    claimed(data, left=True)
    assert "older than" in worst(doctor(data))[0].what
    for repair in (True, False):  # entries are numbered anew, so the service fills the index again
        assert [finding.level for finding in worst(doctor(data, repair=repair))] == [Level.WARN]


def test_an_object_store_that_is_away(data: Path) -> None:
    shutil.rmtree(data / "objects")
    (data / "objects").touch()
    (finding,) = worst(doctor(data))
    assert finding.level is Level.FAIL and "object store" in finding.what


def test_a_bucket_that_can_not_be(data: Path) -> None:
    (finding,) = doctor(data, url="s3://No_Bucket")
    assert finding.level is Level.FAIL and "names no bucket" in finding.remedy


def lose(data: Path) -> None:
    (data / "catalog.duckdb").unlink()


def damage(data: Path) -> None:
    (data / "catalog.duckdb").write_bytes(b"no catalogue" * 1000)


@pytest.mark.parametrize("harm", [lose, damage])
def test_a_catalogue_that_can_not_be_used_is_filled_from_the_records(data: Path, harm: Callable[[Path], None]) -> None:
    harm(data)
    (finding,) = worst(doctor(data))
    assert finding.level is Level.FAIL and "--repair" in finding.remedy
    assert worst(doctor(data)) == [finding]  # looking has changed nothing
    mended = doctor(data, repair=True)
    assert any("was filled from" in finding.what for finding in mended)
    assert any(f"with their content: {FILES}" in finding.what for finding in mended)
    assert all(finding.level is not Level.FAIL for finding in doctor(data))


def test_a_lost_file_is_named_and_kept(data: Path) -> None:
    lost = next((data / "objects" / "content").rglob("file-*"))
    lost.unlink()
    for repair in (False, True, False):
        (finding,) = worst(doctor(data, repair=repair))
        assert (finding.level, finding.ids) == (Level.FAIL, (lost.name,))


def test_what_a_dead_process_left_goes_with_repair_alone(data: Path) -> None:
    (data / "spool").mkdir()
    (data / "spool" / "half").write_bytes(b"x")
    (data / "reading" / "copy").mkdir(parents=True)
    (data / "indexes" / "v1" / "vs_gone" / "x").mkdir(parents=True)
    found = worst(doctor(data))
    assert [finding.level for finding in found] == [Level.WARN] * 2
    assert sum("mended" in finding.what for finding in doctor(data, repair=True)) == 2
    assert worst(doctor(data)) == []
    assert list((data / "spool").iterdir()) == list((data / "reading").iterdir()) == []


@pytest.mark.slow
def test_the_command_mends_and_ends_well(data: Path) -> None:
    folder = data.parent
    record = next((data / "objects" / "records").rglob("file-*"))
    record.unlink()
    args = ("doctor", "--json")
    found = json.loads(orc(folder, *args, HF_ENDPOINT="http://127.0.0.1:9").stdout)["data"]
    (differs,) = (one for one in found if "not on record" in one["what"])
    assert (differs["level"], differs["ids"]) == ("WARN", [f"file {record.stem}"])
    assert (
        "mended: facts of the catalogue that are not on record: 1"
        in orc(folder, "doctor", "--repair", HF_ENDPOINT="http://127.0.0.1:9").stdout
    )
    assert record.exists()
