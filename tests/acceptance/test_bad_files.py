"""What happens to files behind Headwater's back: damage, deletion, copies put in their place, locks, full disks.

As in test_bad_input.py: an error that names the file and a way out, and afterwards every sink equals its source.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headwater.cli.app import app
from tests.acceptance.project import Project, program, until

TWO = "INSERT INTO item VALUES (1, 'one', 10, 1), (2, 'two', 20, 2);"
MANY = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
    " INSERT INTO item (name, size) SELECT hex(randomblob(200)), i FROM n;"
)


def command(project: Project, *arguments: str) -> str:
    """A command that goes well."""
    project.save()
    ended = CliRunner().invoke(app, [*arguments, "--config", str(project.directory / "headwater.yaml")])
    assert ended.exit_code == 0, (ended.output, ended.exception)
    return ended.output


def is_well(project: Project, script: str = "") -> None:
    project.run(script)
    assert project.rows() == project.source()
    project.require_equal()


# the bus


@pytest.fixture
def kept(project: Project) -> Project:
    """A project that has run, and a backup of its bus."""
    project.run(TWO)
    command(project, "backup", str(project.directory / "kept"))
    return project


def bus_file(project: Project) -> Path:
    return project.directory / "data" / "bus.db"


def cut_short(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2 + 100)


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def header_flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[20] ^= 0x08
    file.write_bytes(data)


def records_flipped(file: Path) -> None:
    """Within a stored record batch, where only the checksum can tell."""
    with closing(sqlite3.connect(file)) as bus, bus:
        ((number, data),) = bus.execute("SELECT segment, data FROM records LIMIT 1").fetchall()
        flipped = bytearray(data)
        flipped[len(flipped) // 2] ^= 0x10
        bus.execute("UPDATE records SET data = ? WHERE segment = ?", (bytes(flipped), number))


def newer(file: Path) -> None:
    with closing(sqlite3.connect(file)) as bus:
        bus.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (cut_short, "bus.db"),
        (emptied, "bus.db"),
        (header_flipped, "bus.db"),
        (records_flipped, "stream `shop.item`, offsets .*: the checksum does not match"),
        (newer, "bus.db.* format 99"),
    ],
)
def test_a_damaged_bus_is_named_and_restored(kept: Project, damage: Callable[[Path], None], found: str) -> None:
    damage(bus_file(kept))
    (kept.directory / "warehouse.duckdb").unlink()
    said = " ".join(kept.tried())
    assert re.search(found, said)
    assert ("pip install -U headwater" if damage is newer else "headwater restore") in said
    shutil.rmtree(kept.directory / "data")
    command(kept, "restore", str(kept.directory / "kept"))
    is_well(kept, "DELETE FROM item WHERE id = 1; INSERT INTO item VALUES (3, 'three', 30, 3);")


def test_f83_a_bus_that_was_deleted_is_a_new_incarnation(project: Project) -> None:
    """The sink does not take its old cursor for a place in the new stream: it says so, and is rebuilt by decree."""
    project.run(TWO)
    project.run("DELETE FROM item WHERE id = 1;")
    shutil.rmtree(project.directory / "data")
    project.sql("INSERT INTO item VALUES (3, 'three', 30, 3);")
    (text,) = project.try_run().values()
    assert "shop.item" in text
    assert "incarnation" in text
    assert "headwater sink rebuild" in text
    assert project.rows() == {(2, "two", 20)}, "nothing was skipped or repeated silently"
    command(project, "sink", "rebuild", "warehouse", "--yes")
    is_well(project)


def test_f83_an_older_copy_of_the_bus_in_its_place(project: Project) -> None:
    """Both sides are ahead of it: the sink's cursor, and the changes that the source was told to forget.

    It is said before anything is appended, for then other events would stand where the sink has been.
    """
    project.run(TWO)
    shutil.copytree(project.directory / "data", project.directory / "copy")
    project.run("UPDATE item SET size = 11 WHERE id = 1; DELETE FROM item WHERE id = 2;")
    project.run("INSERT INTO item VALUES (3, 'three', 30, 3);")
    shutil.rmtree(project.directory / "data")
    (project.directory / "copy").rename(project.directory / "data")
    project.sql("UPDATE item SET size = 99 WHERE id = 1;")
    for _ in range(2):
        (text,) = project.tried()
        assert "stream `shop.item`: sink warehouse stands at offset 5, and the stream ends at 2" in text
        assert "headwater sink rebuild warehouse" in text
    command(project, "sink", "rebuild", "warehouse", "--yes")
    is_well(project, "UPDATE item SET size = 12 WHERE id = 1;")


# targets


SINKS = {
    "warehouse": {"url": "duckdb:warehouse.duckdb"},
    "copy": {"url": "sqlite:copy.db"},
    "lake": {"url": "parquet:lake"},
    "told": {"url": "duckdb:told.duckdb", "mode": "history"},
}
PATHS = {"warehouse": "warehouse.duckdb", "copy": "copy.db", "lake": "lake", "told": "told.duckdb"}


@pytest.fixture(params=SINKS)
def target(project: Project, request: pytest.FixtureRequest) -> Path:
    """The file or folder of the project's only sink."""
    project.config["sinks"] = {request.param: dict(SINKS[request.param])}
    return project.directory / PATHS[request.param]


