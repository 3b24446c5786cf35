"""README and .env.example say what the settings table says."""

from __future__ import annotations

from pathlib import Path

from orchestrator.config_docs import env_example, settings_markdown

ROOT = Path(__file__).resolve().parent.parent


def test_readme_has_the_table() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    table = text.partition("<!-- settings -->")[2].partition("<!-- /settings -->")[0].strip()
    assert table == settings_markdown(), "python -m orchestrator.config_docs writes both"


def test_env_example_has_every_key() -> None:
    assert (ROOT / ".env.example").read_text("utf-8") == env_example()
