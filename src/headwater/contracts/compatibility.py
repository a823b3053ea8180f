"""What a new version of a contract breaks, and for whom.

One idea: a change is judged by who reads what. `backward`: a reader on the new version meets what the old one wrote;
`forward`: a reader still on the old version meets what the new one writes. Reading follows Avro's schema resolution
(specification 1.12, "Schema Resolution"), where an absent field is null: a field that the writer lacks needs a default
or must be optional; what the reader lacks is ignored; null never fits a required field. On top of that come the rules
that no registry has, because schemas do not say them: key, meaning, promises.

`RULES` is the whole list. A rule of the side `both` holds under every level but `none`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from headwater.contracts.findings import Finding, Site
from headwater.contracts.model import Contract, FieldSpec, bound
from headwater.contracts.resolution import Resolution, resolve

__all__ = ["LEVELS", "RULES", "Finding", "Rule", "Site", "judge", "sides_of"]

Side = Literal["backward", "forward", "both", "always"]


@dataclass(frozen=True, slots=True)
class Rule:
    side: Side
    breaks: str
    """Who breaks; `{old}` and `{new}` are version numbers."""
    remedy: str


_OLD_EVENTS = "readers on v{new} that meet events of v{old}"
_OLD_READERS = "readers still on v{old} that meet events of v{new}"
_EVERYBODY = "whoever relied on v{old}"

RULES: dict[str, Rule] = {
    "FIELD_REQUIRED": Rule("backward", _OLD_EVENTS, "make it optional, or give it a default"),
    "FIELD_REMOVED": Rule("forward", _OLD_READERS, "keep it as `deprecated`; only optional fields can go"),
    "NULL_REFUSED": Rule(
        "backward", _OLD_EVENTS, "leave it optional, or add a required field with a default beside it"
    ),
    "NULL_ALLOWED": Rule("forward", _OLD_READERS, "leave it required and write a default in the mapping"),
    "TYPE_NARROWED": Rule("backward", _OLD_EVENTS, "add a field with the new type beside it; deprecate the old one"),
    "TYPE_WIDENED": Rule("forward", _OLD_READERS, "add a field with the new type beside it; deprecate the old one"),
    "TYPE_LOSSY": Rule(
        "backward",
        "readers on v{new}: old values that the new type cannot hold exactly",
        "add a field with the new type beside it",
    ),
    "ENUM_NARROWED": Rule("backward", _OLD_EVENTS, "keep the value in the list: old events have it"),
    "ENUM_WIDENED": Rule("forward", _OLD_READERS, "publish the field as `open: true` from its first version on"),
    "ENUM_CLOSED": Rule("backward", _OLD_EVENTS, "leave it `open: true`"),
    "RANGE_NARROWED": Rule("backward", _OLD_EVENTS, "leave the old range; check the narrower one at the source"),
    "RANGE_WIDENED": Rule("forward", _OLD_READERS, "add a field with the new range beside it; deprecate the old one"),
    "PATTERN_CHANGED": Rule("both", _EVERYBODY, "add a field with the new pattern beside it; deprecate the old one"),
    "DEFAULT_CHANGED": Rule("both", "readers to whom old events now look different", "leave the default as it was"),
    "UNIT_CHANGED": Rule("both", _EVERYBODY, "add a field with the new unit beside it; deprecate the old one"),
    "REF_CHANGED": Rule("both", _EVERYBODY, "add a field that refers to the other entity; deprecate the old one"),
    "TERM_CHANGED": Rule("both", _EVERYBODY, "add a field with the other meaning; deprecate the old one"),
    "PII_CHANGED": Rule(
        "both", "consumers whose handling of personal data rests on the class", "agree with them first"
    ),
    "EVENT_TYPE_REMOVED": Rule("backward", _OLD_EVENTS, "keep the type, even if nothing writes it any more"),
    "KEY_CHANGED": Rule("both", "every fold, sink and consumer that identifies by the key", "start a new stream"),
    "KIND_CHANGED": Rule("both", _EVERYBODY, "start a new stream"),
    "SHAPE_CHANGED": Rule("both", _EVERYBODY, "start a new stream"),
    "DELIVERY_WEAKER": Rule("both", "consumers that do not expect repetition or loss", "keep the promise"),
    "CHANGES_WEAKER": Rule("both", "consumers that count on each intermediate state", "keep the promise"),
    "DELETES_WEAKER": Rule("both", "consumers that count on deletes; their rows stay for ever", "keep the promise"),
    "RETENTION_SHORTER": Rule("both", "consumers that replay or join late", "keep the longer retention"),
    "HISTORY_FLOOR": Rule("always", "readers of the events that are kept", "declare backward_transitive or stronger"),
    "COMPATIBILITY_WEAKER": Rule("always", "consumers that rely on the level", "keep the level"),
}

LEVELS: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "backward": frozenset({"backward"}),
    "backward_transitive": frozenset({"backward", "transitive"}),
    "forward": frozenset({"forward"}),
    "forward_transitive": frozenset({"forward", "transitive"}),
    "full": frozenset({"backward", "forward"}),
    "full_transitive": frozenset({"backward", "forward", "transitive"}),
}
"""What each level demands."""


def sides_of(level: str) -> frozenset[str]:
    """The sides whose rules a level switches on."""
    sides = LEVELS[level] - {"transitive"}
    return sides | {"both"} if sides else sides


def judge(accepted: Sequence[Contract], new: Contract, site: Site | None = None) -> list[Finding]:
    """What `new` breaks against the accepted versions, by the level that it declares.

    A version that is accepted already is not judged against itself or its successors.
    """
    site = site or Site()
    earlier = [old for old in accepted if old.version < new.version]
    found = list(_of_level(earlier, new, site))
    sides = sides_of(new.compatibility)
    against = earlier if "transitive" in LEVELS[new.compatibility] else earlier[-1:]
    for old in reversed(against):
        found += [f for f in _Comparison(old, new, site).findings() if RULES[f.rule].side in sides]
    return _distinct(found)


def _distinct(found: list[Finding]) -> list[Finding]:
    """One finding for a rule, field and change, whichever older versions it breaks; the newest of them is named."""
    seen: dict[tuple[str, str, str], Finding] = {}
    for finding in found:
        seen.setdefault((finding.rule, finding.field, finding.change), finding)
    return sorted(seen.values(), key=lambda finding: (finding.line, finding.rule, finding.field))


def _of_level(earlier: Sequence[Contract], new: Contract, site: Site) -> Iterator[Finding]:
    line = site.line("compatibility")
    demands = LEVELS[new.compatibility]
    if new.keeps_history and not LEVELS["backward_transitive"] <= demands:
        change = f"`{new.compatibility}`, and the stream keeps events for good (retention {new.retention.spelled})"
        rule = RULES["HISTORY_FLOOR"]
        yield Finding(site.path, line, "HISTORY_FLOOR", "", change, rule.breaks, rule.remedy)
    if earlier and not LEVELS[earlier[-1].compatibility] <= demands:
        change = f"compatibility {earlier[-1].compatibility} became {new.compatibility}"
        rule = RULES["COMPATIBILITY_WEAKER"]
        yield Finding(site.path, line, "COMPATIBILITY_WEAKER", "", change, rule.breaks, rule.remedy)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Every difference between two versions that breaks somebody, whatever the level."""

    old: Contract
    new: Contract
    site: Site

    def findings(self) -> Iterator[Finding]:
        yield from self._promises()
        if bool(self.old.types) != bool(self.new.types):
            yield self._whole("SHAPE_CHANGED", "types", "one shape became several types, or the reverse")
            return
        for type_name in self.old.type_names:
            if type_name is not None and type_name not in self.new.types:
                yield self._whole("EVENT_TYPE_REMOVED", "types", f"event type `{type_name}` was removed")
            else:
                yield from self._shape(type_name)

    def _promises(self) -> Iterator[Finding]:
        old, new = self.old, self.new
        if old.key != new.key:
            yield self._whole("KEY_CHANGED", "key", f"key [{', '.join(old.key)}] became [{', '.join(new.key)}]")
        if old.kind != new.kind:
            yield self._whole("KIND_CHANGED", "kind", f"kind {old.kind} became {new.kind}")
        for rule, name, ranks in _PROMISES:
            before, after = getattr(old, name), getattr(new, name)
            if ranks.index(after) > ranks.index(before):
                yield self._whole(rule, name, f"{name} {before} became {after}")
        if lost := _shorter(old, new):
            change = f"retention {old.retention.spelled} became {new.retention.spelled}: {lost}"
            yield self._whole("RETENTION_SHORTER", "retention", change)

    def _shape(self, type_name: str | None) -> Iterator[Finding]:
        old, new = self.old.shape(type_name), self.new.shape(type_name)
        for name, spec in old.items():
            if name in new:
                yield from self._field(type_name, name, spec, new[name])
            elif not spec.optional and spec.default is None:
                yield self._finding("FIELD_REMOVED", name, type_name, None, "was required and is gone")
        for name, spec in new.items():
            if name not in old and not spec.optional and spec.default is None:
                yield self._finding("FIELD_REQUIRED", name, type_name, None, "is new and required")

    def _field(self, type_name: str | None, name: str, old: FieldSpec, new: FieldSpec) -> Iterator[Finding]:
        for check in _FIELD_CHECKS:
            for rule, attribute, change in check(old, new):
                yield self._finding(rule, name, type_name, attribute, change)

    def _whole(self, rule: str, attribute: str, change: str) -> Finding:
        everybody = sorted({c.name for c in (*self.old.consumers, *self.new.consumers)})
        return self._make(rule, "", self.site.line(attribute), change, everybody)

    def _finding(self, rule: str, name: str, type_name: str | None, attribute: str | None, change: str) -> Finding:
        line = self.site.field_line(name, type_name, attribute)
        consumers = sorted({*self.old.consumers_of(name), *self.new.consumers_of(name)})
        shown = f"{type_name}.{name}" if type_name is not None else name
        return self._make(rule, shown, line, change, consumers)

    def _make(self, rule: str, field: str, line: int, change: str, consumers: list[str]) -> Finding:
        breaks = RULES[rule].breaks.format(old=self.old.version, new=self.new.version)
        if consumers:
            breaks += f", of the declared consumers: {', '.join(consumers)}"
        return Finding(self.site.path, line, rule, field, change, breaks, RULES[rule].remedy)


