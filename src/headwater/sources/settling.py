"""Which rows a trigger capture reads when it starts: for all databases alike, for what differs see each `begin`."""

from __future__ import annotations

import dataclasses
import datetime
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from headwater.errors import SourceError
from headwater.model import Note, Reload, utc_now
from headwater.protocols import Capture

LOADING, READING, DONE = "loading", "reading", "done"


class StreamLoad(Protocol):
    """How far one stream's load has come, in what every database needs to know of it: a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def token(self) -> str: ...
    @property
    def state(self) -> str:
        """LOADING, READING or DONE."""

    @property
    def table(self) -> str: ...
    @property
    def start(self) -> int:
        """The number of the change that it was begun at: a repair of the table above it is news to the stream."""

    @property
    def again(self) -> bool:
        """The stream could not be captured for a while, and the position went on without it."""


Load = TypeVar("Load", bound=StreamLoad)


class Settler(ABC, Generic[Load]):
    """Decides, stream by stream, which rows are to be read.

    `known`: the loads of the position, which stands at change `number`. `gap`: the position was worth nothing.
    `restart`: a new `read`, whose readings begin with their first row again. `checked`: when the triggers were found
    whole for the last time.
    """

    UNSEEN: ClassVar[str]
    """Why changes are missing, where the capture itself was not at fault."""

    def __init__(
        self, known: Mapping[str, Load], number: int, *, gap: bool, restart: bool, checked: datetime.datetime
    ) -> None:
        self._known = known
        self._number = number
        self._gap = gap
        self._restart = restart
        self._checked = checked
        self.loads: dict[str, Load] = {}
        self.notes: list[Note] = []

    def settle(self, capture: Capture, broken: Mapping[str, SourceError]) -> None:
        known = self._known.get(capture.stream)
        if capture.stream not in broken:
            self.loads[capture.stream] = self._settled(capture, known)
        elif known is not None:
            self.loads[capture.stream] = dataclasses.replace(known, again=True)

    def _settled(self, capture: Capture, known: Load | None) -> Load:
        if known is None or known.token != capture.load.token:
            return self._first(capture)
        if known.state == READING and not self._restart:
            return known  # under way: it is finished first, its first part is staged already
        return self._compared(capture, known) if self._gap or self._missed(capture, known) else known

    def _missed(self, capture: Capture, load: Load) -> bool:
        """Whether changes of the stream's table since its load began may be missing."""
        return load.again or load.table != self._table(capture) or self._repaired(capture) > load.start

    def _start(self, capture: Capture) -> int:
        return max(self._number, self._repaired(capture))

    def _first(self, capture: Capture) -> Load:
        wanted = capture.load
        if wanted.skip:
            return self._begin(capture, DONE)
        return self._begin(capture, LOADING if wanted.reload is None else READING, wanted.reload)

    def _compared(self, capture: Capture, known: Load) -> Load:
        """The stream missed changes: its rows are read again, for the difference. Without a key there is none."""
        table = self._table(capture)
        if not self._gap:
            what = "the rows are compared" if capture.key else "and rows without a key cannot be compared"
            why = "the stream could not be captured" if known.again else self.UNSEEN
            since = f"since change {self._number}" if self._restart else f"since {_spelt(self._checked)}"
            when = f"{since}, until {_spelt(utc_now())},"
            text = f"table {table}: {why}; what happened {when} was not seen one by one, {what}"
            self.notes.append(Note(capture.stream, "gap", text))
        if not capture.key:
            return dataclasses.replace(known, start=self._start(capture), table=table, again=False)
        return self._begin(capture, READING, Reload.DIFFERENCE)

    @abstractmethod
    def _table(self, capture: Capture) -> str:
        """The table's name in positions."""

    @abstractmethod
    def _repaired(self, capture: Capture) -> int:
        """The change at which the table's triggers were made whole for the last time; 0: never."""

    @abstractmethod
    def _begin(self, capture: Capture, state: str, reload: Reload | None = None) -> Load:
        """A load that begins now, `start` included."""


def _spelt(moment: datetime.datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
