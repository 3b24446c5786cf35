"""What the dashboard brings along: whole, licensed, and asking nobody else for anything."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

import ui

FOLDER = Path(ui.__file__).parent
STATIC = FOLDER / "static"
TEMPLATES = sorted((FOLDER / "templates").glob("*.html"))
MANIFEST = STATIC / "MANIFEST.sha256"


def test_what_others_wrote_is_what_they_published() -> None:
    """The manifest is of ``sha256sum``'s form; each file that is not ours stands in it."""
    lines = [line.split(maxsplit=1) for line in MANIFEST.read_text().splitlines() if not line.startswith("#")]
    listed = {name: digest for digest, name in lines}
    for name, digest in listed.items():
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == digest, name
    ours = {"app.css", "app.js", "icon.svg", MANIFEST.name}
    assert {file.name for file in STATIC.iterdir()} - ours == set(listed)


def test_each_library_has_its_licence_beside_it() -> None:
    for library in STATIC.glob("*.min.js"):
        stem = re.sub(r"-\d.*", "", library.name)
        assert (STATIC / f"{stem}.LICENSE").read_text().strip(), library.name


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: str(path.name))
def test_templates_keep_to_the_policy(template: Path) -> None:
    """No script, style or handler within a page, no address of another host, nothing unescaped, no bare attributes."""
    text = template.read_text("utf-8")
    assert not re.search(r"\sstyle=|<style|\son[a-z]+=|javascript:|hx-on|hx-vals=.js", text, re.IGNORECASE)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))
    assert not re.search(r"(https?:)?//[a-z0-9]", re.sub(r"\{[%#{].*?[}%#]\}", "…", text), re.IGNORECASE)
    assert "| safe" not in text and "|safe" not in text and "autoescape" not in text
    assert not re.search(r"\s[\w-]+=\{\{", text)


def test_our_own_files_name_no_other_host() -> None:
    for name in ("app.css", "app.js"):
        text = (STATIC / name).read_text("utf-8")
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text), name
        assert "innerHTML" not in text and "eval(" not in text
