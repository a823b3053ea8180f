"""The contracts of one pipeline on disk: working copies that people edit, accepted versions that nobody does.

    contracts/learning.enrollment.yaml                    the working copy
    contracts/published/learning.enrollment/v1.yaml       accepted: the working copy as it was, comments and all
    contracts/published/learning.enrollment/versions.lock a digest for each accepted version

The engine reads; only `accept` writes. Nothing here imports Arrow.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from headwater.contracts.compatibility import RULES, Finding, Site, judge
from headwater.contracts.document import Document, parse_document
from headwater.contracts.model import Contract
from headwater.contracts.validation import nearest, validated
from headwater.errors import ContractError
from headwater.faults import failpoint

LOCK = "versions.lock"
_VERSION = re.compile(r"v([1-9][0-9]*)\.yaml")


@dataclass(frozen=True, slots=True)
class Tampered:
    """An accepted version that is not what was accepted. `found`: `changed`, `missing` or `unrecorded`."""

    stream: str
    version: int
    path: Path
    found: str

    def __str__(self) -> str:
        return f"{self.path}: accepted version {self.version} of `{self.stream}` is {self.found}"


class ContractStore:
    """`directory` is the one named `contracts`; it need not exist."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)

    # where things lie

    def path(self, stream: str) -> Path:
        """Of the working copy, whether it is there or not."""
        return self.directory / f"{stream}.yaml"

    def published(self, stream: str) -> Path:
        """The directory of the accepted versions."""
        return self.directory / "published" / stream

    def streams(self) -> list[str]:
        """Every stream that has a working copy or an accepted version, sorted."""
        working = {path.stem for path in self.directory.glob("[!.]*.yaml")}
        accepted = {path.parent.name for path in self.directory.glob("published/*/v*.yaml")}
        return sorted(working | accepted)

    # reading

    def has_working(self, stream: str) -> bool:
        return self.path(stream).is_file()

    def document(self, stream: str) -> Document:
        """The working copy as it stands in its file, with its lines."""
        return self._document(self.path(stream), stream)

    def working(self, stream: str) -> Contract:
        """The working copy. Raises `ContractError` that names file, line, key and the nearest right key."""
        return _contract(self.document(stream), stream)

    def accepted(self, stream: str) -> list[Contract]:
        """The accepted versions, oldest first."""
        return [self._accepted(stream, number, path) for number, path in self._versions(stream)]

    def newest(self, stream: str) -> Contract | None:
        """The newest accepted version."""
        versions = self._versions(stream)
        return self._accepted(stream, *versions[-1]) if versions else None

    def current(self, stream: str) -> Contract:
        """What the engine goes by: the newest accepted version, or the working copy before the first is accepted."""
        return self.newest(stream) or self.working(stream)

    # accepting

    def judge(self, stream: str, *, allow: Collection[str] = ()) -> list[Finding]:
        """What the working copy breaks for the readers and writers of the accepted versions; `allow` names rules."""
        document = self.document(stream)
        found = judge(self.accepted(stream), _contract(document, stream), Site(document))
        allowed = set(map(_rule, allow))
        return [finding for finding in found if finding.rule not in allowed]

    def accept(self, stream: str, *, allow: Collection[str] = ()) -> Path:
        """Make the working copy an accepted version: atomic, immutable, and nothing if it is one already.

        Raises `ContractError` if that version was accepted with other content, if a version is skipped, or if rules
        of its declared compatibility are broken that `allow` does not name.
        """
        contract = self.working(stream)
        target = self.published(stream) / f"v{contract.version}.yaml"
        text = self.path(stream).read_text(encoding="utf-8")
        if target.exists():
            self._check_same(contract, target)
            self._record(target)
            return target
        self._check_number(contract)
        self._check_history(stream)
        if found := self.judge(stream, allow=allow):
            raise ContractError(
                "\n".join(map(str, found)),
                hint=f"change the contract, or accept what it breaks: --allow {found[0].rule}",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_once(target, text)
        failpoint("contract.accept.before_lock")
        self._record(target)
        return target

    def tampered(self, stream: str | None = None) -> list[Tampered]:
        """Accepted versions that were edited or deleted since, or put there by hand."""
        found: list[Tampered] = []
        for name in [stream] if stream is not None else self.streams():
            recorded = self._recorded(name)
            there = dict(self._versions(name))
            for version in sorted(recorded.keys() | there.keys()):
                path = self.published(name) / f"v{version}.yaml"
                if version not in there:
                    found.append(Tampered(name, version, path, "missing"))
                elif version not in recorded:
                    found.append(Tampered(name, version, path, "unrecorded"))
                elif recorded[version] != _digest(path):
                    found.append(Tampered(name, version, path, "changed"))
        return found

    def _document(self, path: Path, stream: str) -> Document:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            near = nearest(stream, self.streams())
            hint = f"did you mean `{near}`?" if near else "`headwater init` writes contracts for a database's tables"
            raise ContractError(f"stream `{stream}` has no contract: {path} does not exist", hint=hint) from error
        except (OSError, UnicodeDecodeError) as error:
            raise ContractError(f"cannot read {path}: {error}") from error
        return parse_document(text, str(path), error=ContractError)

    def _versions(self, stream: str) -> list[tuple[int, Path]]:
        matches = ((_VERSION.fullmatch(path.name), path) for path in self.published(stream).glob("v*.yaml"))
        return sorted((int(match[1]), path) for match, path in matches if match)

    def _accepted(self, stream: str, number: int, path: Path) -> Contract:
        document = self._document(path, stream)
        contract = _contract(document, stream)
        if contract.version != number:
            raise ContractError(
                f"{document.place('version')}: `version: {number}` is expected by the file's name, "
                f"found {contract.version}",
                hint="accepted versions are not edited; restore the file from version control",
            )
        return contract

    def _check_same(self, contract: Contract, target: Path) -> None:
        if self._accepted(contract.stream, contract.version, target) == contract:
            return
        raise ContractError(
            f"{self.path(contract.stream)}: version {contract.version} of `{contract.stream}` is accepted already, "
            f"and {target} says something else",
            hint=f"accepted versions are immutable: write `version: {contract.version + 1}` and accept that",
        )

    def _check_history(self, stream: str) -> None:
        """What was edited cannot be compared with: it no longer says what readers were promised."""
        for tampered in self.tampered(stream):
            if tampered.found != "unrecorded":
                raise ContractError(str(tampered), hint="restore the file from version control")

    def _check_number(self, contract: Contract) -> None:
        newest = self._versions(contract.stream)
        expected = newest[-1][0] + 1 if newest else 1
        if contract.version != expected:
            raise ContractError(
                f"{self.document(contract.stream).place('version')}: `version: {expected}` of `{contract.stream}` is "
                f"expected next, found {contract.version}",
                hint="versions are accepted one after another, from 1",
            )

    def _recorded(self, stream: str) -> dict[int, str]:
        path = self.published(stream) / LOCK
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        pairs = (line.split() for line in lines if line and not line.startswith("#"))
        return {int(name.removeprefix("v")): digest for name, digest in pairs}

    def _record(self, target: Path) -> None:
        """Record the digest of a version that has none; one that has keeps it, so that an edit stays visible."""
        stream, version = target.parent.name, int(target.stem[1:])
        recorded = self._recorded(stream)
        if version in recorded:
            return
        recorded[version] = _digest(target)
        lines = ["# Digests of accepted versions, which are immutable. Written by `headwater contract accept`."]
        lines += [f"v{number} {digest}" for number, digest in sorted(recorded.items())]
        _replace(target.parent / LOCK, "\n".join(lines) + "\n")


def _rule(text: str) -> str:
    """A rule's id, however it is spelled: `NULL_ALLOWED` or `null-allowed`."""
    rule = text.upper().replace("-", "_")
    if rule not in RULES:
        near = nearest(rule, list(RULES))
        hint = f"did you mean `{near}`?" if near else "docs/contracts.md lists them"
        raise ContractError(f"there is no rule `{rule}`", hint=hint)
    return rule


def _contract(document: Document, stream: str) -> Contract:
    contract = validated(Contract, document.data, where=document.path, document=document)
    if contract.stream != stream:
        raise ContractError(
            f"{document.place('stream')}: `stream: {stream}` is expected in this file, found `{contract.stream}`",
            hint="a contract's file has the name of its stream",
        )
    return contract


def _digest(path: Path) -> str:
    """Of the text, so that a checkout with other line ends has the same."""
    return "sha256:" + hashlib.sha256(path.read_text(encoding="utf-8").encode()).hexdigest()


def _temporary(target: Path, text: str) -> Path:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(name, 0o644)
    return Path(name)


def _write_once(target: Path, text: str) -> None:
    """The whole file appears at once, or not at all; one that is there is never replaced."""
    temporary = _temporary(target, text)
    try:
        failpoint("contract.accept.before_link")
        os.link(temporary, target)
    except FileExistsError as error:
        raise ContractError(f"{target} was accepted by somebody else at the same time") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    _sync(target.parent)


def _replace(target: Path, text: str) -> None:
    os.replace(_temporary(target, text), target)
    _sync(target.parent)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
