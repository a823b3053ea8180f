"""The files that `init` writes, as text: YAML with the comments that say why."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

from headwater.contracts.document import write_yaml
from headwater.scaffold.address import Address
from headwater.scaffold.plan import Plan, PlannedField, PlannedStream, Withheld

WIDTH = 118


def configuration(plan: Plan, *, pipeline: str, address: Address) -> str:
    """headwater.yaml."""
    lines = [
        "# Written by `headwater init`, and yours from here on. `headwater check` tells what does not fit together,",
        "# `headwater doctor` what else is possible. Every key is explained in docs/configuration.md.",
        "headwater: 1",
        f"name: {pipeline}  # prefixes all that is made in the database",
        "bus: embedded:data  # streams are kept in the folder `data`, beside this file",
        "",
        "sources:",
        *comment(address.remark, indent=2),
        f"  {plan.source}: {scalar(address.written)}",
        "",
        "streams:",
    ]
    for stream in plan.streams:
        lines += [*_stream(stream), ""]
    lines += _skipped(plan)
    lines += _sinks(plan)
    return "\n".join(lines).rstrip() + "\n"


def _stream(stream: PlannedStream) -> Iterator[str]:
    config = stream.config
    yield from comment(stream.choice.why, indent=2)
    if config.pattern == "query":
        yield from comment(" ".join(stream.guarantee.notes), indent=2)
    yield f"  {stream.naming.stream}:  # contract: contracts/{stream.naming.stream}.yaml"
    yield f"    source: {config.source}"
    yield f"    table: {scalar(config.table or '')}"
    yield f"    pattern: {config.pattern}"
    if config.cursor is not None:
        yield f"    cursor: {scalar(config.cursor)}"
    if config.pattern == "query":
        yield f"    every: {'30s' if config.cursor else '5m'}"
        if config.cursor is not None:
            yield "    # reconcile_deletes: 1h  # compares the keys, which is the only way to see deletes here"
    if config.key:
        yield f"    key: {flow(list(config.key))}  # the table has no primary key, but these are unique"
    if config.fields:
        yield from wrapped_flow("    fields: ", config.fields)
    yield from _withheld(stream)


def _skipped(plan: Plan) -> Iterator[str]:
    if not plan.skipped:
        return
    yield "  # Left out:"
    for skipped in plan.skipped:
        yield from comment(f"{skipped.table}: {skipped.why}", indent=2, hanging=2)
    yield ""


def _sinks(plan: Plan) -> Iterator[str]:
    namespace = plan.streams[0].naming.namespace if plan.streams else "learning"
    yield "sinks:"
    yield '  warehouse: {url: "duckdb:warehouse.duckdb", streams: ["*"]}  # the current rows of every stream'
    yield "  # Others take streams of their own, independently:"
    yield f'  # lake: {{url: "parquet:lake", streams: ["{namespace}.*"], mode: history}}  # every event, as it happened'
    yield '  # copy: {url: "sqlite:///copy.db", streams: ["*"], deletes: soft}'


def contract(stream: PlannedStream) -> str:
    """contracts/<stream>.yaml."""
    given = stream.guarantee
    lines = [
        "# A first draft: it says no more than the database did, and `headwater check` warns until it says it in words",
        "# of the domain, for its readers. `headwater contract accept` then makes it a version that never changes.",
        f"stream: {stream.naming.stream}",
        "version: 1",
        'description: ""',
        'owner: ""  # the team that answers for it',
        "kind: fact",
        f"key: {flow(list(stream.key))}",
        "compatibility: full_transitive",
        f"delivery: {given.delivery}",
        f"changes: {given.changes}",
        f"deletes: {given.deletes}",
    ]
    lines += ["retention: forever", "fields:", *(_field(planned) for planned in stream.fields)]
    return "\n".join(lines) + "\n"


def _field(planned: PlannedField) -> str:
    attributes: dict[str, object] = {"type": planned.type}
    if planned.optional:
        attributes["optional"] = True
    if planned.ref is not None:
        attributes["ref"] = planned.ref
    remark = f"  # {planned.remark}" if planned.remark else ""
    return f"  {planned.name}: {flow(attributes)}{remark}"


def _withheld(stream: PlannedStream) -> Iterator[str]:
    """Kept out of the contract's file: what is withheld is nothing for its readers to know."""
    if not stream.withheld:
        return
    advice = (
        "Withheld, going by their names. To publish one, copy its line to `fields:` of the contract; "
        "`hash(column)` or `mask(column)` under `fields:` here publishes less than the value."
    )
    yield from comment(advice, indent=4)
    for kind, words in (("secret", "looks like a secret"), ("personal", "looks personal")):
        for withheld in stream.withheld:
            if withheld.kind == kind:
                yield f"    #   {_withheld_line(withheld)}  # {words}"


def _withheld_line(withheld: Withheld) -> str:
    attributes: dict[str, object] = {"type": withheld.type}
    if withheld.optional:
        attributes["optional"] = True
    attributes["pii"] = "sensitive" if withheld.kind == "secret" else "personal"
    renamed = withheld.name != withheld.column
    also = f", and here {flow({withheld.name: withheld.column})}" if renamed else ""
    return f"{withheld.name}: {flow(attributes)}{also}"


def vocabulary(plan: Plan) -> str:
    """vocabulary.yaml."""
    lines = [
        "# The entities that fields refer to by `ref:`. Equal things have one name and one type in every stream.",
        "entities:",
    ]
    for stream in plan.streams:
        types = {planned.name: planned.type for planned in stream.fields}
        attributes = {"key": {name: types[name] for name in stream.key}, "owner": stream.naming.namespace}
        shown = flow({**attributes, "stream": stream.naming.stream})
        lines.append(f"  {stream.naming.entity}: {shown}")
    lines += ["# terms:", '#   money.usd: {type: "decimal(12,2)", unit: USD}']
    return "\n".join(lines) + "\n"


def scalar(value: str) -> str:
    """Text as YAML 1.1 and 1.2 both read it as text."""
    text = write_yaml(value, flow=True).removesuffix("\n").removesuffix("\n...")
    return json.dumps(value, ensure_ascii=False) if "\n" in text else text


def flow(value: object) -> str:
    return write_yaml(value, flow=True).strip()


def wrapped_flow(head: str, mapping: dict[str, str]) -> Iterator[str]:
    """A mapping on one line, if it fits; else one entry a line."""
    line = head + flow(mapping)
    if len(line) <= WIDTH:
        yield line
        return
    yield head.rstrip()
    indent = " " * (len(head) - len(head.lstrip()) + 2)
    yield from (f"{indent}{flow({name: value})[1:-1]}" for name, value in mapping.items())


def comment(text: str, *, indent: int = 0, hanging: int = 0) -> list[str]:
    start = " " * indent + "# "
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=start + " " * hanging,
        subsequent_indent=start + " " * (2 * hanging),
        break_long_words=False,
        break_on_hyphens=False,
    )
