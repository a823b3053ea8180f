"""A pipeline in Python: the file's mirror, and the place where people read events one by one.

    with headwater.Pipeline.load("headwater.yaml") as pipeline:
        pipeline.run(once=True)
        for event in pipeline.events("learning.enrollment", group="billing"):
            charge(event.user_id, event.price)

The same model is behind the file and the code; each can be written out as the other.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import importlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import pyarrow as pa
import yaml

from headwater import config as configuration
from headwater.assembly import Assembly
from headwater.config import FILE, Config
from headwater.contracts.model import Contract, validated
from headwater.contracts.store import ContractStore
from headwater.errors import ConfigError
from headwater.mapping.evolve import conform
from headwater.mapping.hashing import event_ids
from headwater.model import ORDER_NAMES, Cursor, Events, Op, Order
from headwater.protocols import Bus

if TYPE_CHECKING:
    import duckdb

    from headwater.figures import Figures
    from headwater.status import StatusReport
    from headwater.supervisor import Supervisor

Start = Literal["beginning", "end"] | int | datetime.datetime
"""Where a reader begins: an offset, a time, or one of the two ends."""

_CHUNK = 1_000
_COMMIT_EVENTS = 100
_COMMIT_SECONDS = 1.0


class Event:
    """One event. The contract's fields are attributes (`event.price`) and items (`event["price"]`).

    A field of the name of an attribute below is reached as an item. `fields` lacks what `unchanged` names: the source
    did not say, and a reader keeps what it has. A delete's `fields` are its key.
    """

    __slots__ = (
        "_commit",
        "before",
        "fields",
        "id",
        "key",
        "offset",
        "op",
        "order",
        "stream",
        "time",
        "transaction",
        "type",
        "unchanged",
        "version",
    )

    stream: str
    id: str
    """The same through any retry, in hexadecimal digits: what to deduplicate by."""
    op: str
    """`c` create, `u` update, `d` delete, `r` read, `t` truncate."""
    type: str | None
    """The event type, in contracts that have several."""
    key: dict[str, Any]
    fields: dict[str, Any]
    before: dict[str, Any] | None
    unchanged: tuple[str, ...]
    order: Order
    time: datetime.datetime | None
    """Of the commit at the source, where that is known."""
    transaction: str | None
    offset: int
    version: int
    """The contract version that the event was written under; `fields` are those of the newest."""

    def __init__(self, values: Mapping[str, Any], commit: Callable[[], None] | None = None) -> None:
        for name, value in values.items():
            setattr(self, name, value)
        self._commit = commit

    def commit(self) -> None:
        """Make the group's cursor durable behind this event, now."""
        if self._commit is None:
            raise ConfigError(
                f"stream {self.stream}: an event read without a group has no cursor to commit",
                hint='name one: pipeline.events("...", group="billing")',
            )
        self._commit()

    def __getattr__(self, name: str) -> Any:
        if name in Event.__slots__ or name not in self.fields:
            raise AttributeError(f"event of {self.stream} has no field `{name}`")
        return self.fields[name]

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def __contains__(self, name: object) -> bool:
        return name in self.fields

    def __repr__(self) -> str:
        return f"<Event {self.stream} {self.offset} {self.op} {self.key}>"


