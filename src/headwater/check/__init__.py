"""Configuration, contracts and vocabulary against one another, without touching data.

Everything that is wrong is reported, not only the first; each problem names its file, line and rule. `look` adds what
only the databases' catalogues know (columns, keys) and what each stream's path gives; without it those rules are
passed over.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headwater import plugins
from headwater.check.problems import RULES, Problem, Severity, broken, in_configuration, in_contract, rendered
from headwater.check.streams import StreamCheck
from headwater.check.survey import Survey, look
from headwater.config import FILE, Config, scheme_of
from headwater.contracts import vocabulary
from headwater.contracts.document import Document, parse_document
from headwater.contracts.findings import Site
from headwater.contracts.store import ContractStore
from headwater.contracts.validation import nearest
from headwater.contracts.vocabulary import Written, check_vocabulary, load_vocabulary
from headwater.errors import ConfigError

__all__ = ["RULES", "Problem", "Survey", "check", "look", "rendered"]


def check(
    config: Config, store: ContractStore, *, survey: Survey | None = None, file: Path | None = None
) -> list[Problem]:
    """Every problem, errors first. `file`: the configuration's own, for line numbers."""
    checker = _Checker(config, store, survey or Survey(), _document(file or config.directory / FILE))
    return sorted(checker.problems(), key=lambda p: (p.severity, p.path, p.line, p.rule, p.subject))


def _document(path: Path) -> Document:
    try:
        return parse_document(path.read_text(encoding="utf-8"), str(path))
    except OSError:  # made in code: there is no file, and so no line
        return Document(str(path), {})


@dataclass(frozen=True, slots=True)
class _Checker:
    config: Config
    store: ContractStore
    survey: Survey
    document: Document

    def problems(self) -> Iterator[Problem]:
        contracts: dict[str, Written] = {}
        for name in sorted({*self.store.streams(), *self.config.streams}):
            try:
                contracts[name] = self._written(name)
                yield from self._contract(name, contracts[name])
            except ConfigError as error:
                yield self._invalid(self.store.path(name), name, error)
        yield from self._vocabulary(list(contracts.values()))
        for name, stream in self.config.streams.items():
            if name in contracts:
                contract = contracts[name].contract
                yield from StreamCheck(name, stream, contract, self.survey, self.document).problems()
        yield from self._adapters()
        yield from self._sinks()

    def _adapters(self) -> Iterator[Problem]:
        """A sink or bus that nothing can open. An extra that is not installed here is no fault of the file."""
        wanted = {name: (("sinks", name), "sinks", sink.scheme) for name, sink in self.config.sinks.items()}
        for name, (place, kind, scheme) in {
            "bus": (("bus",), "buses", scheme_of(self.config.bus.url)),
            **wanted,
        }.items():
            if scheme not in plugins.known(kind):
                near = nearest(scheme, plugins.known(kind))
                hint = f"did you mean `{near}`?" if near else f"known are {', '.join(plugins.known(kind))}"
                yield in_configuration(
                    self.document, "NO_ADAPTER", place, name, f"there is no adapter for `{scheme}:`", hint
                )

    def _written(self, name: str) -> Written:
        """The contract as it is being worked on, else the newest accepted version."""
        if self.store.has_working(name):
            return Written(self.store.working(name), Site(self.store.document(name)))
        contract = self.store.newest(name)
        if contract is None:
            return Written(self.store.working(name))  # raises the error that says what is missing
        path = self.store.published(name) / f"v{contract.version}.yaml"
        return Written(contract, Site(Document(str(path), {})))

    def _contract(self, name: str, written: Written) -> Iterator[Problem]:
        contract, site = written.contract, written.site
        if name not in self.config.streams:
            message = "no stream of headwater.yaml has this contract"
            yield in_contract(site, "CONTRACT_UNUSED", ("stream",), name, message, self._meant(name))
        if not contract.owner:
            yield in_contract(
                site, "NO_OWNER", ("owner",), name, "nobody answers for it", "write `owner:` with the team that does"
            )
        if self.store.has_working(name):
            yield from (broken(name, finding, "error") for finding in self.store.judge(name))
        yield from self._acceptance(name, written)
        for tampered in self.store.tampered(name):
            hint = "restore the file from version control; to change a contract, accept a new version"
            yield Problem("error", str(tampered.path), 1, "TAMPERED", name, str(tampered).split(": ", 1)[1], hint)

    def _acceptance(self, name: str, written: Written) -> Iterator[Problem]:
        contract, site = written.contract, written.site
        newest = self.store.newest(name)
        if newest is None or contract.version > newest.version:
            going_by = f"the engine goes by v{newest.version}" if newest else "readers have nothing to rely on yet"
            message = f"version {contract.version} is not accepted: {going_by}"
            hint = f"`headwater contract accept {name}`"
            yield in_contract(site, "NOT_ACCEPTED", ("version",), name, message, hint)
            return
        same = next((old for old in self.store.accepted(name) if old.version == contract.version), None)
        if same != contract:
            message = f"it differs from the accepted version {contract.version}, which is immutable"
            hint = f"write `version: {newest.version + 1}`"
            yield in_contract(site, "CHANGED_AFTER_ACCEPT", ("version",), name, message, hint)

    def _invalid(self, path: Path, name: str, error: ConfigError) -> Problem:
        """An error that says its place itself, or that there is no such file: then the stream is the place."""
        match = re.match(r"(.+?):(\d+): ", error.message)
        if match:
            text = error.message[match.end() :]
            return Problem("error", match[1], int(match[2]), "CONTRACT_INVALID", name, text, error.hint)
        return in_configuration(self.document, "CONTRACT_INVALID", ("streams", name), name, error.message, error.hint)

    def _vocabulary(self, contracts: list[Written]) -> Iterator[Problem]:
        path = self.config.directory / vocabulary.FILE
        try:
            file = load_vocabulary(path)
        except ConfigError as error:
            yield self._invalid(path, vocabulary.FILE, error)
            return
        streams = {written.site.path: written.contract.stream for written in contracts}
        for finding in check_vocabulary(file, contracts):
            severity: Severity = "warning" if finding.rule in vocabulary.WARNINGS else "error"
            yield broken(streams.get(finding.path, ""), finding, severity)

    def _sinks(self) -> Iterator[Problem]:
        for name, sink in self.config.sinks.items():
            for place, pattern in enumerate(sink.streams):
                if any(fnmatch.fnmatchcase(stream, pattern) for stream in self.config.streams):
                    continue
                wild = any(character in pattern for character in "*?[")
                rule = "SINK_PATTERN_UNUSED" if wild else "SINK_MATCHES_NOTHING"
                message = f"`{pattern}` matches no stream"
                yield in_configuration(
                    self.document, rule, ("sinks", name, "streams", place), name, message, self._meant(pattern)
                )

    def _meant(self, word: str) -> str:
        near = nearest(word, list(self.config.streams))
        return f"did you mean `{near}`?" if near else f"streams are {', '.join(self.config.streams) or 'none'}"
