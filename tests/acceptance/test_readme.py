"""Documentation cannot drift: every snippet is executed, every configuration is parsed, every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from headwater.config import Config, parse
from headwater.contracts.model import Contract
from headwater.contracts.vocabulary import Vocabulary
from tests.acceptance.snippets import ROOT, Snippet, execute, snippets

PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES[1:], ids=IDS[1:])
def test_snippets_run_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    execute(page, tmp_path)


def test_the_readme_runs_from_top_to_bottom_and_ends_with_proof(tmp_path: Path) -> None:
    shown = execute(ROOT / "README.md", tmp_path)
    assert re.search(r"open +1 +7\.50", shown)
    assert re.search(r"paid +1 +5\.00", shown)
    assert "differs" not in shown


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_yaml_is_configuration_that_parses(page: Path, tmp_path: Path) -> None:
    for snippet in snippets(page):
        if snippet.language == "yaml":
            _parse(snippet, tmp_path)


def _parse(snippet: Snippet, directory: Path) -> None:
    data: dict[str, Any] = yaml.safe_load(snippet.text)
    if "stream" in data:
        Contract.model_validate(data)
    elif data.keys() <= {"entities", "terms"}:
        Vocabulary.model_validate(data)
    else:
        parse(yaml.safe_dump(_whole(data)), directory=directory)


def _whole(part: dict[str, Any]) -> dict[str, Any]:
    """A part of a configuration, completed with what it leaves out."""
    assert part.keys() <= set(Config.model_fields), f"neither a contract, a vocabulary nor configuration: {part}"
    names = {stream.get("source", "db") for stream in (part.get("streams") or {}).values()}
    sources = dict.fromkeys(sorted(names | {"db"}), "sqlite:///db.sqlite")
    return {"headwater": 1, "name": "docs", "sources": sources, **part}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
