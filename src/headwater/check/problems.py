"""What `check` says: a problem, with its place and rule, and the three ways of printing it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from headwater.contracts.document import Document
from headwater.contracts.findings import Finding, Site
from headwater.contracts.validation import nearest

Severity = Literal["error", "warning"]

RULES: dict[str, tuple[Severity, str]] = {
    "CONTRACT_INVALID": ("error", "a contract or the vocabulary cannot be read"),
    "CONTRACT_UNUSED": ("warning", "a contract whose stream is not in headwater.yaml"),
    "NOT_ACCEPTED": ("warning", "a working copy that nobody has accepted yet: the engine does not go by it"),
    "CHANGED_AFTER_ACCEPT": ("error", "a working copy that differs from the accepted version of its number"),
    "TAMPERED": ("error", "an accepted version that was edited, deleted, or put there by hand"),
    "NO_OWNER": ("warning", "a contract without an owner"),
    "UNKNOWN_FIELD": ("error", "a mapping for a field that the contract does not have"),
    "UNKNOWN_TYPE": ("error", "event types of mapping and contract that are not the same"),
    "UNKNOWN_TABLE": ("error", "a table that the database does not have"),
    "UNKNOWN_COLUMN": ("error", "a field, key or cursor without a column"),
    "NO_KEY": ("error", "a table without a primary key, and no `key` that names columns"),
    "KEY_NOT_UNIQUE": ("warning", "a fact's key that nothing in the database makes unique"),
    "EXPRESSION": ("error", "an expression or `where` that cannot be parsed, or is not allowed"),
    "MIRRORS_TABLE": ("warning", "a contract that says no more than its table does"),
    "PII_PLAIN": ("warning", "personal data that leaves as it is, neither masked nor hashed"),
    "PROMISE": ("error", "a contract that promises more than its path can give"),
    "RETENTION": ("error", "a retention that drops what the stream's capture compares with"),
    "NO_ADAPTER": ("error", "a URL that no adapter knows"),
    "SINK_MATCHES_NOTHING": ("error", "a sink that names a stream which does not exist"),
    "SINK_PATTERN_UNUSED": ("warning", "a sink's wildcard that matches no stream"),
    "SOURCE_REFUSED": ("error", "settings of a source that are unknown or wrong; its streams are not looked at"),
    "SOURCE_AWAY": ("warning", "a source that could not be looked at, so that its columns are not checked"),
}
"""The rules of configuration. Those of compatibility and vocabulary are in `contracts/`; all are errors unless said."""


@dataclass(frozen=True, slots=True)
class Problem:
    severity: Severity
    path: str
    line: int
    rule: str
    subject: str
    """The stream, field or sink."""
    message: str
    hint: str = ""

    def __str__(self) -> str:
        subject = f" {self.subject}" if self.subject else ""
        hint = f" -> {self.hint}" if self.hint else ""
        return f"{self.path}:{self.line}: {self.severity}: {self.rule}{subject}: {self.message}{hint}"


def rendered(problems: list[Problem], form: Literal["text", "json", "github-actions"] = "text") -> str:
    """For people, for programs, or as annotations of a GitHub workflow; paths as seen from the working directory."""
    problems = [replace(problem, path=_nearer(problem.path)) for problem in problems]
    if form == "json":
        return json.dumps([asdict(problem) for problem in problems], indent=2, ensure_ascii=False)
    if form == "github-actions":
        return "\n".join(map(_annotation, problems))
    return "\n".join(map(str, problems))


def _nearer(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _annotation(problem: Problem) -> str:
    text = f"{problem.subject}: {problem.message} {problem.hint}".strip(": ")
    for character, escape in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
        text = text.replace(character, escape)
    return f"::{problem.severity} file={problem.path},line={problem.line},title={problem.rule}::{text}"


def in_contract(
    site: Site, rule: str, path: tuple[str | int, ...], subject: str, message: str, hint: str = ""
) -> Problem:
    """A problem of a contract's file."""
    return Problem(RULES[rule][0], site.path, site.line(*path), rule, subject, message, hint)


def broken(name: str, finding: Finding, severity: Severity) -> Problem:
    message = f"{finding.change} -> {finding.breaks}" if finding.breaks else finding.change
    return Problem(severity, finding.path, finding.line, finding.rule, finding.field or name, message, finding.remedy)


def in_configuration(
    document: Document, rule: str, path: tuple[str | int, ...], subject: str, message: str, hint: str = ""
) -> Problem:
    """A problem of headwater.yaml."""
    return Problem(RULES[rule][0], document.path, document.line(*path), rule, subject, message, hint)


def meant(word: str, known: Sequence[str]) -> str:
    near = nearest(word, known)
    return f"did you mean `{near}`?" if near else f"known are {', '.join(known) or 'none'}"
