"""status, sql, doctor, check and verify: looking, never changing."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headwater.cli.output import (
    DIFFERS,
    FILE,
    File,
    Json,
    assembled,
    count,
    duration,
    plain,
    print_json,
    print_table,
    stream_or_sink_names,
)

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from headwater.doctor import TableReport
    from headwater.status import SinkStatus, StatusReport, StreamStatus


def status(config: File = FILE, as_json: Json = False) -> None:
    """What stands where, from source to sink.

    Tells per stream its pattern, position, delivery and what its pattern cannot see; per sink its cursor and lag.
    Works while `headwater run` does, and without it. Status 1 if something needs attention.

    \b
    Examples:
      headwater status
      headwater status --json | jq '.sinks[].streams[].lag_events'
    """
    from headwater.status import status as look

    with assembled(config) as assembly:
        report = look(assembly)
    if as_json:
        print_json(report)
    else:
        _print_status(report)
    raise typer.Exit(0 if report.healthy else DIFFERS)


def _print_status(report: StatusReport) -> None:
    running = (
        f"running as process {report.pid} since {report.started:%Y-%m-%d %H:%M:%S}" if report.running else "not running"
    )
    print(f"{report.pipeline}: {running}\n")
    if report.trouble:
        print(f"{report.trouble}\n")
    heads = (
        "stream",
        "state",
        "pattern",
        "position",
        "events",
        "size",
        "last append",
        "delivery",
        "changes",
        "deletes",
    )
    streams = [_stream_row(stream) for stream in report.streams]
    if _width() >= _WIDE:
        print_table(heads, streams)
    else:
        print_table(heads[:7], [row[:7] for row in streams])
        print()
        print_table((heads[0], *heads[7:]), [(row[0], *row[7:]) for row in streams])
    print()
    rows = [_sink_row(sink, place) for sink in report.sinks for place in range(len(sink.streams))]
    print_table(("sink", "state", "stream", "cursor", "lag", "oldest waits", "delivery"), rows)
    for capture in report.captures:
        text = capture.pending.text if capture.pending is not None else capture.error
        print("\n" + textwrap.fill(f"{capture.capture}: {text}", _width(), subsequent_indent="  "))
    for names, texts in _remarks(report).items():
        print("\n" + textwrap.fill(_called(names, report), _width(), subsequent_indent="  "))
        for text in texts:
            print(textwrap.fill(text, _width(), initial_indent="  ", subsequent_indent="    "))


_WIDE = 116
"""Columns of a terminal on which all that is said of a stream fits into one line."""


def _remarks(report: StatusReport) -> dict[tuple[str, ...], list[str]]:
    """What is to be said beside the tables, once for all that it concerns."""
    said: dict[str, list[str]] = {}
    for stream in report.streams:
        for text in _stream_remarks(stream):
            said.setdefault(text, []).append(stream.stream)
    for sink in report.sinks:
        for text in [sink.error] * bool(sink.error) + list(sink.notes):
            said.setdefault(text, []).append(sink.sink)
    grouped: dict[tuple[str, ...], list[str]] = {}
    for text, names in said.items():
        grouped.setdefault(tuple(names), []).append(text)
    return grouped


def _called(names: tuple[str, ...], report: StatusReport) -> str:
    every = len(names) > 1 and names == tuple(stream.stream for stream in report.streams)
    return "every stream" if every else ", ".join(names)


def _width() -> int:
    return max(shutil.get_terminal_size((120, 24)).columns, 40)


def _stream_row(stream: StreamStatus) -> tuple[object, ...]:
    given = stream.guarantee
    place = f"{stream.position.epoch}/{stream.position.commit}" if stream.position else None
    ago = f"{duration(stream.idle_seconds)} ago" if stream.idle_seconds is not None else None
    promises = (given.delivery.replace("_", " "), given.changes, given.deletes) if given else (None, None, None)
    size = f"{stream.nbytes / 2**20:.1f} MB"
    return (stream.stream, stream.state, stream.pattern, place, f"{stream.events:,}", size, ago, *promises)


def _sink_row(sink: SinkStatus, place: int) -> tuple[object, ...]:
    own = sink.streams[place]
    head = (sink.sink, sink.state) if place == 0 else ("", "")
    return (
        *head,
        own.stream,
        own.cursor,
        f"{own.lag_events:,}",
        duration(own.lag_seconds),
        own.delivery.replace("_", " "),
    )


def _stream_remarks(stream: StreamStatus) -> Iterator[str]:
    yield from stream.guarantee.notes if stream.guarantee else ()
    if stream.error:
        yield stream.error
    if stream.paused is not None:
        parked = f"{count(stream.parked, 'batch', 'batches')} ({stream.parked_bytes:,} bytes) parked"
        yield f"paused: {stream.paused}; {parked}; `headwater resume {stream.stream}` lets it go on"
    if stream.quarantine.rows:
        more = f" and {stream.quarantine.more_keys} more" * bool(stream.quarantine.more_keys)
        keys = ", ".join(filter(None, stream.quarantine.keys)) + more
        rows = count(stream.quarantine.rows, "change")
        which = f"of keys {keys}" if keys else "without a key"
        yield f"{rows} in quarantine, {which}; see `headwater quarantine list {stream.stream}`"
    for note in stream.notes:
        if note.kind != "loaded":
            yield f"{note.time:%Y-%m-%d %H:%M:%S} {note.kind}: {note.text}"
    for group in stream.groups:
        if group.idle:
            behind = f"group {group.group} is {count(group.lag_events, 'event')} behind and idle"
            yield f"{behind}; `{group.release}` stops waiting for it"


def sql(
    query: Annotated[str, typer.Argument(metavar='"select ..."', show_default=False)],
    config: File = FILE,
    as_json: Json = False,
    limit: Annotated[int, typer.Option(min=0, help="Rows to print at the most; 0 prints all.")] = 1000,
) -> None:
    """Ask the bus in SQL.

    Each stream is a DuckDB view of its events, and the same name with `_current` behind it one of its current state,
    one row a key. Works while `headwater run` does.

    \b
    Examples:
      headwater sql "select mode, count(*) from learning.enrollment_current group by mode"
      headwater sql "select _op, count(*) from learning.enrollment group by _op" --json
    """
    from headwater import views

    with assembled(config) as assembly:
        contracts = {stream: assembly.contract(stream) for stream in assembly.config.streams}
        with views.connect(assembly.bus, contracts) as connection:
            heads, rows = _asked(connection, query, limit)
    if as_json:
        print_json([dict(zip(heads, row, strict=True)) for row in rows[: limit or None]])
    else:
        print_table(heads, rows[: limit or None])
        if limit and len(rows) > limit:
            print(f"... and more: --limit {limit}")


def _asked(connection: duckdb.DuckDBPyConnection, query: str, limit: int) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Heads and rows; one more than `limit`, where there are more. By way of Arrow, for DuckDB's own way from times
    with a zone to Python takes another package.
    """
    import duckdb

    from headwater.errors import ConfigError

    rows: list[tuple[Any, ...]] = []
    try:
        if not connection.extract_statements(query):
            raise ConfigError("there is no query", hint='give one, as `headwater sql "select 1"`')
        asked = connection.sql(query)
        if asked is None:  # a statement without an answer
            return [], []
        for batch in asked.to_arrow_reader(min(limit + 1, 10_000) if limit else 10_000):
            rows += zip(*map(_python, batch.columns), strict=True)
            if limit and len(rows) > limit:
                break
    except duckdb.Error as error:
        raise ConfigError(f"the query cannot be answered: {error}") from error
    return list(asked.columns), rows[: limit + 1 if limit else None]