_PROMISES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("DELIVERY_WEAKER", "delivery", ("exactly_once", "at_least_once", "best_effort")),
    ("CHANGES_WEAKER", "changes", ("every", "latest")),
    ("DELETES_WEAKER", "deletes", ("seen", "unseen")),
)


def _shorter(old: Contract, new: Contract) -> str | None:
    """What a change of retention takes away."""
    before, after = old.retention, new.retention
    if before.forever:
        return None if after.forever else "events were kept for good"
    if before.compacted and not (after.compacted or after.forever):
        return "the newest event of each key was kept for good"
    if before.compacted and after.compacted and after.tombstones < before.tombstones:
        return "deletes are forgotten earlier"
    if before.compacted or after.forever:
        return None
    if after.compacted:
        return "intermediate events are no longer kept for a time"
    if before.until_consumed and not after.until_consumed:
        return "unread events are no longer waited for"
    return "events are kept for a shorter time" if (after.age or 0.0) < (before.age or 0.0) else None


# The differences of one field: (rule, attribute, change).
_Difference = tuple[str, str, str]
_Check = Callable[[FieldSpec, FieldSpec], Iterator[_Difference]]


def _nulls(old: FieldSpec, new: FieldSpec) -> Iterator[_Difference]:
    if old.optional and not new.optional:
        yield "NULL_REFUSED", "optional", "was optional and is required"
    if new.optional and not old.optional:
        yield "NULL_ALLOWED", "optional", "was required and is optional"


