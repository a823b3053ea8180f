"""What is said about a contract: place, rule, what changed, who breaks, and how to do it safely, in one line."""

from __future__ import annotations

from dataclasses import dataclass, field

from headwater.contracts.document import Document


@dataclass(frozen=True, slots=True)
class Finding:
    """`path:line: RULE field "x": what changed -> who breaks -> how to do it safely`."""

    path: str
    line: int
    rule: str
    """Its id, in UPPER_SNAKE."""
    field: str
    """"" when the finding is about the contract as a whole."""
    change: str
    breaks: str
    remedy: str

    def __str__(self) -> str:
        subject = f' field "{self.field}"' if self.field else ""
        rest = [part for part in (self.breaks, self.remedy) if part]
        return f"{self.path}:{self.line}: {self.rule}{subject}: " + " -> ".join([self.change, *rest])


@dataclass(frozen=True, slots=True)
class Site:
    """Where a contract is written, so that findings can name the line."""

    document: Document = field(default_factory=lambda: Document("contract", {}))

    @property
    def path(self) -> str:
        return self.document.path

    def line(self, *path: str | int) -> int:
        return self.document.line(*path)

    def field_line(self, name: str, type_name: str | None = None, attribute: str | None = None) -> int:
        """The line of a field, or of one of its attributes; of the fields around it when it is gone."""
        around = ("types", type_name, "fields") if type_name is not None else ("fields",)
        path = (*around, name.split(".")[0])
        return self.line(*path, attribute) if attribute else self.line(*path)