def _python(column: pa.Array) -> list[Any]:
    """DuckDB's HUGEINT, which sums of integers are, travels as a decimal without a scale."""
    import pyarrow as pa

    if column.type == pa.decimal128(38, 0):
        return [None if value is None else int(value) for value in column.to_pylist()]
    return list(column.to_pylist())


def doctor(
    source: Annotated[str | None, typer.Argument(metavar="[SOURCE]", show_default=False)] = None,
    config: File = FILE,
    as_json: Json = False,
) -> None:
    """What is possible for each table, and what it takes.

    Which patterns are possible, what each would miss, and the SQL that would enable the others. Changes nothing.
    Status 1 if a stream has a problem.

    \b
    Examples:
      headwater doctor
      headwater doctor lms --json
    """
    from headwater.config import load
    from headwater.doctor import doctor as examine

    reports = examine(load(config), source=source)
    if as_json:
        print_json(reports)
    else:
        print("\n\n".join("\n".join(_doctor_lines(report)) for report in reports))
    raise typer.Exit(0 if all(report.healthy for report in reports) else DIFFERS)


def _doctor_lines(report: TableReport) -> Iterator[str]:
    rows = f", about {count(report.rows, 'row')}" if report.rows is not None else ""
    feeds = f", feeds {', '.join(report.streams)}" if report.streams else ", feeds no stream"
    yield f"{report.source}: {report.table}{rows}{feeds}" if report.table else f"{report.source}, as a whole"
    for probe in report.probes:
        yield _hung(probe.state, f"{probe.name}: {probe.text}")
        yield from _indented(probe.fix, 11)
    for pattern in report.patterns:
        chosen = " (chosen)" if pattern.chosen else ""
        if pattern.possible:
            yield _hung("possible", f"{pattern.way}{chosen}: {' '.join(pattern.misses) or 'Misses nothing.'}")
        else:
            yield _hung("no", f"{pattern.way}{chosen}: {pattern.why_not}")
            yield from (line for sql in pattern.enable for line in _indented(sql, 11))