class Pipeline:
    """A configured pipeline. A context manager: what it opened, it closes.

    `sources`, `streams` and `sinks` are what the file has under these keys; `contracts` are `Contract`s or what their
    files have, and stand for the working copies. A stream's `function` may be the function itself, if it can be
    imported. Relative paths start at `directory`. Reading needs no running pipeline, and disturbs none.
    """

    def __init__(
        self,
        *,
        name: str,
        sources: Mapping[str, Any],
        streams: Mapping[str, Any] | None = None,
        sinks: Mapping[str, Any] | None = None,
        bus: Any = None,
        contracts: Iterable[Contract | Mapping[str, Any]] = (),
        directory: str | Path = ".",
    ) -> None:
        described = {
            "name": name,
            "sources": dict(sources),
            "streams": {stream: _with_function(settings) for stream, settings in (streams or {}).items()},
            "sinks": dict(sinks or {}),
            "directory": Path(directory).resolve(),
            **({"bus": bus} if bus is not None else {}),
        }
        self._begin(validated(Config, described, where="Pipeline"), [_contract(item) for item in contracts])

    @classmethod
    def load(cls, path: str | Path = FILE) -> Self:
        """From headwater.yaml and the contracts beside it. Raises `ConfigError`."""
        return cls.from_config(configuration.load(path))

    @classmethod
    def from_config(cls, config: Config, contracts: Iterable[Contract] = ()) -> Self:
        pipeline = cls.__new__(cls)
        pipeline._begin(config, contracts)
        return pipeline

    def _begin(self, config: Config, contracts: Iterable[Contract]) -> None:
        self.config = config
        self._given = {contract.stream: contract for contract in contracts}
        self._assembly = self._assembled()
        self._views: duckdb.DuckDBPyConnection | None = None
        self._running: Supervisor | None = None
        self._lock = threading.Lock()

    def _assembled(self, *, append: bool = False) -> Assembly:
        assembly = Assembly(self.config, append=append)
        assembly.contracts = _Contracts(self.config.contracts_directory, self._given)
        return assembly

    # writing it out

    def to_yaml(self) -> str:
        """The headwater.yaml that says the same. Secrets are in it as they are."""
        return configuration.dump(self.config)

    def save(self, path: str | Path = FILE) -> list[Path]:
        """Write headwater.yaml, and beside it the contracts that were given in code. Nothing is overwritten."""
        path = Path(path)
        contracts = path.parent / "contracts"
        texts = {path: self.to_yaml()}
        texts |= {contracts / f"{stream}.yaml": contract_yaml(contract) for stream, contract in self._given.items()}
        for target, text in texts.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_new(target, text)
        return list(texts)

    def contract(self, stream: str) -> Contract:
        """The one that holds: the newest accepted version, else the working copy."""
        self._check_stream(stream)
        return self._assembly.contract(stream)

    # running

    def run(self, *, once: bool = False, on_tick: Callable[[Figures], None] | None = None) -> int:
        """Capture and deliver until `stop` is called, or with `once` until everything has caught up.

        Returns 0, or 1 when a capture or sink has failed. Raises `AppenderBusy` if another process runs this pipeline.
        """
        from headwater.runtime import start

        with self._assembled(append=True) as assembly:
            supervisor = start(assembly)
            with self._lock:
                self._running = supervisor
            try:
                return supervisor.run(follow=not once, on_tick=on_tick)
            finally:
                self._running = None

    def stop(self) -> None:
        """End a `run` and every reader of this object, from any thread or a signal handler."""
        running = self._running
        if running is not None:
            running.stop()
        if "bus" in self._assembly.__dict__:
            self._bus.stop()

    def close(self) -> None:
        """Give back what was opened for reading."""
        if self._views is not None:
            self._views.close()
            self._views = None
        self._assembly.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # reading

    def events(
        self, stream: str, *, group: str | None = None, start: Start = "beginning", follow: bool = True
    ) -> Iterator[Event]:
        """Events one by one, as Python values. For people and small services: `batches` is many times faster.

        With a `group` it goes on behind what the group has committed; `start` is for a group that has committed
        nothing, and for readers without one. An event counts as read when the next one is asked for, and the cursor is
        made durable at the latest after 100 events, after a second, and before it waits for more: whatever happens,
        each event is read at least once. `event.commit()` makes it durable at once. With `follow` it never ends.
        """
        for part in self._parts(stream, (group, start), follow=follow, limit=_CHUNK):
            progress = self._progress(part, group)
            try:
                for event in _events(part, self._assembly.contract(stream), progress):
                    yield event
                    progress.passed(event.offset)
            finally:
                progress.flush()

    def batches(
        self, stream: str, *, group: str | None = None, start: Start = "beginning", follow: bool = True
    ) -> Iterator[Events]:
        """Events as Arrow record batches (`.data`, see `headwater.model`), in the shape of the newest contract.

        `group` and `start` are as in `events`; a batch counts as read when the next one is asked for.
        """
        contract = self.contract(stream)
        for part in self._parts(stream, (group, start), follow=follow, limit=None):
            yield dataclasses.replace(part, version=contract.version, data=conform(part.data, contract, part.type))
            if group is not None and part.cursor is not None:
                self._bus.commit(group, stream, part.cursor)

    def sql(self, query: str) -> pa.Table:
        """The result of a query over streams and their current state; see `headwater.views` for their names."""
        connection = self.connect()
        try:
            return connection.sql(query).to_arrow_table()
        finally:
            connection.close()

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection of one's own, with each stream and its current state as views. Close it after use."""
        from headwater.views import connect

        contracts = {stream: self._assembly.contract(stream) for stream in self.config.streams}
        return connect(self._bus, contracts)

    def status(self) -> StatusReport:
        """What `headwater status` shows, as values."""
        from headwater.status import status

        return status(self._assembly)

    # readers' ways

    @property
    def _bus(self) -> Bus:
        with self._lock:
            return self._assembly.bus

    def _parts(
        self, stream: str, place: tuple[str | None, Start], *, follow: bool, limit: int | None
    ) -> Iterator[Events]:
        self._check_stream(stream)
        after = self._after(stream, *place)
        return self._bus.read(stream, after=after, follow=follow, limit=limit)

    def _check_stream(self, stream: str) -> None:
        if stream not in self.config.streams:
            near = difflib.get_close_matches(stream, self.config.streams, 1)
            known = ", ".join(self.config.streams) or "none"
            raise ConfigError(
                f"there is no stream `{stream}`", hint=f"did you mean `{near[0]}`?" if near else f"there are {known}"
            )

    def _after(self, stream: str, group: str | None, start: Start) -> Cursor | None:
        committed = self._bus.cursor(group, stream) if group is not None else None
        if committed is not None or start == "beginning":
            return committed
        state = self._bus.streams()[stream]
        if start == "end":
            return Cursor(state.incarnation, (state.head,))
        if isinstance(start, datetime.datetime):
            return Cursor(state.incarnation, (self._bus.offset_at(stream, start),))
        if isinstance(start, int):
            return Cursor(state.incarnation, (start,))
        raise ConfigError(f"start is `{start}`", hint='it is "beginning", "end", an offset, or a datetime')

    def _progress(self, part: Events, group: str | None) -> _Progress:
        return _Progress(self._bus, part, group)


