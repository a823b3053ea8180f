"""grants: the SQL for whoever may give rights."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.output import DIFFERS, FILE, File, Json, print_json

if TYPE_CHECKING:
    from headwater.config import Pattern
    from headwater.grants import Grant, SourceGrants


def grants(
    source: Annotated[str | None, typer.Argument(metavar="[SOURCE]", show_default=False)] = None,
    config: File = FILE,
    role: Annotated[str, typer.Option(help="For this role; the one in the source's address unless given.")] = "",
    pattern: Annotated[
        list[str] | None, typer.Option(help="As if every stream used this pattern: log, trigger or query.")
    ] = None,
    only_missing: Annotated[
        bool, typer.Option("--check", help="Print what is missing alone; status 1 if any is.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the SQL for the least privileges that capture needs.

    For PostgreSQL. A superuser makes the role, the tables' owner grants the rest and publishes the tables, so that
    the role owns nothing and can create nothing. Looks at the catalogue and changes nothing: any role that may
    connect can ask for any other.

    \b
    Examples:
      headwater grants lms --role headwater
      headwater grants --check
      headwater grants lms --role headwater --pattern log
    """
    from headwater.config import load
    from headwater.grants import grants as asked

    found = asked(load(config), source=source, role=role or None, patterns=_patterns(pattern or []))
    lacking = [one for one in found if one.missing]
    if as_json:
        print_json(lacking if only_missing else found)
    elif only_missing and not lacking:
        print("nothing is missing")
    else:
        print("\n\n".join("\n".join(_lines(one, only_missing)) for one in found if not only_missing or one.missing))
    raise typer.Exit(DIFFERS if only_missing and lacking else 0)


def _patterns(given: list[str]) -> list[Pattern]:
    known: dict[str, Pattern] = {"log": "log", "trigger": "trigger", "query": "query"}
    for name in given:
        if name not in known:
            raise typer.BadParameter(f"`{name}` is no pattern that needs rights; they are {', '.join(known)}")
    return [known[name] for name in given]


def _lines(found: SourceGrants, only_missing: bool) -> Iterator[str]:
    yield f"-- source {found.source}: role {found.role} in database {found.database}"
    chosen: tuple[Grant, ...] = found.missing if only_missing else found.grants
    for grant in chosen:
        state = " (there already)" if grant.held else ""
        yield textwrap.fill(f"Without it {grant.why}{state}.", 110, initial_indent="-- ", subsequent_indent="--   ")
        yield grant.sql
