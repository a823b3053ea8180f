"""`headwater init`: what it writes, what it withholds, and that what it wrote can be used."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater import config as configuration
from headwater import plugins
from headwater.check import check, look
from headwater.config import SourceConfig, StreamConfig
from headwater.contracts.naming import snake
from headwater.contracts.store import ContractStore
from headwater.dialects import Column, ForeignKey, Table
from headwater.doctor.choice import Obstacles, choose, cursor_of
from headwater.drivers.sqlite import quoted
from headwater.errors import ConfigError
from headwater.model import TIMESTAMP, TableId
from headwater.protocols import Guarantee
from headwater.scaffold import scaffold
from headwater.scaffold.privacy import looks
from headwater.scaffold.words import key_field, name_tables, reference_field, singular

ARROW = {"int64": pa.int64(), "string": pa.string(), "timestamp": TIMESTAMP, "decimal(10,2)": pa.decimal128(10, 2)}


def column(name: str, kind: str = "string", *, nullable: bool = False) -> Column:
    return Column(name, kind, ARROW.get(kind, pa.string()), kind, nullable)


def table(name: str, *columns: Column, key: tuple[str, ...] = ("id",), **more: object) -> Table:
    return Table(TableId("", name), columns, key, **more)  # type: ignore[arg-type]


def foreign(name: str, target: str) -> ForeignKey:
    return ForeignKey((name,), TableId("", target), ("id",))


USERS = table(
    "auth_user",
    column("id", "int64"),
    column("username"),
    column("email"),
    column("password"),
    column("is_active", "int64"),
    column("date_joined", "timestamp"),
    column("last_login", "timestamp", nullable=True),
)
COURSES = table(
    "course_overview",
    column("id"),
    column("display_name", nullable=True),
    column("price", "decimal(10,2)", nullable=True),
    column("updated_at", "timestamp"),
    indexes=(("updated_at",),),
)
ENROLLMENTS = table(
    "student_courseenrollment",
    column("id", "int64"),
    column("user_id", "int64"),
    column("course_id"),
    column("invited_by_id", "int64", nullable=True),
    column("mode"),
    column("before", nullable=True),
    foreign_keys=(
        foreign("user_id", "auth_user"),
        foreign("course_id", "course_overview"),
        foreign("invited_by_id", "auth_user"),
    ),
)
SESSIONS = table("django_session", column("session_key"), column("data"), key=("session_key",))
LOG = table("access_log", column("line"), key=())


class FakeDialect:
    def __init__(self, tables: list[Table]) -> None:
        self.known = {t.id: t for t in tables}
        self.closed = False

    def tables(self) -> list[TableId]:
        return list(self.known)

    def table(self, table: TableId) -> Table:
        return self.known[table]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file `lms.db`, described by a fake dialect."""
    path = tmp_path / "lms.db"
    path.touch()
    dialect = FakeDialect([USERS, COURSES, ENROLLMENTS, SESSIONS, LOG])

    def open_dialect(*, config: SourceConfig, directory: str) -> FakeDialect:
        assert config.scheme == "sqlite"
        assert directory == str(Path.cwd())
        return dialect

    def guarantee(config: StreamConfig, *, keyed: bool) -> Guarantee:
        if config.pattern == "trigger":
            return Guarantee("exactly_once", "every", "seen")
        return Guarantee("at_least_once", "latest", "unseen", ("It cannot see deletes.",))

    monkeypatch.setattr(plugins, "dialect_factory", lambda scheme: open_dialect)
    monkeypatch.setattr(plugins, "source_guarantee", lambda scheme, pattern: guarantee)
    monkeypatch.chdir(tmp_path)
    yield path
    assert dialect.closed