def removed(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_f83_a_target_that_was_deleted_is_filled_from_the_beginning(project: Project, target: Path) -> None:
    project.run(TWO)
    project.run("DELETE FROM item WHERE id = 1;")
    removed(target)
    project.run("INSERT INTO item VALUES (3, 'three', 30, 3);")
    project.require_equal()


def test_f83_an_older_copy_of_a_target_in_its_place_goes_on_from_there(project: Project, target: Path) -> None:
    project.run(TWO)
    copy = target.with_name("older")
    shutil.copytree(target, copy) if target.is_dir() else shutil.copy(target, copy)
    project.run("DELETE FROM item WHERE id = 1; UPDATE item SET size = 21 WHERE id = 2;")
    removed(target)
    copy.rename(target)
    project.run("INSERT INTO item VALUES (3, 'three', 30, 3);")
    project.require_equal()


def test_f83_a_target_deleted_while_it_is_written(project: Project, target: Path) -> None:
    """Whether it notices at once or at its next start: in the end all is there."""
    project.sql(TWO)
    (sink,) = project.config["sinks"]
    project.config["sinks"][sink]["batch"] = {"age": "20ms"}
    with project.running() as supervisor:
        until(lambda: supervisor.figures().workers[sink].rows == 2)
        removed(target)
        project.sql("INSERT INTO item VALUES (3, 'three', 30, 3);")
        until(lambda: project.head() == 3)
    project.run("DELETE FROM item WHERE id = 1;")
    project.require_equal()


def test_f83_the_database_deleted_and_made_again(project: Project) -> None:
    """Other rows under the same name: they take the place of the old, and the epoch says that it is another history."""
    project.run(TWO)
    for path in project.directory.glob("shop.db*"):
        path.unlink()
    project.__post_init__()
    project.sql("INSERT INTO item VALUES (2, 'zwei', 22, 1), (9, 'neun', 9, 2);")
    errors = project.try_run()
    for text in errors.values():
        assert "hint:" in text
    is_well(project, "UPDATE item SET size = 10 WHERE id = 9;")
    assert max(project.epochs()) > 1


# locks of other programs

DUCK = """
import duckdb, sys
database = duckdb.connect(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""
LITE = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN EXCLUSIVE")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def targets(project: Project) -> Project:
    project.config["sinks"] = {name: dict(sink) for name, sink in SINKS.items()}
    return project


@pytest.mark.parametrize(("sink", "holding"), [("warehouse", DUCK), ("copy", LITE)])
def test_f56_a_target_that_another_program_holds(targets: Project, sink: str, holding: str) -> None:
    """That sink waits and says so, the others go on; let go, it catches up by itself."""
    targets.run(TWO)
    with program(holding, targets.directory / PATHS[sink]) as holder, targets.running() as supervisor:
        targets.sql("INSERT INTO item VALUES (3, 'three', 30, 3); DELETE FROM item WHERE id = 1;")
        others = set(PATHS) - {sink}
        until(lambda: all(supervisor.figures().workers[name].rows == 2 for name in others))
        until(lambda: supervisor.figures().workers[sink].state == "waiting")
        worker = supervisor.figures().workers[sink]
        assert str(targets.directory / PATHS[sink]) in worker.error
        assert "another program" in worker.error
        assert worker.since is not None
        assert [name for name in others if supervisor.figures().workers[name].error] == []
        assert holder.stdin is not None
        holder.stdin.close()
        until(lambda: supervisor.figures().workers[sink].rows == 2)
        assert supervisor.figures().workers[sink].error == ""
    is_well(targets)


# full disks


Disks = Callable[[str], Path]


@pytest.fixture
def small_disk(project: Project) -> Iterator[Disks]:
    """Makes file systems of 24 megabytes, of which 22 can be freed."""
    made: list[Path] = []

    def make(name: str) -> Path:
        point = project.directory / name
        point.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(point)], check=True)
        made.append(point)
        (point / "ballast").write_bytes(b"x" * (22 * 2**20))
        return point

    yield make
    for point in made:
        subprocess.run(["umount", str(point)], check=True)


FILL = MANY.format(count=12_000) + "UPDATE item SET size = -size WHERE id % 3 = 0; DELETE FROM item WHERE id = 5;"


def says_full(text: str, path: Path) -> bool:
    return str(path) in text and "hint:" in text and ("disk is full" in text or "No space left" in text)


@pytest.mark.needs("root")
def test_a_full_disk_beneath_the_bus(project: Project, small_disk: Disks) -> None:
    """In the middle of an append: nothing of it is kept, the source forgets nothing, and it goes on by itself."""
    disk = small_disk("small")
    project.config["bus"] = "embedded:small/data"
    project.run(TWO)
    with project.running() as supervisor:
        project.sql(FILL)
        until(lambda: supervisor.figures().workers["shop/trigger"].state == "waiting")
        worker = supervisor.figures().workers["shop/trigger"]
        assert says_full(worker.error, disk / "data"), worker.error
        (disk / "ballast").unlink()
        until(lambda: supervisor.figures().workers["warehouse"].rows == 12_000 + 4_001)
    is_well(project, "UPDATE item SET size = 0 WHERE id = 7;")


@pytest.mark.needs("root")
def test_a_full_disk_beneath_the_bus_of_a_run_that_ends(project: Project, small_disk: Disks) -> None:
    disk = small_disk("small")
    project.config["bus"] = "embedded:small/data"
    project.run(TWO)
    project.sql(FILL)
    errors = project.try_run()
    assert says_full(errors["shop/trigger"], disk / "data"), errors
    (disk / "ballast").unlink()
    is_well(project, "UPDATE item SET size = 0 WHERE id = 7;")


@pytest.mark.needs("root")
def test_f56_a_full_disk_beneath_targets(project: Project, small_disk: Disks) -> None:
    """Each waits and says so, the others go on."""
    kinds = ("duckdb", "sqlite", "parquet")
    disks = {f"in_{kind}": small_disk(f"disk_{kind}") for kind in kinds}
    project.config["sinks"] |= {f"in_{kind}": {"url": f"{kind}:disk_{kind}/made"} for kind in kinds}
    project.run(TWO)
    with project.running() as supervisor:
        project.sql(FILL)
        until(lambda: all(supervisor.figures().workers[sink].state == "waiting" for sink in disks))
        until(lambda: supervisor.figures().workers["warehouse"].rows == 12_000 + 4_001)
        for sink, disk in disks.items():
            error = supervisor.figures().workers[sink].error
            assert says_full(error, disk / "made"), error
        for disk in disks.values():
            (disk / "ballast").unlink()
        until(lambda: all(supervisor.figures().workers[sink].rows == 12_000 + 4_001 for sink in disks))
    is_well(project, "UPDATE item SET size = 0 WHERE id = 7;")
