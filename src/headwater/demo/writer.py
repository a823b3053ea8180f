"""The application: a process of its own that writes as applications do, knowing nothing of Headwater.

`python -m headwater.demo.writer lms.db --seconds 10 --seed 7` prints, at the end, how many of each act it committed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing

from headwater.demo.database import course_run, enrollment, learner

COMMITS_PER_SECOND = 150


class Application:
    """What people do on the platform; each act is one transaction."""

    def __init__(self, database: sqlite3.Connection, seed: int) -> None:
        self.database = database
        self.dice = random.Random(seed)
        self.learners = self._number("SELECT max(id) FROM auth_user")
        self.enrollments = self._number("SELECT max(id) FROM student_courseenrollment")
        self.runs = self._number("SELECT count(*) FROM course_overview")
        self.done: Counter[str] = Counter()

    def act(self, number: int) -> None:
        """The `number`th act. Rare ones come at fixed places, so that each run has them all."""
        name, act = self._rare(number) or self.dice.choices(self._common(), (30, 30, 12, 8, 8, 6, 4, 2))[0]
        with self.database:
            self.database.execute("BEGIN IMMEDIATE")
            act()
        self.done[name] += 1

    def _common(self) -> list[tuple[str, Callable[[], None]]]:
        return [
            ("enrolled", self.enrol),
            ("upgraded", self.upgrade),
            ("left", self.leave),
            ("changed mode to or from beta", self.beta),
            ("edited a profile", self.edit_profile),
            ("changed an enrolment's id", self.renumber_enrollment),
            ("signed up", self.sign_up),
            ("replaced with INSERT OR REPLACE", self.replace),
        ]

    def _rare(self, number: int) -> tuple[str, Callable[[], None]] | None:
        rare: dict[int, tuple[str, Callable[[], None]]] = {
            11: ("edited a course run", self.edit_run),
            23: ("opened a course run", self.open_run),
            31: ("deactivated or reactivated a learner", self.deactivate),
            37: ("deleted a learner", self.delete_learner),
            41: ("changed a learner's id", self.renumber_learner),
        }
        if number % 500 == 450:
            return "deleted a course run", self.delete_run
        if number % 500 == 250:
            return "changed a course run's key", self.rename_run
        return rare.get(number % 50)

    def enrol(self) -> None:
        for _ in range(self.dice.randrange(1, 9)):
            row = enrollment(self.dice, self._learner(), self._run())
            self.database.execute(
                "INSERT OR IGNORE INTO student_courseenrollment"
                " (user_id, course_id, mode, is_active, price, voucher, created) VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )

    def upgrade(self) -> None:
        for _ in range(self.dice.randrange(1, 5)):
            self.database.execute(
                "UPDATE student_courseenrollment SET mode = 'verified', price = ?, voucher = NULL WHERE id = ?",
                (round(self.dice.randrange(100, 30_000) / 100, 2), self._enrollment()),
            )

    def leave(self) -> None:
        self.database.execute("DELETE FROM student_courseenrollment WHERE id = ?", (self._enrollment(),))

    def beta(self) -> None:
        self.database.execute(
            "UPDATE student_courseenrollment SET mode = iif(mode = 'beta', 'audit', 'beta') WHERE id BETWEEN ? AND ?",
            (first := self._enrollment(), first + 3),
        )

    def edit_profile(self) -> None:
        fresh = learner(self.dice, 0)
        self.database.execute(
            "UPDATE auth_user SET full_name = ?, preferences = ?, avatar = ?, last_login = ? WHERE id = ?",
            (fresh[4], fresh[9], fresh[10], fresh[7], self._learner()),
        )

    def sign_up(self) -> None:
        self.learners += 1
        marks = ", ".join("?" * 11)
        self.database.execute(f"INSERT INTO auth_user VALUES ({marks})", learner(self.dice, self.learners))

    def replace(self) -> None:
        """A row with a new id takes the place of the one with the same learner and course run."""
        self.database.execute(
            "INSERT OR REPLACE INTO student_courseenrollment (user_id, course_id, mode, is_active, created)"
            " SELECT user_id, course_id, 'honor', 1, created FROM student_courseenrollment WHERE id = ?",
            (self._enrollment(),),
        )

    def renumber_enrollment(self) -> None:
        self.database.execute(
            "UPDATE student_courseenrollment SET id = (SELECT max(id) + 1 FROM student_courseenrollment) WHERE id = ?",
            (self._enrollment(),),
        )

    def renumber_learner(self) -> None:
        """The new id cascades into the learner's enrolments."""
        self.learners += 1
        self.database.execute("UPDATE auth_user SET id = ? WHERE id = ?", (self.learners, self._learner()))

    def deactivate(self) -> None:
        self.database.execute("UPDATE auth_user SET is_active = 1 - is_active WHERE id = ?", (self._learner(),))

    def delete_learner(self) -> None:
        """The enrolments go with the learner."""
        self.database.execute("DELETE FROM auth_user WHERE id = ?", (self._learner(),))

    def edit_run(self) -> None:
        self.database.execute(
            "UPDATE course_overview SET list_price = ?, capacity = NULL, modified = ? WHERE id = ?",
            (round(self.dice.randrange(40_000) / 100, 2), _now(), self._run()),
        )

    def open_run(self) -> None:
        self.runs += 1
        row = (*course_run(self.dice, self.runs)[:-1], _now())
        self.database.execute("INSERT INTO course_overview VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def rename_run(self) -> None:
        self.database.execute(
            "UPDATE course_overview SET id = id || '-moved', modified = ? WHERE id = ?", (_now(), self._run())
        )

    def delete_run(self) -> None:
        self.database.execute("DELETE FROM course_overview WHERE id = ?", (self._run(),))

    def _learner(self) -> int:
        return self._number(
            "SELECT id FROM auth_user WHERE id >= ? LIMIT 1", self.dice.randint(1, self.learners - 1_000)
        )

    def _enrollment(self) -> int:
        return self.dice.randint(1, self.enrollments)

    def _run(self) -> str:
        place = self.dice.randrange(100)
        return str(self.database.execute("SELECT id FROM course_overview LIMIT 1 OFFSET ?", (place,)).fetchone()[0])

    def _number(self, sql: str, *parameters: int) -> int:
        return int(self.database.execute(sql, parameters).fetchone()[0])


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    with closing(sqlite3.connect(options.database, timeout=30, isolation_level=None)) as database:
        database.execute("PRAGMA foreign_keys = ON")
        application = Application(database, options.seed)
        begin = time.monotonic()
        for number in range(int(options.seconds * COMMITS_PER_SECOND)):
            application.act(number)
            time.sleep(max(0.0, begin + number / COMMITS_PER_SECOND - time.monotonic()))
    sys.stdout.write(json.dumps(dict(application.done)))


if __name__ == "__main__":
    main()
