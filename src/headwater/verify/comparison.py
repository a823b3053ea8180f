"""What a comparison found: equal or not, and, key by key, why not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from headwater.errors import VerifyError

EXAMPLES = 100


@dataclass(frozen=True, slots=True)
class KeyDifference:
    """One key (of a history: one order triple) with the values of both sides; None where a side has no such row."""

    key: dict[str, Any]
    source: dict[str, Any] | None
    target: dict[str, Any] | None

    def fields(self) -> list[str]:
        """The fields whose values differ, where both sides have the row."""
        if self.source is None or self.target is None:
            return []
        return [name for name, value in self.source.items() if repr(value) != repr(self.target[name])]


@dataclass(slots=True)
class Keys:
    """A class of keys: how many, and the first of them in full. `len` is the count, iteration the examples."""

    count: int = 0
    examples: list[KeyDifference] = field(default_factory=list)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[KeyDifference]:
        return iter(self.examples)


@dataclass(slots=True)
class Comparison:
    """`source` is what should be, `target` what is: stream and sink, or database and stream.

    The first four classes make the two unequal; the others explain differences that are not errors.
    """

    stream: str
    against: str
    """`sink warehouse` or `source lms/trigger`."""
    rows_source: int = 0
    rows_target: int = 0
    differing: Keys = field(default_factory=Keys)
    missing: Keys = field(default_factory=Keys)
    """Rows that the target lacks."""
    extra: Keys = field(default_factory=Keys)
    """Rows that only the target has."""
    repeated: Keys = field(default_factory=Keys)
    """Rows that one side has more than once."""
    quarantined: Keys = field(default_factory=Keys)
    """Their newest change waits in quarantine, so that they cannot be equal yet."""
    refused: Keys = field(default_factory=Keys)
    """Rows of the database that break the contract and do not wait in quarantine, being dropped from it."""
    older_mapping: Keys = field(default_factory=Keys)
    """Written under an older mapping, which `on_mapping_change: forward` lets stand."""
    unsettled: Keys = field(default_factory=Keys)
    """Changed while they were compared: not equal is not the same as not yet."""
    unseen_deletes: Keys = field(default_factory=Keys)
    """Gone from the database, by a capture that does not see deletes."""
    comparable: bool = True
    reason: str = ""
    """Why no comparison was possible, or what limits it."""
    at: str = ""
    """The place of the comparison: an offset, or an order."""

    @property
    def equal(self) -> bool:
        return self.comparable and not (self.differing or self.missing or self.extra or self.repeated)

    def classes(self) -> dict[str, Keys]:
        """The classes of keys by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Keys)}

    def require_equal(self) -> None:
        """Raises `VerifyError` that names the first difference, or why there was no comparison."""
        where = f"stream {self.stream} against {self.against}"
        if not self.comparable:
            raise VerifyError(f"{where}: {self.reason}")
        if not self.equal:
            found = ", ".join(f"{len(keys)} {name}" for name, keys in self.classes().items() if keys)
            first = next(d for k in (self.differing, self.missing, self.extra, self.repeated) for d in k)
            raise VerifyError(
                f"{where}, at {self.at}: {found}; first {first.key}: expected {first.source}, found {first.target}",
                hint="`headwater sink rebuild` writes a sink anew; for a source, see `headwater doctor`",
            )


def incomparable(stream: str, against: str, reason: str) -> Comparison:
    return Comparison(stream, against, comparable=False, reason=reason)
