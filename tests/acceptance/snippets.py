"""The snippets of a Markdown page, to be executed from top to bottom in one directory.

```sh                     run by bash, stopping at the first error; `make` and `pip` lines are looked at, not run
```python                 run by Python
```yaml path/to/file      written to that file; without a path, it must be a part of a valid configuration
```text, ```sql, ...      for people
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w+)(?: +(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECONDS = 120
"""After which a snippet that does not end is a failure."""
_ELSEWHERE = ("make ", "pip ", ".ci/")


@dataclass(frozen=True, slots=True)
class Snippet:
    language: str
    path: str
    text: str
    line: int


def snippets(page: Path) -> list[Snippet]:
    text = page.read_text(encoding="utf-8")
    return [
        Snippet(match[1], match[2] or "", match[3], text.count("\n", 0, match.start()) + 1)
        for match in _FENCE.finditer(text)
    ]


def execute(page: Path, directory: Path) -> str:
    """Everything that the page's snippets print. Raises `AssertionError` that names the page's line."""
    return "".join(_execute(page, snippet, directory) for snippet in snippets(page))


def _execute(page: Path, snippet: Snippet, directory: Path) -> str:
    where = f"{page.relative_to(ROOT)}:{snippet.line}"
    if snippet.language == "yaml":
        return _written(snippet, directory)
    if snippet.language == "sh":
        return _ran(["bash", "-eu", "-o", "pipefail", "-c", _shell(snippet.text, where)], directory, where)
    if snippet.language == "python":
        return _ran([sys.executable, "-W", "error", "-c", snippet.text], directory, where)
    return ""


def _written(snippet: Snippet, directory: Path) -> str:
    if snippet.path:
        path = directory / snippet.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(snippet.text, encoding="utf-8")
    return ""


def _shell(text: str, where: str) -> str:
    """Lines that install or that run this very suite are not run again; a target of make must be there."""
    lines = text.splitlines()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in lines:
        if line.startswith("make "):
            assert re.search(rf"^{re.escape(line.split()[1])}:", makefile, re.MULTILINE), f"{where}: no target: {line}"
    return "\n".join(line for line in lines if not line.startswith(_ELSEWHERE))


def _ran(command: list[str], directory: Path, where: str) -> str:
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "PATH": here},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert ended.returncode == 0, f"{where} ended with {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout
