"""The supervisor with small fakes: what is retried, what fails, what goes on, and what health says."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headwater import figures
from headwater.buses.memory import MemoryBus
from headwater.contracts.model import Contract
from headwater.errors import BusFull, Busy, CursorMismatch, NotConnected, SourceError
from headwater.figures import WorkerFigures
from headwater.model import Batch, Cursor, Events, Mapped, Parked, Position, SourceState
from headwater.protocols import Declaration, Guarantee, Sink, SinkState
from headwater.supervisor import Supervisor
from tests.acceptance.project import until
from tests.streams import ITEM, events

OTHER = ITEM.model_copy(update={"stream": "shop.other"})
CAPTURE = "shop/trigger"


class Feed:
    """A source of single events, from a list that a test fills; position `n` is behind the first `n`."""

    def __init__(self, parts: Parts) -> None:
        self.name = CAPTURE
        self.broken = dict(parts.broken_streams)
        self._parts = parts
        self._stopped = threading.Event()

    def read(self, after: Position | None, *, follow: bool) -> Iterator[Batch]:
        done = after.commit if after is not None else 0
        while not self._stopped.is_set():
            if self._parts.source_errors:
                raise self._parts.source_errors.pop(0)
            if done < len(self._parts.fed):
                done += 1
                yield Batch((), Position(1, done, b""))
            elif not follow:
                return
            else:
                self._stopped.wait(0.01)

    def confirm(self, position: Position) -> None:
        self._parts.confirmed = position.commit

    def state(self, stream: str) -> SourceState:
        raise NotImplementedError

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self._stopped.set()
        self._parts.closed += 1


class Mapping:
    """The event that was fed at the batch's position."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.owed = frozenset(parts.owed)

    def __call__(self, batch: Batch) -> Mapped:
        return Mapped(events=(self._parts.fed[batch.position.commit - 1],))

    def drain(self) -> None:
        self._parts.drained += 1
        self._parts.owed.clear()
        for stream, state in self._parts.bus.streams().items():
            if state.resuming:
                for number, _ in self._parts.bus.parked(stream):
                    self._parts.bus.settle(Mapped(), parked=[number])

    def stop(self) -> None: ...
    def close(self) -> None: ...


class Store:
    """A sink that keeps what it is given, and raises what a test put in its way."""

    guarantee = Guarantee("exactly_once")

    def __init__(self, name: str, parts: Parts) -> None:
        self.name = name
        self._parts = parts

    def prepare(self, contract: Contract) -> None: ...

    def cursor(self, stream: str) -> Cursor | None:
        return self._parts.cursors.get((self.name, stream))

    def write(self, events: Events) -> None:
        errors = self._parts.sink_errors[self.name, events.stream]
        if errors:
            raise errors[0] if len(errors) == 1 and isinstance(errors[0], CursorMismatch) else errors.pop(0)
        self._parts.written[self.name, events.stream] += events.data.column("id").to_pylist()
        assert events.cursor is not None
        self._parts.cursors[self.name, events.stream] = events.cursor
        self._parts.on_write()

    def move(self, stream: str, cursor: Cursor | None) -> None: ...
    def clear(self, stream: str) -> None: ...
    def state(self, stream: str) -> SinkState:
        raise NotImplementedError

    def close(self) -> None: ...


class Parts:
    """Two streams of one capture, and sinks `a` and `b` of both."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = home
        self.bus = MemoryBus()
        self.bus.declare([Declaration(contract, CAPTURE, "f") for contract in (ITEM, OTHER)])
        self.fed: list[Events] = []
        self.source_errors: list[Exception] = []
        self.sink_errors: dict[tuple[str, str], list[Exception]] = defaultdict(list)
        self.written: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.cursors: dict[tuple[str, str], Cursor] = {}
        self.broken_streams: dict[str, SourceError] = {}
        self.owed: set[str] = set()
        self.anew: set[str] = set()
        self.confirmed = self.drained = self.closed = self.stopped = 0
        self.on_write: Callable[[], None] = lambda: None
        self.maintaining: Callable[[], bool] = lambda: False

    def feed(self, *numbers: int) -> None:
        for number in numbers:
            for contract in (ITEM, OTHER):
                row = {"op": "c", "at": (1, len(self.fed) + 1, 0), "id": number}
                self.fed.append(events([row], contract))

    def capture_streams(self) -> dict[str, tuple[str, ...]]:
        return {CAPTURE: ("shop.item", "shop.other")}

    def sink_streams(self) -> dict[str, tuple[str, ...]]:
        return {"a": ("shop.item", "shop.other"), "b": ("shop.item",)}

    def source(self, capture: str) -> Feed:
        return Feed(self)

    def mapping(self, capture: str) -> Mapping:
        return Mapping(self)

    def sink(self, name: str) -> Sink:
        return Store(name, self)

    def prepare(self, sink: Sink, stream: str) -> None: ...

    def pace(self, sink: str) -> tuple[int, float]:
        return 10, 0.01

    def table_streams(self, capture: str, batch: Batch) -> Iterable[tuple[str, int]]:
        return ()

    def maintain(self) -> bool:
        return self.maintaining()

    def answer(self) -> None: ...

    def to_begin_anew(self) -> set[str]:
        asked, self.anew = self.anew, set()
        return asked

    def stop(self) -> None:
        self.stopped += 1


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.supervisor.TICK", 0.02)
    monkeypatch.setattr("headwater.supervisor.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("headwater.supervisor.LONGEST_PAUSE", 0.05)


@contextmanager
def running(parts: Parts) -> Iterator[Supervisor]:
    supervisor = Supervisor(parts)
    thread = threading.Thread(target=supervisor.run, daemon=True)
    thread.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()
        thread.join(10)
        assert not thread.is_alive()


def worker(supervisor: Supervisor, name: str) -> WorkerFigures:
    return supervisor.figures().workers[name]


def test_once_delivers_all_that_there_is_to_every_sink_and_ends_well() -> None:
    parts = Parts()
    parts.feed(1, 2, 3)
    supervisor = Supervisor(parts)
    assert supervisor.run(follow=False) == 0
    assert parts.written == {
        ("a", "shop.item"): [1, 2, 3],
        ("a", "shop.other"): [1, 2, 3],
        ("b", "shop.item"): [1, 2, 3],
    }
    assert parts.confirmed == 6
    assert {w.state for w in supervisor.figures().workers.values()} == {"done"}
    assert worker(supervisor, "a").rows == 6


def test_a_run_that_is_to_end_ends_with_its_last_worker_and_not_at_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.supervisor.TICK", 600.0)
    parts = Parts()
    parts.feed(1)
    thread = threading.Thread(target=Supervisor(parts).run, args=(False,), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert parts.written["b", "shop.item"] == [1]


def test_f56_a_sink_with_an_error_that_stays_fails_alone_and_keeps_the_time_since_when() -> None:
    parts = Parts()
    parts.sink_errors["b", "shop.item"] = [CursorMismatch("of another incarnation")]
    parts.feed(1)
    with running(parts) as supervisor:
        until(lambda: worker(supervisor, "b").state == "failed")
        since = worker(supervisor, "b").since
        parts.feed(2)
        until(lambda: parts.written["a", "shop.other"] == [1, 2])
        failed = worker(supervisor, "b")
        assert (failed.state, failed.since, failed.error) == ("failed", since, "of another incarnation")
        assert worker(supervisor, "a").error == ""
        assert not supervisor.figures().healthy
    assert not supervisor.figures().healthy


def test_f56_a_stream_that_cannot_be_delivered_stops_alone_within_its_sink() -> None:
    parts = Parts()
    parts.sink_errors["a", "shop.item"] = [CursorMismatch("of another incarnation")]
    parts.feed(1)
    with running(parts) as supervisor:
        until(lambda: worker(supervisor, "a").error)
        since = worker(supervisor, "a").since
        parts.feed(2, 3)
        until(lambda: parts.written["a", "shop.other"] == [1, 2, 3])
        until(lambda: worker(supervisor, "a").rows == 3)
        found = worker(supervisor, "a")
        assert (found.state, found.error, found.since) == ("running", "of another incarnation", since)
        assert parts.written["a", "shop.item"] == []


def test_f56_once_mode_delivers_the_others_and_then_says_that_one_failed() -> None:
    parts = Parts()
    parts.sink_errors["a", "shop.item"] = [CursorMismatch("of another incarnation")]
    parts.feed(1, 2)
    supervisor = Supervisor(parts)
    assert supervisor.run(follow=False) == 1
    assert parts.written["a", "shop.other"] == [1, 2]
    assert (worker(supervisor, "a").state, worker(supervisor, "b").state) == ("failed", "done")


def test_what_may_go_away_is_tried_again_and_nothing_is_lost_or_doubled() -> None:
    parts = Parts()
    parts.sink_errors["b", "shop.item"] = [Busy("locked"), NotConnected("away"), OSError("no space")]
    parts.source_errors = [NotConnected("away"), BusFull("full")]
    parts.feed(1, 2)
    with running(parts) as supervisor:
        until(lambda: parts.written["b", "shop.item"] == [1, 2])
        until(lambda: supervisor.figures().healthy)
        assert worker(supervisor, "b").retries == 3
        assert worker(supervisor, CAPTURE).retries == 2
        assert worker(supervisor, "b").state == "running"


def test_once_mode_gives_a_busy_target_some_tries_and_then_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.supervisor.FIRST_PAUSE", 0.2)
    monkeypatch.setattr("headwater.supervisor.LONGEST_PAUSE", 30.0)
    monkeypatch.setattr("headwater.supervisor._Worker._worth_another", lambda self, error, pause: pause < 0.3)
    parts = Parts()
    parts.sink_errors["b", "shop.item"] = [Busy("locked")] * 100
    parts.feed(1)
    supervisor = Supervisor(parts)
    assert supervisor.run(follow=False) == 1
    assert worker(supervisor, "b").error == "locked"
    assert len(parts.sink_errors["b", "shop.item"]) == 98
    assert parts.written["a", "shop.item"] == [1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_f80_a_worker_that_died_of_a_defect_stays_failed_however_long_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headwater.supervisor.SETTLED", 0.0)
    parts = Parts()
    parts.source_errors = [ZeroDivisionError("a defect")]
    parts.feed(1)
    ticks: list[int] = []

    def maintain() -> bool:
        ticks.append(1)
        return True

    parts.maintaining = maintain
    with running(parts) as supervisor:
        until(lambda: worker(supervisor, CAPTURE).state == "failed")
        supervisor._more_to_maintain = True
        seen = len(ticks)
        until(lambda: len(ticks) > seen + 2)
        assert worker(supervisor, CAPTURE).state == "failed"
        assert worker(supervisor, CAPTURE).error == "a defect"


def test_health_names_a_stream_that_its_source_cannot_capture_while_others_flow() -> None:
    parts = Parts()
    parts.broken_streams = {"shop.item": SourceError("stream shop.item: there is no table item")}
    parts.feed(1)
    with running(parts) as supervisor:
        until(lambda: worker(supervisor, CAPTURE).error)
        found = worker(supervisor, CAPTURE)
        assert (found.state, found.error) == ("running", "stream shop.item: there is no table item")
        until(lambda: parts.written["a", "shop.other"] == [1])


def test_a_stream_that_is_resumed_while_it_runs_is_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import mapping_rows

    parts = Parts()
    parts.bus.pause("shop.item", "maintenance")
    changes = mapping_rows.changes([])
    parts.bus.settle(Mapped(parked=(Parked("shop.item", changes),)))
    with running(parts):
        until(lambda: parts.drained == 1)
        parts.bus.resume("shop.item")
        until(lambda: parts.drained == 2)
        until(lambda: not parts.bus.streams()["shop.item"].resuming)


def test_a_capture_that_owes_a_reading_begins_anew_once_the_stream_flows() -> None:
    parts = Parts()
    parts.bus.pause("shop.item", "maintenance")
    with running(parts) as supervisor:
        until(lambda: parts.drained == 1)
        supervisor._captures[0]._mapping.owed = frozenset({"shop.item"})  # type: ignore[union-attr,misc]
        parts.bus.resume("shop.item")
        parts.bus.settle(Mapped())
        until(lambda: parts.drained == 2)


def test_a_capture_that_is_asked_to_begins_anew() -> None:
    parts = Parts()
    with running(parts):
        until(lambda: parts.drained == 1)
        parts.anew = {"another"}
        until(lambda: not parts.anew)
        assert parts.drained == 1
        parts.anew = {CAPTURE}
        until(lambda: parts.drained == 2)


def test_f82_what_is_appended_last_arrives_without_another_append() -> None:
    parts = Parts()
    with running(parts):
        for number in range(20):
            parts.feed(number)
            until(lambda: parts.written["b", "shop.item"][-1:] == [number])  # noqa: B023


def test_stop_ends_a_long_delivery_between_two_writes() -> None:
    parts = Parts()
    parts.feed(*range(50))
    supervisor = Supervisor(parts)
    parts.on_write = supervisor.stop
    thread = threading.Thread(target=supervisor.run, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert sum(map(len, parts.written.values())) <= 2, "at most the write that each sink was at"
    assert parts.stopped > 0
    assert parts.closed == 1


def test_figures_that_cannot_be_written_end_nothing(tmp_path: Path) -> None:
    """A full disk; here a home that is gone."""
    parts = Parts(tmp_path / "gone")
    parts.feed(1)
    assert Supervisor(parts).run(follow=False) == 0
    assert parts.written["b", "shop.item"] == [1]


def test_housekeeping_that_fails_ends_nothing_and_health_says_so_until_it_succeeds(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    full = [OSError("no space left on device")]

    def maintain() -> bool:
        if full:
            raise full[0]
        return True

    parts.maintaining = maintain
    with running(parts) as supervisor:
        supervisor._more_to_maintain = True
        until(lambda: not supervisor.figures().healthy)
        parts.feed(1)
        until(lambda: parts.written["b", "shop.item"] == [1])
        shown = figures.read(tmp_path)
        assert shown is not None
        full.clear()
        until(lambda: supervisor.figures().healthy)
