import datetime
import json
import os
from pathlib import Path

import pytest

from headwater import figures
from headwater.figures import Meter, WorkerFigures


def meter() -> Meter:
    made = Meter(["a.b"])
    made.add(WorkerFigures("lms/trigger", "capture", ("a.b",)))
    made.add(WorkerFigures("copy", "sink", ("a.b",)))
    return made


def test_rows_are_counted_by_worker_and_stream() -> None:
    counting = meter()
    counting.count("lms/trigger", 3, [("a.b", 2)])
    counting.count("lms/trigger", 4, [("a.b", 4)])
    now = counting.snapshot()
    assert (now.workers["lms/trigger"].rows, now.streams["a.b"].rows) == (7, 6)


def test_a_failed_worker_makes_the_pipeline_unhealthy_and_says_since_when() -> None:
    """F56: health names the one that is broken."""
    counting = meter()
    counting.enter("copy", "waiting", "copy.db is locked")
    since = counting.snapshot().workers["copy"].since
    counting.enter("copy", "waiting", "copy.db is locked")
    now = counting.snapshot()
    assert not now.healthy
    assert (now.workers["copy"].error, now.workers["copy"].since) == ("copy.db is locked", since)
    assert now.workers["lms/trigger"].error == ""


def test_a_worker_is_well_again_when_it_moves_rows() -> None:
    counting = meter()
    counting.enter("copy", "waiting", "copy.db is locked")
    counting.count("copy", 1)
    assert counting.snapshot().healthy


def test_figures_are_the_same_in_another_process(tmp_path: Path) -> None:
    counting = meter()
    counting.count("copy", 5)
    written = counting.snapshot()
    figures.write(written, tmp_path)
    assert figures.read(tmp_path) == written


def test_figures_of_a_process_that_is_gone_are_not_believed(tmp_path: Path) -> None:
    figures.write(meter().snapshot(), tmp_path)
    path = tmp_path / figures.FILE
    gone = {**json.loads(path.read_text()), "pid": _unused_pid()}
    path.write_text(json.dumps(gone))
    assert figures.read(tmp_path) is None


def _unused_pid() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_figures_that_nobody_writes_any_more_are_not_believed(tmp_path: Path) -> None:
    """After a crash another process may have the number by now: in a container it is nearly always the same."""
    figures.write(meter().snapshot(), tmp_path)
    path = tmp_path / figures.FILE
    old = {**json.loads(path.read_text()), "time": "2026-01-01T00:00:00+00:00"}
    path.write_text(json.dumps(old))
    assert figures.read(tmp_path) is None


def test_trouble_that_is_no_workers_makes_the_pipeline_unhealthy(tmp_path: Path) -> None:
    counting = meter()
    counting.trouble = "housekeeping of the bus: no space left on device"
    figures.write(counting.snapshot(), tmp_path)
    shown = figures.read(tmp_path)
    assert shown is not None
    assert (shown.healthy, shown.trouble) == (False, counting.trouble)


def test_rows_that_move_leave_what_is_wrong_with_a_stream_as_it_is() -> None:
    counting = meter()
    counting.enter("copy", "running", "stream a.b: it cannot be delivered")
    since = counting.snapshot().workers["copy"].since
    counting.count("copy", 1, error="stream a.b: it cannot be delivered")
    worker = counting.snapshot().workers["copy"]
    assert (worker.error, worker.since) == ("stream a.b: it cannot be delivered", since)


def test_a_clock_that_is_put_back_makes_no_rate_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = meter()
    moments = iter(range(100, 0, -1))
    start = datetime.datetime.now(datetime.UTC)
    monkeypatch.setattr("headwater.figures.utc_now", lambda: start + datetime.timedelta(hours=next(moments)))
    counting.snapshot()
    counting.count("copy", 10)
    assert counting.snapshot().workers["copy"].rows_per_second > 0
