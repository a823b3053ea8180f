"""contract list, diff and accept."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.output import DIFFERS, FILE, File, Json, Stream, print_json, print_table, stream_names

if TYPE_CHECKING:
    from headwater.contracts.store import ContractStore

app = typer.Typer(help="Contracts: working copies and accepted versions.", no_args_is_help=True, rich_markup_mode=None)

Some = Annotated[
    list[str] | None, typer.Argument(metavar="[STREAM]...", autocompletion=stream_names, show_default=False)
]
Allow = Annotated[list[str] | None, typer.Option(help="Accept although this rule is broken; may be given again.")]


def _store(config: Path) -> ContractStore:
    from headwater.config import load
    from headwater.contracts.store import ContractStore

    return ContractStore(load(config).contracts_directory)


@app.command("list")
def list_(config: File = FILE, as_json: Json = False) -> None:
    """Each stream's contract, and whether it has moved on.

    Status 1 if an accepted version was edited or deleted.

    \b
    Examples:
      headwater contract list
    """
    store = _store(config)
    rows = [_row(store, stream) for stream in store.streams()]
    if as_json:
        print_json([dict(zip(_HEADS, row, strict=True)) for row in rows])
    else:
        print_table(_HEADS, rows)
    raise typer.Exit(DIFFERS if store.tampered() else 0)


_HEADS = ("stream", "accepted", "working", "kind", "fields", "state")


def _row(store: ContractStore, stream: str) -> tuple[object, ...]:
    newest = store.newest(stream)
    working = store.working(stream) if store.has_working(stream) else None
    shown = working or newest
    tampered = store.tampered(stream)
    state = "not accepted" if newest is None else "accepted" if working in (None, newest) else "changed"
    return (
        stream,
        newest.version if newest else None,
        working.version if working else None,
        shown.kind if shown else None,
        len(shown.all_fields) if shown else None,
        ", ".join(map(str, tampered)) or state,
    )


@app.command()
def diff(stream: Stream, config: File = FILE, as_json: Json = False) -> None:
    """What a working copy changes.

    And what of that its declared compatibility forbids: then the status is 1.

    \b
    Examples:
      headwater contract diff learning.enrollment
    """
    store = _store(config)
    findings = store.judge(stream)
    newest = store.newest(stream)
    working = store.working(stream)
    immutable = (
        f"{stream}: version {newest.version} is accepted and never changes: write `version: {newest.version + 1}`"
        if newest is not None and working.version == newest.version and working != newest
        else ""
    )
    old = "" if newest is None else (store.published(stream) / f"v{newest.version}.yaml").read_text(encoding="utf-8")
    new = store.path(stream).read_text(encoding="utf-8")
    before = f"v{newest.version}" if newest else "nothing accepted"
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), before, "working copy", lineterm=""))
    if as_json:
        print_json({"stream": stream, "diff": lines, "findings": findings, "immutable": immutable})
    else:
        said = [*lines, *map(str, findings), *[immutable] * bool(immutable)]
        print("\n".join(said) or f"{stream}: the working copy is what was accepted")
    raise typer.Exit(DIFFERS if findings or immutable else 0)


@app.command()
def accept(streams: Some = None, config: File = FILE, allow: Allow = None) -> None:
    """Make working copies accepted versions.

    Those never change again. Without a name: all that have changed.

    \b
    Examples:
      headwater contract accept
      headwater contract accept learning.enrollment --allow field-removed
    """
    store = _store(config)
    for stream in streams or [name for name in store.streams() if store.has_working(name)]:
        print(f"accepted {os.path.relpath(store.accept(stream, allow=allow or ()))}")