def test_writes_a_project_that_loads_and_checks_without_errors(database: Path) -> None:
    written = scaffold("sqlite:///lms.db")
    names = [path.relative_to(database.parent).as_posix() for path in written]
    assert names == [
        "headwater.yaml",
        "vocabulary.yaml",
        "contracts/auth.user.yaml",
        "contracts/lms.course_overview.yaml",
        "contracts/student.course_enrollment.yaml",
    ]
    config = configuration.load(database.parent / "headwater.yaml")
    assert config.name == "lms"
    assert {name: stream.table for name, stream in config.streams.items()} == {
        "auth.user": "auth_user",
        "lms.course_overview": "course_overview",
        "student.course_enrollment": "student_courseenrollment",
    }
    assert {stream.pattern for stream in config.streams.values()} == {"trigger"}
    assert config.sources["lms"].url.get_secret_value() == "sqlite:///lms.db"
    assert config.sinks["warehouse"].scheme == "duckdb"
    problems = check(config, ContractStore(config.contracts_directory))
    assert [str(problem) for problem in problems if problem.severity == "error"] == []
    assert {problem.rule for problem in problems} >= {"MIRRORS_TABLE", "NOT_ACCEPTED"}


def test_names_come_from_entities_and_references_have_roles(database: Path) -> None:
    scaffold("sqlite:///lms.db")
    store = ContractStore(database.parent / "contracts")
    enrollment = store.working("student.course_enrollment")
    assert enrollment.key == ("course_enrollment_id",)
    assert {name: (spec.type, spec.optional, spec.ref) for name, spec in enrollment.fields.items()} == {
        "course_enrollment_id": ("int64", False, None),
        "user_id": ("int64", False, "user"),
        "course_overview_id": ("string", False, "course_overview"),
        "invited_by_user_id": ("int64", True, "user"),
        "mode": ("string", False, None),
        "before_value": ("string", True, None),
    }
    config = configuration.load(database.parent / "headwater.yaml")
    assert config.streams["student.course_enrollment"].fields == {
        "course_enrollment_id": "id",
        "course_overview_id": "course_id",
        "invited_by_user_id": "invited_by_id",
        "before_value": "before",
    }
    vocabulary = yaml.safe_load((database.parent / "vocabulary.yaml").read_text())
    assert vocabulary["entities"]["user"] == {"key": {"user_id": "int64"}, "owner": "auth", "stream": "auth.user"}


def test_secrets_and_personal_columns_are_withheld_with_the_line_that_adds_them(database: Path) -> None:
    scaffold("sqlite:///lms.db")
    path = database.parent / "contracts" / "auth.user.yaml"
    contract = ContractStore(path.parent).working("auth.user")
    assert list(contract.fields) == ["user_id", "is_active", "date_joined"]
    assert "password" not in path.read_text()
    text = (database.parent / "headwater.yaml").read_text()
    assert "    #   password: {type: string, pii: sensitive}  # looks like a secret" in text
    assert "    #   email: {type: string, pii: personal}  # looks personal" in text
    path.write_text(path.read_text() + "  email: {type: string, pii: personal}  # looks personal")
    assert ContractStore(path.parent).working("auth.user").fields["email"].pii == "personal"


