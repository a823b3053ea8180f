"""docs/cli.md, made from the commands themselves: `python -m headwater.cli.reference > docs/cli.md`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from headwater.cli.output import DIFFERS, FAILED, MISUSED

HEAD = f"""# The command line

Made from the commands' own help; `headwater COMMAND --help` says the same.

Every command that reports takes `--json`. All but `init`, `demo`, `schema` and `version` read `headwater.yaml` in
the working directory, or what `--config` or `HEADWATER_CONFIG` names. Names of streams and sinks complete in the
shell: `headwater --install-completion`.

| exit status | |
|---|---|
| 0 | done, and the report is good |
| {DIFFERS} | done, and the report is bad news: a difference, a problem, something in quarantine, a worker that failed |
| {MISUSED} | wrong usage, or a configuration or contract that cannot be used as written |
| {FAILED} | could not be done: a database that is away, a damaged bus, another process that appends |
"""


def reference() -> str:
    from typer.main import get_command

    from headwater.cli.app import app

    sections = [_section(path, command) for path, command in _commands("headwater", get_command(app))]
    return "\n".join([HEAD, *sections])


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name, child in inner.items():
        yield from _commands(f"{path} {name}", child)


def _section(path: str, command: Any) -> str:
    text, _, examples = inspect.cleandoc(command.help).partition("\b\nExamples:\n")
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join([path, *(_argument(argument) for argument in arguments)])
    lines = [f"## {path.removeprefix('headwater ')}", "", f"`{usage}`", "", text.strip(), ""]
    options = [_option(p) for p in command.params if p.param_type_name == "option" and p.name not in ("help", "config")]
    if options:
        lines += ["| option | |", "|---|---|", *options, ""]
    return "\n".join([*lines, "```text", inspect.cleandoc(examples), "```", ""])


def _argument(argument: Any) -> str:
    name = (argument.metavar or argument.name.upper()).strip("[]{}")
    return name if argument.required else f"[{name}]"


def _option(option: Any) -> str:
    default = option.default
    told = f" Default: `{default}`." if isinstance(default, (int, float, str)) and default not in (False, "") else ""
    return f"| `{', '.join(option.opts)}` | {option.help}{told} |"


if __name__ == "__main__":
    print(reference(), end="")