def _types(old: FieldSpec, new: FieldSpec) -> Iterator[_Difference]:
    change = f"type {old.type} became {new.type}"
    backward = resolve(reader=new.parsed, writer=old.parsed)
    forward = resolve(reader=old.parsed, writer=new.parsed)
    if backward is Resolution.IMPOSSIBLE:
        yield "TYPE_NARROWED", "type", change
    if backward is Resolution.LOSSY:
        yield "TYPE_LOSSY", "type", change
    if forward is not Resolution.EXACT:
        yield "TYPE_WIDENED", "type", change


def _enums(old: FieldSpec, new: FieldSpec) -> Iterator[_Difference]:
    if old.open and not new.open:
        yield "ENUM_CLOSED", "open", "was open and is closed"
    before, after = old.enum, new.enum
    if after is not None and not new.open:
        if before is None and not old.open:
            yield "ENUM_NARROWED", "enum", "any value was possible, and now only those listed"
        elif before is not None and (gone := [str(s) for s in before if s not in after]):
            yield "ENUM_NARROWED", "enum", f"values {', '.join(gone)} were removed"
    if before is not None and not old.open:
        if after is None or new.open:
            yield "ENUM_WIDENED", "enum", "only listed values were possible, and now any"
        elif more := [str(s) for s in after if s not in before]:
            yield "ENUM_WIDENED", "enum", f"values {', '.join(more)} were added"


def _ranges(old: FieldSpec, new: FieldSpec) -> Iterator[_Difference]:
    for name, sign in (("min", 1), ("max", -1)):
        before, after = getattr(old, name), getattr(new, name)
        tighter = _tighter(bound(before), bound(after), sign)
        if tighter:
            change = (
                f"{name} {before} became {after}" if None not in (before, after) else f"{name} is {after}, was {before}"
            )
            yield "RANGE_NARROWED" if tighter > 0 else "RANGE_WIDENED", name, change.replace("None", "nothing")


def _tighter(before: Decimal | str | None, after: Decimal | str | None, sign: int) -> int:
    """1 when a limit became tighter, -1 when looser, 0 when it is the same."""
    if before is None or after is None:
        return (after is not None) - (before is not None)
    if isinstance(before, Decimal) and isinstance(after, Decimal):
        return sign * ((after > before) - (after < before))
    return sign * ((str(after) > str(before)) - (str(after) < str(before)))


def _meanings(old: FieldSpec, new: FieldSpec) -> Iterator[_Difference]:
    for rule, name in _MEANINGS:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield rule, name, f"{name} {before or 'nothing'} became {after or 'nothing'}"
    if old.default is not None and new.default is not None and old.default != new.default:
        yield "DEFAULT_CHANGED", "default", f"default {old.default} became {new.default}"


_MEANINGS = (
    ("PATTERN_CHANGED", "pattern"),
    ("UNIT_CHANGED", "unit"),
    ("REF_CHANGED", "ref"),
    ("TERM_CHANGED", "term"),
    ("PII_CHANGED", "pii"),
)

_FIELD_CHECKS: tuple[_Check, ...] = (_nulls, _types, _enums, _ranges, _meanings)
