"""Working copies, accepted versions, and what guards them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headwater.contracts.store import ContractStore
from headwater.errors import ContractError
from headwater.faults import set_failpoints

STREAM = "learning.enrollment"
TEXT = """\
# who is enrolled in what
stream: learning.enrollment
version: 1
kind: fact
key: [enrollment_id]
fields:
  enrollment_id: {type: int64}
  mode: {type: string}
"""
NEXT = TEXT.replace("version: 1", "version: 2") + "  price: {type: 'decimal(10,2)', optional: true}\n"


@pytest.fixture
def store(tmp_path: Path) -> ContractStore:
    store = ContractStore(tmp_path / "contracts")
    write(store, TEXT)
    return store


def write(store: ContractStore, text: str, stream: str = STREAM) -> None:
    store.directory.mkdir(exist_ok=True)
    store.path(stream).write_text(text, encoding="utf-8")


def numbers(store: ContractStore) -> list[int]:
    return [contract.version for contract in store.accepted(STREAM)]


def test_before_anything_is_accepted_the_working_copy_is_current(store: ContractStore) -> None:
    assert store.newest(STREAM) is None
    assert store.accepted(STREAM) == []
    assert store.current(STREAM) == store.working(STREAM)
    assert store.streams() == [STREAM]


def test_accept_writes_the_working_copy_with_its_comments(store: ContractStore) -> None:
    path = store.accept(STREAM)
    assert path == store.directory / "published" / STREAM / "v1.yaml"
    assert path.read_text() == TEXT
    assert store.newest(STREAM) == store.working(STREAM)
    assert store.tampered() == []


def test_accept_again_changes_nothing(store: ContractStore) -> None:
    path = store.accept(STREAM)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in path.parent.iterdir()}
    write(store, "# another comment\n" + TEXT)
    assert store.accept(STREAM) == path
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in path.parent.iterdir()} == before


def test_the_engine_goes_by_the_newest_accepted_version(store: ContractStore) -> None:
    store.accept(STREAM)
    write(store, NEXT)
    assert (store.current(STREAM).version, store.working(STREAM).version) == (1, 2)
    store.accept(STREAM)
    assert store.current(STREAM).version == 2
    assert numbers(store) == [1, 2]


def test_versions_are_sorted_as_numbers(store: ContractStore) -> None:
    for version in range(1, 12):
        write(store, TEXT.replace("version: 1", f"version: {version}"))
        store.accept(STREAM)
    assert numbers(store) == list(range(1, 12))
    newest = store.newest(STREAM)
    assert newest is not None
    assert newest.version == 11


def test_an_accepted_version_is_immutable(store: ContractStore) -> None:
    path = store.accept(STREAM)
    write(store, TEXT.replace("mode: {type: string}", "mode: {type: string, optional: true}"))
    with pytest.raises(ContractError, match="version 1 of `learning.enrollment` is accepted already") as caught:
        store.accept(STREAM)
    assert "write `version: 2`" in caught.value.hint
    assert path.read_text() == TEXT


@pytest.mark.parametrize(("version", "expected"), [(3, 2), (5, 2)])
def test_no_version_is_skipped(store: ContractStore, version: int, expected: int) -> None:
    store.accept(STREAM)
    write(store, TEXT.replace("version: 1", f"version: {version}"))
    with pytest.raises(ContractError, match=rf"enrollment\.yaml:3: `version: {expected}` .* found {version}"):
        store.accept(STREAM)
    assert numbers(store) == [1]


def test_the_first_version_is_one(store: ContractStore) -> None:
    write(store, TEXT.replace("version: 1", "version: 2"))
    with pytest.raises(ContractError, match="`version: 1` of"):
        store.accept(STREAM)


def test_an_incompatible_version_is_refused_with_the_line_and_who_breaks(store: ContractStore) -> None:
    consumers = "consumers: [{name: billing, fields: [mode]}]\n"
    write(store, TEXT + consumers)
    store.accept(STREAM)
    write(store, NEXT.replace("mode: {type: string}", "mode: {type: string, optional: true}") + consumers)
    with pytest.raises(ContractError) as caught:
        store.accept(STREAM)
    assert caught.value.message == (
        f'{store.path(STREAM)}:8: NULL_ALLOWED field "mode": was required and is optional '
        "-> readers still on v1 that meet events of v2, of the declared consumers: billing "
        "-> leave it required and write a default in the mapping"
    )
    assert numbers(store) == [1]


@pytest.mark.parametrize("spelled", ["NULL_ALLOWED", "null-allowed"])
def test_a_rule_can_be_broken_knowingly(store: ContractStore, spelled: str) -> None:
    store.accept(STREAM)
    write(store, NEXT.replace("mode: {type: string}", "mode: {type: string, optional: true}"))
    store.accept(STREAM, allow=[spelled])
    assert numbers(store) == [1, 2]


def test_a_rule_that_does_not_exist_cannot_be_allowed(store: ContractStore) -> None:
    with pytest.raises(ContractError, match="there is no rule `NUL_ALLOWED`") as caught:
        store.accept(STREAM, allow=["nul-allowed"])
    assert caught.value.hint == "did you mean `NULL_ALLOWED`?"


def test_an_edit_of_an_accepted_version_is_noticed(store: ContractStore) -> None:
    path = store.accept(STREAM)
    path.write_text(TEXT.replace("string", "int64"))
    (found,) = store.tampered()
    assert (found.stream, found.version, found.found, found.path) == (STREAM, 1, "changed", path)


def test_an_edit_is_not_covered_up_by_accepting_again(store: ContractStore) -> None:
    path = store.accept(STREAM)
    edited = TEXT.replace("string", "int64")
    path.write_text(edited)
    write(store, edited)
    store.accept(STREAM)
    assert [found.found for found in store.tampered()] == ["changed"]


def test_a_deleted_or_hand_made_version_is_noticed(store: ContractStore) -> None:
    path = store.accept(STREAM)
    path.rename(path.with_name("v2.yaml"))
    assert [(found.version, found.found) for found in store.tampered()] == [(1, "missing"), (2, "unrecorded")]


def test_nothing_is_accepted_on_top_of_an_edited_history(store: ContractStore) -> None:
    path = store.accept(STREAM)
    path.write_text(TEXT.replace("string", "string, optional: true"))
    write(store, NEXT.replace("mode: {type: string}", "mode: {type: string, optional: true}"))
    with pytest.raises(ContractError, match="accepted version 1 of `learning.enrollment` is changed"):
        store.accept(STREAM)
    path.write_text(TEXT)
    with pytest.raises(ContractError, match="NULL_ALLOWED"):
        store.accept(STREAM)


def test_other_line_ends_are_no_edit(store: ContractStore) -> None:
    path = store.accept(STREAM)
    path.write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert store.tampered() == []


@pytest.mark.parametrize("place", ["contract.accept.before_link", "contract.accept.before_lock"])
def test_a_crash_while_accepting_is_healed_by_accepting_again(store: ContractStore, place: str) -> None:
    set_failpoints(f"{place}=error")
    try:
        with pytest.raises(OSError, match=place):
            store.accept(STREAM)
    finally:
        set_failpoints("")
    path = store.accept(STREAM)
    assert path.read_text() == TEXT
    assert sorted(p.name for p in path.parent.iterdir()) == ["v1.yaml", "versions.lock"]
    assert store.tampered() == []


def test_a_missing_contract_names_the_nearest(store: ContractStore) -> None:
    with pytest.raises(ContractError, match="stream `learning.enrolment` has no contract") as caught:
        store.current("learning.enrolment")
    assert caught.value.hint == "did you mean `learning.enrollment`?"


def test_a_file_of_another_stream_is_refused(store: ContractStore) -> None:
    write(store, TEXT, "learning.course")
    with pytest.raises(ContractError, match=r"learning\.course\.yaml:2: `stream: learning.course` is expected"):
        store.working("learning.course")


def test_a_published_file_with_another_number_is_refused(store: ContractStore) -> None:
    path = store.accept(STREAM)
    path.with_name("v2.yaml").write_text(TEXT)
    with pytest.raises(ContractError, match=r"v2\.yaml:3: `version: 2` is expected by the file's name, found 1"):
        store.accepted(STREAM)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT.replace("kind:", "knid:"), ":4: `knid` is not a known key; did you mean `kind`?"),
        (
            TEXT.replace("{type: string}", "{tpye: string}"),
            ":8: `fields.mode.tpye` is not a known key; did you mean `type`?",
        ),
        (TEXT.replace("string", "strnig"), ":8: `fields.mode`: field type `strnig`: unknown type `strnig`"),
        (TEXT.replace("kind: fact", "kind: fcat"), ":4: `kind: fcat` is not possible; did you mean `fact`?"),
        (TEXT.replace("  mode", "  Mode"), ":8: `fields.Mode` is no name"),
        (TEXT.replace("[enrollment_id]", "[id]"), ":2: `the file`: key field `id` is not among the fields"),
        (TEXT + "kind: event\n", ":9: `kind` is written twice"),
        (TEXT + "  x: [\n", ":10: not valid YAML"),
        (TEXT.replace("version: 1\n", ""), "`version` is missing"),
        ("- a\n", "a mapping is expected"),
        ("", "a mapping is expected"),
    ],
)
def test_what_is_wrong_is_named_with_file_line_and_key(store: ContractStore, text: str, message: str) -> None:
    write(store, text)
    with pytest.raises(ContractError) as caught:
        store.working(STREAM)
    assert caught.value.message.startswith(str(store.path(STREAM)))
    assert message in caught.value.message


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; import headwater.contracts.store, headwater.contracts.vocabulary, headwater.config;"
        "print([name for name in ('pyarrow', 'duckdb', 'numpy', 'sqlglot', 'typer', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