class _Progress:
    """A group's way through one part: which events have been read, and which of that is durable."""

    def __init__(self, bus: Bus, part: Events, group: str | None) -> None:
        assert part.cursor is not None, "a bus sets cursors"
        self.group = group
        self._bus = bus
        self._stream = part.stream
        self._cursor = part.cursor
        self._read: int | None = None
        self._events = 0
        self._since = time.monotonic()

    def passed(self, offset: int) -> None:
        self._read = offset
        self._events += 1
        if self._events >= _COMMIT_EVENTS or time.monotonic() - self._since >= _COMMIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._read is not None:
            self.commit(self._read)

    def commit(self, offset: int) -> None:
        if self.group is not None:
            self._bus.commit(self.group, self._stream, self._cursor.at(offset + 1))
        self._read, self._events, self._since = None, 0, time.monotonic()


def _events(part: Events, contract: Contract, progress: _Progress) -> Iterator[Event]:
    """The only place where events become Python objects."""
    data = conform(part.data, contract, part.type)
    names = list(contract.shape(part.type))
    ids = event_ids(part).to_pylist()
    offsets = part.offsets.to_pylist() if part.offsets is not None else []
    for row, event_id, offset in zip(data.to_pylist(), ids, offsets, strict=True):
        values = _values(row, names, contract.key)
        identity = {"stream": part.stream, "type": part.type, "version": part.version, "offset": offset}
        commit = _committing(progress, offset) if progress.group is not None else None
        yield Event({**identity, **values, "id": event_id.hex()}, commit)


def _committing(progress: _Progress, offset: int) -> Callable[[], None]:
    return lambda: progress.commit(offset)


def _values(row: dict[str, Any], names: Sequence[str], key: Sequence[str]) -> dict[str, Any]:
    op, epoch, commit, index, when, transaction = (row[name] for name in ORDER_NAMES)
    unchanged = tuple(names[ordinal] for ordinal in row.get("_unchanged") or ())
    carried = key if op == Op.DELETE else [] if op == Op.TRUNCATE else names
    return {
        "op": Op(op).letter,
        "order": Order(epoch, commit, index),
        "time": when,
        "transaction": transaction,
        "key": {name: row[name] for name in key},
        "fields": {name: row[name] for name in carried if name not in unchanged},
        "before": row.get("before"),
        "unchanged": unchanged,
    }


# code and file as each other


class _Contracts(ContractStore):
    """Contracts given in code stand for working copies; accepted versions on disk hold, as ever."""

    def __init__(self, directory: Path, given: Mapping[str, Contract]) -> None:
        super().__init__(directory)
        self._given = given

    def working(self, stream: str) -> Contract:
        return self._given[stream] if stream in self._given else super().working(stream)

    def has_working(self, stream: str) -> bool:
        return stream in self._given or super().has_working(stream)

    def streams(self) -> list[str]:
        return sorted({*self._given, *super().streams()})


def contract_yaml(contract: Contract) -> str:
    """The file that says the same as a contract made in code; defaults are left out."""
    described = contract.model_dump(exclude_defaults=True, exclude_none=True)
    return yaml.safe_dump(_plain(described), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _contract(item: Contract | Mapping[str, Any]) -> Contract:
    if isinstance(item, Contract):
        return item
    return validated(Contract, dict(item), where=f"contract of {item.get('stream', 'a stream without a name')}")


def _with_function(settings: Any) -> Any:
    if not isinstance(settings, Mapping) or not callable(settings.get("function")):
        return settings
    return {**settings, "function": _reference(settings["function"])}


def _reference(function: Callable[..., Any]) -> str:
    """`module:name` of a function that a fresh process could import, too."""
    module, name = function.__module__, function.__qualname__
    if getattr(importlib.import_module(module), name, None) is not function:
        raise ConfigError(
            f"function `{module}.{name}` cannot be imported by its name",
            hint="define it at the top level of a module, so that the file can name it as `module:function`",
        )
    return f"{module}:{name}"


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists already", hint="choose another place, or remove it first") from error