def test_promises_are_what_the_pattern_gives(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    scaffold("sqlite:///lms.db")
    config = configuration.load(database.parent / "headwater.yaml")
    course = config.streams["lms.course_overview"]
    assert (course.pattern, course.cursor, course.every) == ("query", "updated_at", 30.0)
    user = config.streams["auth.user"]
    assert (user.pattern, user.cursor, user.every) == ("query", None, 300.0)
    contract = ContractStore(database.parent / "contracts").working("lms.course_overview")
    assert (contract.delivery, contract.changes, contract.deletes) == ("at_least_once", "latest", "unseen")
    text = (database.parent / "headwater.yaml").read_text()
    assert "# Not by triggers: the database cannot be written here. By query: `updated_at` is indexed" in text


def test_what_is_left_out_is_named_with_its_reason(database: Path) -> None:
    scaffold("sqlite:///lms.db")
    text = (database.parent / "headwater.yaml").read_text()
    assert "#   django_session: Django's sessions: they are secrets" in text
    assert "#   access_log: a table without a primary key: name the columns that identify a row" in text


REAL = """
CREATE TABLE auth_user (id integer NOT NULL PRIMARY KEY AUTOINCREMENT, password varchar(128) NOT NULL,
  is_active bool NOT NULL, username varchar(150) NOT NULL UNIQUE, date_joined datetime NOT NULL);
CREATE TABLE "Course Overview" (id varchar(255) NOT NULL PRIMARY KEY, "Display ""Name" text, price decimal(10, 2),
  meta json, image blob, "type" text, "group" integer);
CREATE TABLE membership (user_id integer NOT NULL REFERENCES auth_user (id), course_id varchar(255) NOT NULL
  REFERENCES "Course Overview", weight real, PRIMARY KEY (user_id, course_id)) WITHOUT ROWID;
CREATE TABLE profile (user_id integer NOT NULL PRIMARY KEY REFERENCES auth_user (id), level integer);
CREATE TABLE measured (at real PRIMARY KEY NOT NULL, value real);
CREATE TABLE "a.b" (id integer PRIMARY KEY);
CREATE VIEW active AS SELECT * FROM auth_user;
"""


def test_a_real_database(tmp_path: Path) -> None:
    path = tmp_path / "lms.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(REAL)
    scaffold(f"sqlite:///{path}", tmp_path / "out")
    config = configuration.load(tmp_path / "out" / "headwater.yaml")
    store = ContractStore(config.contracts_directory)
    problems = check(config, store, survey=look(config))
    assert [str(problem) for problem in problems if problem.severity == "error"] == []
    membership = store.working("lms.membership")
    assert {name: spec.ref for name, spec in membership.fields.items()} == {
        "user_id": "user",
        "course_id": None,
        "weight": None,
    }
    assert store.working("lms.profile").fields["user_id"].ref == "user"
    course = store.working("lms.course_overview")
    assert {name: spec.type for name, spec in course.fields.items()} == {
        "course_overview_id": "string",
        "display_name": "string",
        "price": "decimal(10,2)",
        "meta": "json",
        "image": "bytes",
        "type_value": "string",
        "group": "int64",
    }
    text = (tmp_path / "out" / "headwater.yaml").read_text()
    for left_out in ("active: a view", "measured: its key `at` is float64", "a.b: its name holds a dot"):
        assert left_out in text


NAMES = st.sampled_from(
    ["id", "name", "user_id", "Type", "before", "e mail", 'qu"ote', "état", "a-b", "order", "x" * 70, "no", "1st", "#"]
)
KINDS = st.sampled_from(["integer", "text", "real", "decimal(10,2)", "datetime", "blob", "json", "", "bool"])


@st.composite
def schemas(draw: st.DrawFn) -> str:
    """A few tables with odd names, keys of one or two columns, and foreign keys between them."""
    tables = draw(st.lists(NAMES, min_size=1, max_size=4, unique_by=str.lower))
    statements = []
    for table in tables:
        columns = draw(st.lists(NAMES, min_size=1, max_size=5, unique_by=str.lower))
        parts = [f"{quoted(c)} {draw(KINDS)} {draw(st.sampled_from(['', 'NOT NULL']))}" for c in columns]
        parts += [f"PRIMARY KEY ({', '.join(map(quoted, columns[: draw(st.integers(1, 2))]))})"]
        if draw(st.booleans()):
            parts += [f"FOREIGN KEY ({quoted(columns[-1])}) REFERENCES {quoted(draw(st.sampled_from(tables)))}"]
        statements.append(f"CREATE TABLE {quoted(table)} ({', '.join(parts)});")
    return "\n".join(statements)


@settings(deadline=None, max_examples=25)
@given(schemas())
def test_whatever_the_database_the_project_loads_and_checks_without_errors(schema: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "My Data 2.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(schema)
        try:
            scaffold(f"sqlite:///{path}", folder)
        except ConfigError as error:
            assert error.message.startswith("nothing to publish")  # noqa: PT017
            return
        config = configuration.load(Path(folder) / "headwater.yaml")
        problems = check(config, ContractStore(config.contracts_directory), survey=look(config))
        assert [str(problem) for problem in problems if problem.severity == "error"] == []


def test_tables_that_are_asked_for_by_name(database: Path) -> None:
    scaffold("sqlite:///lms.db", tables=["auth_user"], name="school")
    config = configuration.load(database.parent / "headwater.yaml")
    assert (config.name, list(config.streams)) == ("school", ["auth.user"])


def test_a_misspelt_table_is_named_with_the_nearest(database: Path) -> None:
    with pytest.raises(ConfigError, match="no table `auth_users`") as caught:
        scaffold("sqlite:///lms.db", tables=["auth_users"])
    assert caught.value.hint == "did you mean `auth_user`?"


def test_overwrites_nothing_and_leaves_nothing_half_done(database: Path) -> None:
    (database.parent / "vocabulary.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"vocabulary\.yaml is there already"):
        scaffold("sqlite:///lms.db")
    assert not (database.parent / "headwater.yaml").exists()
    assert (database.parent / "vocabulary.yaml").read_text() == "mine"


def test_a_relative_url_is_written_as_seen_from_the_project(database: Path) -> None:
    scaffold("sqlite:///lms.db", "project")
    config = configuration.load("project/headwater.yaml")
    assert config.sources["lms"].url.get_secret_value() == f"sqlite:///{database.resolve()}"


def test_a_file_that_is_no_url(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`lms\.db` is no URL of a database") as caught:
        scaffold("lms.db", tmp_path)
    assert caught.value.hint == "for a SQLite file, write sqlite:///lms.db"


def test_a_name_that_cannot_be_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`My LMS` cannot be a pipeline's name"):
        scaffold("sqlite:///lms.db", tmp_path, name="My LMS")


def test_names_are_no_longer_than_they_may_be() -> None:
    long = "x" * 80
    (naming,) = name_tables([long], pipeline="p").values()
    key = key_field("id", naming.entity)
    assert (len(naming.entity), len(key), key[-3:]) == (63, 63, "_id")
    assert len(reference_field("invited_by_id", naming.entity, key)) == 63


def test_the_namespace_of_headwater_is_its_own() -> None:
    (naming,) = name_tables(["note"], pipeline="headwater-demo").values()
    assert naming.stream == "db_headwater_demo.note"


def test_nothing_to_publish_says_why(database: Path) -> None:
    with pytest.raises(ConfigError, match="access_log: a table without a primary key"):
        scaffold("sqlite:///lms.db", tables=["access_log"])


@pytest.mark.parametrize(
    ("plural", "expected"),
    [
        ("orders", "order"),
        ("order_lines", "order_line"),
        ("categories", "category"),
        ("addresses", "address"),
        ("boxes", "box"),
        ("branches", "branch"),
        ("people", "person"),
        ("status", "status"),
        ("course_status", "course_status"),
        ("news", "news"),
        ("bus", "bus"),
        ("class", "class"),
        ("gas", "gas"),
    ],
)
def test_singular(plural: str, expected: str) -> None:
    assert singular(plural) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CourseOverview", "course_overview"),
        ("userID", "user_id"),
        ("HTTPServer", "http_server"),
        ("Course Overview", "course_overview"),
        ('we"ird', "we_ird"),
        ("2fa", "n_2fa"),
        ("état", "etat"),
        ("日本", "unnamed"),
    ],
)
def test_snake(name: str, expected: str) -> None:
    assert snake(name) == expected


def test_a_prefix_that_tables_share_is_a_namespace_unless_it_is_an_entity() -> None:
    named = name_tables(["shop_orders", "shop_items", "orders", "order_lines", "note"], pipeline="my-db")
    assert {name: naming.stream for name, naming in named.items()} == {
        "shop_orders": "shop.shop_order",  # two entities `order`: both take the whole name of their table
        "shop_items": "shop.item",
        "orders": "my_db.order",
        "order_lines": "my_db.order_line",
        "note": "my_db.note",
    }


def test_words_that_are_written_together_are_parted_where_the_database_knows_them() -> None:
    tables = ["courseenrollment", "courseenrollmentattribute", "manualenrollmentaudit", "userprofile", "registration"]
    columns = ["course_id", "user_id", "enrollment_state", "manual_reason", "region", "audit_at"]
    named = name_tables([f"student_{table}" for table in tables], pipeline="p", columns=columns)
    assert [naming.entity for naming in named.values()] == [
        "course_enrollment",
        "course_enrollment_attribute",
        "manual_enrollment_audit",
        "user_profile",
        "registration",
    ]


def test_streams_and_entities_are_unique() -> None:
    named = name_tables(["Items", "items_", "item"], pipeline="p")
    assert len({naming.stream for naming in named.values()}) == 3


@pytest.mark.parametrize(
    ("name", "entity", "key", "expected"),
    [
        ("user_id", "user", "user_id", "user_id"),
        ("invited_by_id", "user", "user_id", "invited_by_user_id"),
        ("course_id", "course_overview", "course_overview_id", "course_overview_id"),
        ("original_course_id", "course_overview", "course_overview_id", "original_course_overview_id"),
        ("owner", "user", "user_id", "owner_user_id"),
        ("teacher_user_id", "user", "user_id", "teacher_user_id"),
        ("course_key", "course_run", "course_key", "course_key"),
    ],
)
def test_reference_field(name: str, entity: str, key: str, expected: str) -> None:
    assert reference_field(name, entity, key) == expected


def test_key_field() -> None:
    assert key_field("id", "user") == "user_id"
    assert key_field("course_key", "course_run") == "course_key"


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "passwordHash",
        "api_key",
        "reset_token",
        "session_key",
        "totp_secret",
        "salt",
        "cc_number",
        "bankAccount",
    ],
)
def test_secrets(name: str) -> None:
    assert looks(name, "user") == "secret"