def _hung(head: str, text: str) -> str:
    return textwrap.fill(text, _width(), initial_indent=f"  {head:<8} ", subsequent_indent=" " * 11)


def _indented(text: str, by: int) -> list[str]:
    return [" " * by + line for line in text.splitlines()]


def check(
    config: File = FILE,
    as_json: Json = False,
    github: Annotated[bool, typer.Option("--github", help="Print annotations for a GitHub workflow.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not look at the databases' catalogues.")] = False,
) -> None:
    """Check configuration and contracts, without any data.

    Names each problem with its file, line and rule. Status 1 if there is an error; warnings do not count.

    \b
    Examples:
      headwater check
      headwater check --offline --github
    """
    from headwater import check as checks
    from headwater.config import load
    from headwater.contracts.store import ContractStore

    loaded = load(config)
    survey = None if offline else checks.look(loaded)
    problems = checks.check(loaded, ContractStore(loaded.contracts_directory), survey=survey, file=config)
    form: Literal["text", "json", "github-actions"] = "json" if as_json else "github-actions" if github else "text"
    print(checks.rendered(problems, form) or "nothing to complain about")
    raise typer.Exit(DIFFERS if any(problem.severity == "error" for problem in problems) else 0)


def verify(
    what: Annotated[
        str | None, typer.Argument(metavar="[STREAM|SINK]", autocompletion=stream_or_sink_names, show_default=False)
    ] = None,
    config: File = FILE,
    as_json: Json = False,
) -> None:
    """Compare source, streams and sinks row by row.

    Status 1 if anything differs.

    \b
    Examples:
      headwater verify
      headwater verify warehouse --json
    """
    from headwater.cli.proof import comparisons, lines

    equal, report = True, []
    with assembled(config) as assembly:
        for comparison in comparisons(assembly, what):
            equal = equal and comparison.equal
            report.append(comparison)
            if not as_json:
                print("\n".join(lines(comparison)), flush=True)
    if as_json:
        print_json([{"equal": comparison.equal, **plain(comparison)} for comparison in report])
    raise typer.Exit(0 if equal else DIFFERS)
