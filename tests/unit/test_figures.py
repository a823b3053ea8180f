import json
import os
from pathlib import Path

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