@pytest.mark.parametrize(
    ("name", "entity"),
    [
        ("email", "order"),
        ("billing_email", "order"),
        ("first_name", "user"),
        ("name", "learner"),
        ("customer_name", "order"),
        ("phone_number", "order"),
        ("date_of_birth", "user"),
        ("year_of_birth", "profile"),
        ("last_ip", "user"),
        ("ssn", "user"),
        ("shipping_address", "order"),
        ("display_name", "user"),
        ("emailaddress", "account"),
        ("tax_number", "company"),
        ("blood_type", "patient"),
        ("recipient", "letter"),
    ],
)
def test_personal(name: str, entity: str) -> None:
    assert looks(name, entity) == "personal"


@pytest.mark.parametrize(
    ("name", "entity"),
    [
        ("mode", "enrollment"),
        ("price", "order"),
        ("name", "course"),
        ("display_name", "course_overview"),
        ("course_name", "certificate"),
        ("description", "course"),
        ("shipping_method", "order"),
        ("percentage", "grade"),
        ("is_active", "user"),
    ],
)
def test_harmless(name: str, entity: str) -> None:
    assert looks(name, entity) is None


def test_a_cursor_must_be_indexed_and_always_set() -> None:
    at = column("updated_at", "timestamp")
    assert cursor_of(table("t", column("id"), at, indexes=(("updated_at", "id"),))) == "updated_at"
    assert cursor_of(table("t", column("id"), at)) is None
    assert cursor_of(table("t", column("id"), at, indexes=(("id", "updated_at"),))) is None
    nullable = column("updated_at", "timestamp", nullable=True)
    assert cursor_of(table("t", column("id"), nullable, indexes=(("updated_at",),))) is None
    text = column("updated_at", "string")
    assert cursor_of(table("t", column("id"), text, indexes=(("updated_at",),))) is None


def test_a_table_without_primary_key_is_identified_by_a_unique_index_that_is_never_null() -> None:
    keyless = table("t", column("code"), column("note", nullable=True), key=(), unique=(("note",), ("code",)))
    choice = choose(keyless, Obstacles())
    assert (choice.pattern, choice.key) == ("trigger", ("code",))
