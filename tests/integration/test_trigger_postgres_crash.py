"""kill -9 at random failpoints and random times while the application writes: loss and duplicates together (F6)."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import os
import random
import signal
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from headwater import config, faults
from headwater.assembly import Assembly
from headwater.drivers.postgres import connect, execute
from headwater.errors import HeadwaterError
from headwater.model import Op
from headwater.runtime import start

KILLS = 20
CONTEXT = multiprocessing.get_context("forkserver")
CONFIG = """
headwater: 1
name: crash
bus: embedded:data
sources: {{app: "{url}"}}
streams:
  shop.item: {{source: app, table: public.item, pattern: trigger}}
"""
CONTRACT = """
stream: shop.item
version: 1
owner: shop
key: [id]
fields:
  id: {type: int32}
  v: {type: string, optional: true}
"""


def run(directory: Path, failpoints: str, seed: int, running: multiprocessing.synchronize.Event | None) -> None:
    """A pipeline in a process of its own. With `running` it goes on until it dies."""
    faults.set_failpoints(failpoints, seed)
    with Assembly(config.load(directory / "headwater.yaml"), append=True) as assembly:
        supervisor = start(assembly)
        if running is not None:
            running.set()
        os._exit(supervisor.run(follow=running is not None))


def write(url: str, seed: int, stop: threading.Event) -> None:
    """Transactions of several statements, some rolled back, some prepared, on two sessions side by side."""
    dice = random.Random(seed)
    with closing(connect(url, application="a")) as one, closing(connect(url, application="b")) as two:
        for session in (one, two):
            execute(session, "SET lock_timeout = '20ms'")
        while not stop.is_set():
            statement(dice.choice((one, two)), dice)
            stop.wait(dice.random() * 0.004)
        for session in (one, two):
            execute(session, "ROLLBACK")


def statement(session: Any, dice: random.Random) -> None:
    key, value = dice.randrange(40), dice.randrange(10**6)
    sql = dice.choice(
        (
            "BEGIN", "COMMIT", "COMMIT", "ROLLBACK", "SAVEPOINT s", "ROLLBACK TO s",
            f"INSERT INTO item VALUES ({key}, '{value}') ON CONFLICT (id) DO UPDATE SET v = excluded.v",
            f"INSERT INTO item SELECT g, '{value}' FROM generate_series({key}, {key + 5}) g ON CONFLICT DO NOTHING",
            f"UPDATE item SET v = '{value}' WHERE id >= {key}",
            f"UPDATE item SET id = {dice.randrange(40)} WHERE id = {key}",
            f"DELETE FROM item WHERE id BETWEEN {key} AND {key + 3}",
        )
    )  # fmt: skip
    with suppress(HeadwaterError):  # a key that is there, a lock, no transaction: the application goes on
        execute(session, sql)


def one_life(directory: Path, dice: random.Random) -> None:
    running = CONTEXT.Event()
    failpoints = f"*=kill:{dice.choice((0.0005, 0.002, 0.01))}"
    process = CONTEXT.Process(target=run, args=(directory, failpoints, dice.randrange(10**9), running), daemon=True)
    process.start()
    while process.is_alive() and not running.wait(0.05):
        pass
    process.join(0.2 + dice.random() * 0.8)
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL, f"it ended by itself with {process.exitcode}"


def events_of(directory: Path) -> list[tuple[str, tuple[int, ...], int, str | None]]:
    with Assembly(config.load(directory / "headwater.yaml")) as assembly:
        return [
            (Op(row["_op"]).letter, (row["_epoch"], row["_commit"], row["_index"]), row["id"], row["v"])
            for events in assembly.bus.read("shop.item", after=None, follow=False)
            for row in events.data.to_pylist()
        ]


@pytest.mark.crash
@pytest.mark.needs("postgres")
@pytest.mark.parametrize("seed", range(1))
def test_f06_after_every_kill_nothing_is_lost_or_doubled(database: str, tmp_path: Path, seed: int) -> None:
    with closing(connect(database, application="a")) as session:
        execute(session, "CREATE TABLE item (id int PRIMARY KEY, v text)")
        execute(session, "INSERT INTO item SELECT g, 'first' FROM generate_series(0, 30) g")
    (tmp_path / "headwater.yaml").write_text(CONFIG.format(url=database))
    (tmp_path / "contracts").mkdir()
    (tmp_path / "contracts" / "shop.item.yaml").write_text(CONTRACT)
    stop, dice = threading.Event(), random.Random(seed)
    writer = threading.Thread(target=write, args=(database, seed, stop))
    writer.start()
    try:
        for _ in range(KILLS):
            one_life(tmp_path, dice)
    finally:
        stop.set()
        writer.join(30)
    process = CONTEXT.Process(target=run, args=(tmp_path, "", 0, None))
    process.start()
    process.join(120)
    assert process.exitcode == 0

    with closing(connect(database, application="a")) as session:
        expected = dict(execute(session, "SELECT id, v FROM item"))
    events = events_of(tmp_path)
    orders = [order for _, order, _, _ in events]
    assert len(set(orders)) == len(orders), "no event twice"
    assert orders == sorted(orders), "each behind the one before"
    rows: dict[int, str | None] = {}
    seen: set[int] = set()
    for letter, order, key, value in events:
        assert (key in rows) == (letter in "ud") or key not in seen, f"{letter} of {key} at {order}"
        seen.add(key)  # its first event may be anything: the table was changed while it was loaded
        rows.pop(key, None)
        if letter != "d":
            rows[key] = value
    assert rows == expected
    assert len(events) > 300
