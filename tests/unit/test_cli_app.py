"""The command line's outside: help, exit statuses, completion, and what it says when the engine is missing."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from headwater.cli.app import app, run
from headwater.cli.output import FAILED, MISUSED
from headwater.cli.reference import reference

ROOT = Path(__file__).parents[2]


def commands(path: tuple[str, ...] = (), command: Any = None) -> list[tuple[str, ...]]:
    command = command or get_command(app)
    inner = getattr(command, "commands", {})
    return [path] * (not inner) + [found for name, child in inner.items() for found in commands((*path, name), child)]


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_each_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert f"headwater {' '.join(path)}" in shown.output.split("Examples:")[1]


def test_the_first_sentence_of_each_command_fits_the_list() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"})
    assert "..." not in shown.output.split("Commands:")[1]


def test_docs_cli_is_what_the_commands_say() -> None:
    """`python -m headwater.cli.reference > docs/cli.md` writes it anew."""
    assert (ROOT / "docs/cli.md").read_text(encoding="utf-8") == reference()


def called(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["headwater", *arguments])
    return run()


def test_a_missing_configuration_is_misuse_and_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert called("status", monkeypatch=monkeypatch) == MISUSED
    assert "cannot read headwater.yaml" in (error := capsys.readouterr().err)
    assert "headwater init" in error


def test_an_unknown_command_is_misuse(monkeypatch: pytest.MonkeyPatch) -> None:
    assert called("stauts", monkeypatch=monkeypatch) == MISUSED


def test_the_version_says_what_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert called("--version", monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("headwater ")
    assert "native" in shown or "pure Python" in shown


@pytest.mark.needs("native")
def test_where_compiled_modules_are_required_they_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called("version", "--json", monkeypatch=monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["running"] == "native"


def test_a_file_that_cannot_be_written_is_told_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db")) as database:
        database.execute("CREATE TABLE thing (id INTEGER PRIMARY KEY, name TEXT)")
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert called("init", "sqlite:///x.db", "--directory", "file/inside", monkeypatch=monkeypatch) == FAILED
    assert "file/inside" in capsys.readouterr().err


def test_without_the_engine_the_pip_line_is_printed() -> None:
    code = "import sys; sys.modules['typer'] = None; from headwater.cli import main; sys.exit(main())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == FAILED
    assert "pip install 'headwater[engine]'" in ended.stderr


def test_help_loads_neither_arrow_nor_pydantic() -> None:
    code = (
        "import sys; from headwater.cli import main; sys.argv = ['headwater', '--help']; main();"
        "print([n for n in ('pyarrow', 'pydantic', 'duckdb', 'yaml', 'rich') if n in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("asked", "given"), [({}, "system"), ({"ARROW_DEFAULT_MEMORY_POOL": "mimalloc"}, "mimalloc")])
def test_arrow_allocates_as_the_process_does_unless_told_otherwise(asked: dict[str, str], given: str) -> None:
    code = (
        "import sys; from headwater.cli import main; sys.argv = ['headwater', '--version']; main();"
        "import pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    )
    clean = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **asked}, capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == given


def test_streams_and_sinks_complete(tmp_path: Path) -> None:
    (tmp_path / "headwater.yaml").write_text(
        "headwater: 1\nstreams: {accounts.learner: {}, accounts.team: {}, catalog.course: {}}\nsinks: {archive: {}}\n"
    )
    assert completed("headwater tail acc", tmp_path) == ["accounts.learner", "accounts.team"]
    assert completed("headwater sink rewind a", tmp_path) == ["archive"]
    assert completed("headwater verify a", tmp_path) == ["accounts.learner", "accounts.team", "archive"]


def test_completion_in_a_directory_without_a_pipeline_is_silent(tmp_path: Path) -> None:
    assert completed("headwater tail ", tmp_path) == []


def completed(words: str, directory: Path) -> list[str]:
    """What a shell is offered for the last word of `words`."""
    asked = {
        "_HEADWATER_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    command = Path(sys.executable).with_name("headwater")
    ended = subprocess.run(
        [command], cwd=directory, env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert ended.stderr == ""
    return ended.stdout.split()
