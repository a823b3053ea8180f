"""A learning platform's SQLite database, made from a seed: the same seed makes the same rows.

It holds what real ones hold: secrets beside data, money, times, NULLs, JSON, BLOBs, names in every script, a column
called `end`, and foreign keys that cascade.
"""

from __future__ import annotations

import datetime
import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

SCHEMA = """
CREATE TABLE auth_user (
    id INTEGER PRIMARY KEY,
    username TEXT NOT NULL UNIQUE,
    email TEXT NOT NULL,
    password TEXT NOT NULL,
    full_name TEXT,
    country TEXT,
    date_joined TIMESTAMP NOT NULL,
    last_login TIMESTAMP,
    is_active BOOLEAN NOT NULL DEFAULT 1,
    preferences JSON,
    avatar BLOB
);
CREATE TABLE course_overview (
    id TEXT NOT NULL PRIMARY KEY,
    display_name TEXT NOT NULL,
    org TEXT NOT NULL,
    language TEXT NOT NULL,
    start TIMESTAMP NOT NULL,
    "end" TIMESTAMP,
    list_price DECIMAL(10, 2) NOT NULL,
    capacity INTEGER,
    outline JSON NOT NULL,
    modified TIMESTAMP NOT NULL
);
CREATE INDEX course_overview_modified ON course_overview (modified, id);
CREATE TABLE student_courseenrollment (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id INTEGER NOT NULL REFERENCES auth_user (id) ON UPDATE CASCADE ON DELETE CASCADE,
    course_id TEXT NOT NULL REFERENCES course_overview (id) ON UPDATE CASCADE ON DELETE CASCADE,
    mode TEXT NOT NULL,
    is_active BOOLEAN NOT NULL DEFAULT 1,
    price DECIMAL(10, 2),
    voucher TEXT,
    created TIMESTAMP NOT NULL,
    UNIQUE (user_id, course_id)
);
CREATE INDEX student_courseenrollment_course ON student_courseenrollment (course_id);
"""

FIRST = (
    "Aiko",
    "Amélie",
    "Björn",
    "Chidi",
    "Dvora",
    "Fatima",
    "Guðrún",
    "Ioannis",
    "José",
    "Lwazi",
    "Mei",
    "Nguyễn",
    "Olena",
    "Raj",
    "Siân",
    "Zoë",
    "小明",
    "Тарас",
    "محمد",
)
LAST = (
    "Abe",
    "Brontë",
    "Çelik",
    "Dąbrowski",
    "Eze",
    "Fernández",
    "Grün",
    "Haddad",
    "Ivanova",
    "김",
    "López",
    "Müller",
    "Ní",
    "Okafor",
    "Peña",
    "Řezníček",
    "王",
    "Yılmaz",
)
COUNTRIES = ("BR", "DE", "EG", "IN", "JP", "KE", "MX", "UA", "US", None)
ORGS = ("Delta", "MarieCurieX", "Nairobi", "UniÉ", "東京X")
SUBJECTS = ("Algebra", "Biología", "Chemie", "数据库", "Ethics", "Físika", "Γεωμετρία", "History of Tea ☕")
LANGUAGES = ("en", "es", "de", "zh", "el", "sw")
MODES = ("audit", "verified", "honor", "beta")
START = datetime.datetime(2024, 1, 1)


@dataclass(frozen=True, slots=True)
class Size:
    learners: int = 20_000
    course_runs: int = 200
    enrollments_each: int = 15
    """Enrolments of one learner, each in another course run."""

    @property
    def enrollments(self) -> int:
        return self.learners * self.enrollments_each


def make(path: Path, size: Size, seed: int) -> None:
    """Create the database at `path`, which must not exist."""
    dice = random.Random(seed)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(SCHEMA)
        with database:
            _insert(database, "auth_user", 11, (learner(dice, number) for number in range(1, size.learners + 1)))
            runs = [course_run(dice, number) for number in range(size.course_runs)]
            _insert(database, "course_overview", 10, iter(runs))
            _insert(database, "student_courseenrollment", 8, _enrollments(dice, size, [str(run[0]) for run in runs]))


def _insert(database: sqlite3.Connection, table: str, columns: int, rows: Iterator[tuple[object, ...]]) -> None:
    marks = ", ".join("?" * columns)
    database.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)


def learner(dice: random.Random, number: int) -> tuple[object, ...]:
    """One row of `auth_user`."""
    name = f"{dice.choice(FIRST)} {dice.choice(LAST)}"
    seen = moment(dice) if dice.random() < 0.8 else None
    preferences = {"theme": dice.choice(("dark", "light")), "e-mails": dice.random() < 0.5, "goal": dice.randrange(9)}
    return (
        number,
        f"learner{number}",
        f"learner{number}@example.org",
        f"pbkdf2_sha256$600000${dice.getrandbits(96):024x}",
        name if dice.random() < 0.95 else None,
        dice.choice(COUNTRIES),
        moment(dice),
        seen,
        dice.random() < 0.97,
        json.dumps(preferences, ensure_ascii=False) if dice.random() < 0.9 else None,
        dice.randbytes(dice.randrange(8, 64)) if dice.random() < 0.3 else None,
    )


def course_run(dice: random.Random, number: int) -> tuple[object, ...]:
    """One row of `course_overview`."""
    org, subject = dice.choice(ORGS), dice.choice(SUBJECTS)
    weeks = [{"week": week, "topic": f"{subject} {week}"} for week in range(1, dice.randrange(3, 9))]
    return (
        f"course-v1:{org}+S{number:03}+2026",
        f"{subject}, part {number % 4 + 1}",
        org,
        dice.choice(LANGUAGES),
        moment(dice),
        moment(dice) if dice.random() < 0.7 else None,
        round(dice.randrange(0, 40_000) / 100, 2),
        dice.choice((None, 30, 500, 10_000)),
        json.dumps(weeks, ensure_ascii=False),
        moment(dice),
    )


def enrollment(dice: random.Random, learner_id: int, run: str) -> tuple[object, ...]:
    """One row of `student_courseenrollment`, without its id."""
    mode = dice.choices(MODES, (60, 25, 14, 1))[0]
    price = round(dice.randrange(0, 30_000) / 100, 2) if mode == "verified" else None
    voucher = f"SPRING-{dice.randrange(100)}" if mode == "verified" and dice.random() < 0.2 else None
    return (learner_id, run, mode, dice.random() < 0.9, price, voucher, moment(dice))


def moment(dice: random.Random) -> str:
    """A time as Django writes it into SQLite: UTC, to the microsecond."""
    time = START + datetime.timedelta(microseconds=dice.randrange(2 * 365 * 86_400 * 10**6))
    return time.isoformat(" ", "microseconds")


def _enrollments(dice: random.Random, size: Size, runs: list[str]) -> Iterator[tuple[object, ...]]:
    number = 0
    for learner_id in range(1, size.learners + 1):
        for run in dice.sample(runs, size.enrollments_each):
            number += 1
            yield (number, *enrollment(dice, learner_id, run))
