"""Comparisons: which are made, and how they are shown: one line each, and below it the keys that differ."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from headwater.cli.output import count, plain
from headwater.errors import HeadwaterError

if TYPE_CHECKING:
    from headwater.assembly import Assembly
    from headwater.verify import Workspace
    from headwater.verify.comparison import Comparison, KeyDifference

SHOWN = 5
"""Keys of a class that people get to see; `--json` has more."""
WORDS = {
    "differing": "differ",
    "missing": "missing",
    "extra": "too many",
    "repeated": "there more than once",
    "quarantined": "in quarantine",
    "refused": "refused by the contract",
    "older_mapping": "written under an older mapping",
    "unsettled": "changed meanwhile",
    "unseen_deletes": "deleted unseen",
}


PATIENCE = 60.0
"""Seconds to wait until a running pipeline has caught up with what the source showed."""


def comparisons(assembly: Assembly, what: str | None = None) -> Iterator[Comparison]:
    """Each stream against its source, then in each of its sinks; `what`: one stream or one sink alone."""
    from headwater.verify import Workspace

    _must_be_known(assembly, what)
    streams = {sink: assembly.streams_of(sink) for sink in assembly.config.sinks}
    with Workspace(keep=True) as workspace:
        for stream in assembly.config.streams:
            if what in (None, stream):
                yield _tried(stream, "its source", partial(_with_source, assembly, stream, workspace))
            for sink in assembly.config.sinks:
                if stream in streams[sink] and what in (None, stream, sink):
                    yield _tried(stream, f"sink {sink}", partial(_with_sink, assembly, stream, sink, workspace))


def _tried(stream: str, against: str, compare: Callable[[], Comparison]) -> Comparison:
    """One that cannot be made does not keep the others from being made."""
    from headwater.verify.comparison import incomparable

    try:
        return compare()
    except HeadwaterError as error:
        return incomparable(stream, against, str(error).replace("\n  hint: ", "; "))


def _must_be_known(assembly: Assembly, what: str | None) -> None:
    from headwater.errors import ConfigError

    known = [*assembly.config.streams, *assembly.config.sinks]
    if what is not None and what not in known:
        raise ConfigError(f"there is no stream or sink `{what}`", hint=f"there are {', '.join(known)}")


def _with_source(assembly: Assembly, stream: str, workspace: Workspace) -> Comparison:
    from headwater.status import running
    from headwater.verify import Terms, verify_source

    terms = Terms(
        wait=PATIENCE if running(assembly.home) is not None else 0.0,
        deletes_seen=assembly.guarantee(stream).deletes == "seen",
        progress=lambda text: print(f"  {stream}: {text}", file=sys.stderr),
        workspace=workspace,
    )
    source = assembly.source(assembly.capture_of(stream))
    try:
        mapping = assembly.mapping(stream)
        return verify_source(assembly.bus, stream, assembly.contract(stream), source, mapping, terms=terms)
    finally:
        source.close()


def _with_sink(assembly: Assembly, stream: str, sink: str, workspace: Workspace) -> Comparison:
    from headwater.verify import verify_sink

    target = assembly.sink(sink)
    try:
        contract = assembly.contract(stream)
        target.prepare(contract)
        return verify_sink(assembly.bus, stream, contract, target, workspace=workspace)
    finally:
        target.close()


def lines(comparison: Comparison) -> Iterator[str]:
    head = f"{comparison.stream} against {comparison.against}"
    if not comparison.comparable:
        yield f"not comparable  {head}: {comparison.reason}"
        return
    found = [f"{len(keys):,} {WORDS[name]}" for name, keys in comparison.classes().items() if keys]
    rows = count(comparison.rows_target, "row")
    reason = f" ({comparison.reason})" if comparison.reason else ""
    yield f"{'equal  ' if comparison.equal else 'differs'}  {head}: {', '.join([rows, *found])}{reason}"
    for name, keys in comparison.classes().items():
        for difference in list(keys)[:SHOWN]:
            yield f"           {WORDS[name]}: {_difference(difference)}"


def _difference(difference: KeyDifference) -> str:
    if difference.fields():
        pairs = (
            f"{name} is {_value(difference.target, name)}, expected {_value(difference.source, name)}"
            for name in difference.fields()
        )
        return f"{plain(difference.key)}: " + ", ".join(pairs)
    return str(plain(difference.key))


def _value(row: dict[str, Any] | None, name: str) -> str:
    return repr(plain(row[name])) if row is not None else "-"
