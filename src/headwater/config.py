"""headwater.yaml as a model: read from the file, or made in code; each can be written out as the other.

`${VAR}` and `${VAR:-default}` are filled in inside YAML values, and `${file:/path}` reads a secret
from a file. Contracts and the vocabulary lie beside the file, in `contracts/` and `vocabulary.yaml`.
"""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_serializer, field_validator, model_validator

from headwater.contracts.document import Document, parse_document, write_yaml
from headwater.contracts.model import Duration, Frozen, Name, StreamName, validated
from headwater.errors import ConfigError
from headwater.redaction import redacted

FORMAT = 1
FILE = "headwater.yaml"

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,39}$"

Pattern = Literal["log", "query", "trigger", "outbox"]


class SourceConfig(Frozen):
    """A database. Written as its URL alone, or with options. The URL is a secret: it may hold a password."""

    url: SecretStr
    read_from: SecretStr | None = None
    """A replica that queries go to."""
    timezone: str = "UTC"
    """What times without a zone mean."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the driver as they are."""

    @model_validator(mode="before")
    @classmethod
    def _url_alone(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @field_serializer("url", "read_from", when_used="json")
    def _hidden(self, value: SecretStr | None) -> str | None:
        return None if value is None else redacted(value.get_secret_value())

    @property
    def scheme(self) -> str:
        return scheme_of(self.url.get_secret_value())


class TypeMapping(Frozen):
    """How changes become events of one type, in a contract with `types`. A change takes the first type that fits."""

    fields: dict[Name, str] = Field(default_factory=dict)
    where: str | None = None
    ops: tuple[Literal["c", "u", "d", "r"], ...] = ("c", "u", "r")


class StreamConfig(Frozen):
    """How a stream is fed: pattern, table and mapping."""

    source: str
    table: str | None = None
    query: str | None = None
    """Custom SQL instead of a table; `:cursor` stands for the last cursor value."""
    pattern: Pattern
    # mapping
    fields: dict[Name, str] = Field(default_factory=dict)
    """Contract field -> column or expression; a field that is not listed takes the column of its name."""
    types: dict[Name, TypeMapping] = Field(default_factory=dict)
    where: str | None = None
    function: str | None = None
    """`module:callable` instead of `fields`: record batch in, record batch out (`rows: true`: dict in, dict out)."""
    rows: bool = False
    before: bool = False
    """Whether events carry the state before the change."""
    key: tuple[str, ...] = ()
    """Columns that identify a row, for tables and queries that do not declare them."""
    order: Literal["strict", "relaxed"] = "strict"
    on_invalid: Literal["quarantine", "stop"] = "quarantine"
    on_schema_change: Literal["pause", "stop"] = "pause"
    on_mapping_change: Literal["forward", "rebuild"] = "forward"
    on_truncate: Literal["expand", "stop", "event"] = "expand"
    # query capture
    cursor: str | None = None
    """The column that grows with each change (a timestamp) or each insert (an id). None: the whole table each time."""
    every: Duration = 30.0
    page_size: int = Field(default=50_000, ge=1)
    statement_timeout: Duration | None = None
    read_from: str | None = None
    initial: Literal["snapshot", "none"] = "snapshot"
    look_back: Duration | None = None
    """How far behind the cursor each poll reads again (timestamps: 1m unless told; ids: `look_back_ids`)."""
    look_back_ids: int = Field(default=1_000, ge=0)
    look_back_rows: int = Field(default=200_000, ge=1)
    """How many rows of the look-back window may be remembered; more is an error that says so."""
    reconcile_deletes: Duration | None = None

    @model_validator(mode="after")
    def _consistent(self) -> StreamConfig:
        if (self.table is None) == (self.query is None):
            raise ValueError("a stream has either a `table` or a `query`")
        if self.query is not None and self.pattern != "query":
            raise ValueError(f"a `query` is captured by `pattern: query`, not `{self.pattern}`")
        if self.query is not None and not self.key:
            raise ValueError("a custom query needs its `key`: the columns that identify a row")
        if self.cursor is not None and self.pattern != "query":
            raise ValueError(f"`cursor` is for `pattern: query`, not `{self.pattern}`")
        if self.function and (self.fields or self.where or self.types):
            raise ValueError("`function` replaces `fields`, `types` and `where`")
        return self


class SinkBatch(Frozen):
    """How much a sink takes at a time: whichever is reached first."""

    events: int = Field(default=50_000, ge=1)
    age: Duration = 1.0


class SinkConfig(Frozen):
    """A store. `streams` are names with `*` wildcards."""

    url: SecretStr
    streams: tuple[str, ...] = ("*",)
    mode: Literal["current", "history"] = "current"
    deletes: Literal["hard", "soft"] = "hard"
    batch: SinkBatch | None = None
    """None: what fits the store."""
    hold: bool = False
    memory_limit: str = "200MB"
    options: dict[str, Any] = Field(default_factory=dict)

    @field_serializer("url", when_used="json")
    def _hidden(self, value: SecretStr) -> str:
        return redacted(value.get_secret_value())

    @property
    def scheme(self) -> str:
        return scheme_of(self.url.get_secret_value())


class BusConfig(Frozen):
    url: str = "embedded:data"
    max_bytes: int | None = None
    """The whole bus stops and alarms at this size."""
    park_bytes: int = 256 * 2**20
    """How much a paused stream may hold back before its source stops."""
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _url_alone(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


class Config(Frozen):
    """The whole pipeline."""

    headwater: Literal[1] = 1
    name: str = Field(pattern=NAME_PATTERN)
    """Prefixes everything that is made outside the process."""
    bus: BusConfig = BusConfig()
    sources: dict[Name, SourceConfig]
    streams: dict[StreamName, StreamConfig] = Field(default_factory=dict)
    sinks: dict[Name, SinkConfig] = Field(default_factory=dict)
    directory: Path = Field(default_factory=Path.cwd, exclude=True)
    """Where the file lies; relative paths start here."""

    @field_validator("streams")
    @classmethod
    def _not_reserved(cls, value: dict[str, StreamConfig]) -> dict[str, StreamConfig]:
        for name in value:
            if name.startswith("headwater"):
                raise ValueError(f"stream `{name}`: names that begin with `headwater` are reserved")
        return value

    @model_validator(mode="after")
    def _known_sources(self) -> Config:
        for name, stream in self.streams.items():
            if stream.source not in self.sources:
                known = ", ".join(self.sources)
                raise ValueError(f"stream `{name}` names source `{stream.source}`, but sources are {known}")
        return self

    @cached_property
    def contracts_directory(self) -> Path:
        return self.directory / "contracts"

    def path(self, text: str) -> Path:
        """A path from the file, relative to the file."""
        return self.directory / os.path.expanduser(text)


def load(path: str | Path = FILE) -> Config:
    """Read and check headwater.yaml. Raises `ConfigError`."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", hint="make one with `headwater init sqlite:///path/to/your.db`"
        ) from error
    return parse(text, directory=path.parent.resolve(), where=str(path))


def parse(text: str, *, directory: Path, where: str = FILE) -> Config:
    """Text of a headwater.yaml to its model."""
    document = parse_document(text, where)
    data = document.data
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: a mapping is expected at the top, found {type(data).__name__}")
    if data.get("headwater") != FORMAT:
        found = data.get("headwater", "nothing")
        place = document.place("headwater")
        raise ConfigError(f"{place}: `headwater: {FORMAT}` is expected as the version of the format, found {found}")
    if "directory" in data:  # a field of the model, for those who make it in code, and no key of the file
        raise ConfigError(f"{document.place('directory')}: `directory` is not a known key; it is where the file lies")
    filled = _filled(data, (), document)
    return validated(Config, {**filled, "directory": directory}, where=where, document=document)


def dump(config: Config) -> str:
    """The model as YAML, defaults left out. Secrets are written as they are: it is the user's own file."""
    data = config.model_dump(exclude_defaults=True, exclude_none=True)
    return write_yaml(_plain({"headwater": FORMAT, **data}))


def scheme_of(url: str) -> str:
    scheme = url.split(":", 1)[0].lower() if ":" in url else ""
    return "postgresql" if scheme == "postgres" else scheme  # libpq knows both


_VARIABLE = re.compile(r"\$\{(?:(file):)?([^}:]+)(?::-([^}]*))?\}")


def _filled(value: Any, path: tuple[str | int, ...], document: Document) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, (*path, key), document) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, (*path, number), document) for number, item in enumerate(value)]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _variable(match, document.place(*path)), value)
    return value


def _variable(match: re.Match[str], place: str) -> str:
    is_file, name, default = match.groups()
    if is_file:
        try:
            return Path(name).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"{place}: cannot read {name}: {error.strerror}") from error
    value = os.environ.get(name, default)
    if value is None:
        raise ConfigError(
            f"{place}: environment variable {name} is not set", hint=f"set it, or write ${{{name}:-default}}"
        )
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return value
