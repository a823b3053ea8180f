"""headwater.yaml: read, written out, and refused with the place and the nearest right word."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from headwater import config as configuration
from headwater.config import Config, SinkConfig, SourceConfig, StreamConfig, dump, load, parse
from headwater.errors import ConfigError
from headwater.redaction import redacted

TEXT = """\
headwater: 1
name: lms-prod
sources:
  lms: sqlite:///lms.db
streams:
  learning.enrollment:
    source: lms
    table: enrollment
    pattern: trigger
    fields: {enrollment_id: id, price: "round(price, 2)"}
  catalog.course_run:
    source: lms
    table: course
    pattern: query
    cursor: updated_at
    every: 30s
    reconcile_deletes: 1h
sinks:
  warehouse: {url: "duckdb:warehouse.duckdb", streams: ["learning.*"]}
"""


def parsed(text: str = TEXT) -> Config:
    return parse(text, directory=Path("/there"))


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    return caught.value.message


def test_reads_the_file() -> None:
    config = parsed()
    assert config.bus.url == "embedded:data"
    stream = config.streams["catalog.course_run"]
    assert (stream.every, stream.reconcile_deletes, stream.cursor) == (30.0, 3600.0, "updated_at")
    assert config.streams["learning.enrollment"].fields == {"enrollment_id": "id", "price": "round(price, 2)"}
    assert config.sinks["warehouse"].scheme == "duckdb"
    assert config.contracts_directory == Path("/there/contracts")


def test_what_is_written_out_reads_as_the_same() -> None:
    config = parsed()
    assert parsed(dump(config)) == config


@settings(deadline=None, max_examples=50)
@given(
    st.builds(
        StreamConfig,
        source=st.just("lms"),
        table=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1).filter(
            lambda text: "${" not in text
        ),
        pattern=st.sampled_from(["trigger", "log"]),
        key=st.lists(st.sampled_from(["yes", "no", "1:30", "2020-01-01", "null", "1e3", "~", "0x1f"])).map(tuple),
        every=st.floats(0, 1e6),
        before=st.booleans(),
        on_invalid=st.sampled_from(["quarantine", "stop"]),
    )
)
def test_any_configuration_made_in_code_survives_its_file(stream: StreamConfig) -> None:
    config = Config(
        name="p",
        sources={"lms": SourceConfig(url=SecretStr("sqlite:///x.db"))},
        streams={"s": stream},
        sinks={"w": SinkConfig(url=SecretStr("duckdb:x"))},
        directory=Path("/there"),
    )
    assert parsed(dump(config)) == config


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sinks:", "sink:", "headwater.yaml:18: `sink` is not a known key; did you mean `sinks`?"),
        (
            "    table: course\n",
            "    tabel: course\n",
            "headwater.yaml:13: `streams.catalog.course_run.tabel` is not a known key; did you mean `table`?",
        ),
        ("streams: [", "steams: [", "headwater.yaml:19: `sinks.warehouse.steams` is not a known key"),
        (
            "pattern: query",
            "pattern: qery",
            "headwater.yaml:14: `streams.catalog.course_run.pattern: qery` is not possible",
        ),
        (
            "every: 30s",
            "every: 30 parsecs",
            "headwater.yaml:16: `streams.catalog.course_run.every`: `30 parsecs` is no",
        ),
        ("every: 30s", "every: -1", "headwater.yaml:16: `streams.catalog.course_run.every`: Input should be greater"),
        ("source: lms\n    table: e", "source: lsm\n    table: e", "names source `lsm`, but sources are lms"),
        ("name: lms-prod", "name: LMS", "headwater.yaml:2: `name`: String should match pattern"),
        (
            "headwater: 1",
            "headwater: 2",
            "headwater.yaml:1: `headwater: 1` is expected as the version of the format, found 2",
        ),
        ("headwater: 1\n", "", "`headwater: 1` is expected as the version of the format, found nothing"),
        ("  learning.enrollment:", "  headwater.heartbeat:", "names that begin with `headwater` are reserved"),
        ("  learning.enrollment:", "  Learning:", "headwater.yaml:6: `streams.Learning` is no name"),
        ("pattern: trigger", "pattern: trigger\n    query: select 1", "a stream has either a `table` or a `query`"),
        ("pattern: trigger", "pattern: trigger\n    cursor: x", "`cursor` is for `pattern: query`, not `trigger`"),
        ("name: lms-prod", "name: lms-prod\nname: b", "headwater.yaml:3: `name` is written twice"),
        ("name: lms-prod", "name: lms-prod\ndirectory: /", "headwater.yaml:3: `directory` is not a known key"),
        ("sources:", "sources: ]", "headwater.yaml:3: not valid YAML"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(old: str, new: str, message: str) -> None:
    assert old in TEXT
    assert message in refused(TEXT.replace(old, new, 1))


def test_every_wrong_place_is_named_at_once() -> None:
    text = TEXT.replace("pattern: query", "pattern: qery").replace("sinks:", "sink:")
    assert len(refused(text).splitlines()) == 2


def test_a_misspelt_key_below_a_name_that_is_a_key_elsewhere() -> None:
    """A source may be called as an attribute is."""
    text = "headwater: 1\nname: p\nsources:\n  options: {ulr: 'sqlite:///x'}\n"
    assert "`sources.options.ulr` is not a known key; did you mean `url`?" in refused(text)


def test_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LMS_URL", "sqlite:///other.db")
    monkeypatch.delenv("PAGE", raising=False)
    (tmp_path / "secret").write_text("s3cret\n")
    text = TEXT.replace("sqlite:///lms.db", "${LMS_URL}")
    text = text.replace("cursor: updated_at", "cursor: updated_at\n    page_size: ${PAGE:-500}")
    text = text.replace("duckdb:warehouse.duckdb", f"duckdb:${{file:{tmp_path / 'secret'}}}")
    config = parsed(text)
    assert config.sources["lms"].url.get_secret_value() == "sqlite:///other.db"
    assert config.streams["catalog.course_run"].page_size == 500
    assert config.sinks["warehouse"].url.get_secret_value() == "duckdb:s3cret"


def test_a_variable_that_is_not_set_is_named_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LMS_URL", raising=False)
    text = TEXT.replace("sqlite:///lms.db", "${LMS_URL}")
    assert refused(text) == "headwater.yaml:4: environment variable LMS_URL is not set"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read") as caught:
        load(tmp_path / "headwater.yaml")
    assert "headwater init" in caught.value.hint


def test_load_knows_where_the_file_lies(tmp_path: Path) -> None:
    (tmp_path / "headwater.yaml").write_text(TEXT)
    assert load(tmp_path / "headwater.yaml").directory == tmp_path.resolve()


@pytest.mark.parametrize("word", ["no", "on", "yes", "off", "1:30", "2020-01-01", "1_000", "0123"])
def test_words_that_yaml_1_1_takes_for_something_else_stay_words(word: str) -> None:
    config = parsed(TEXT.replace("cursor: updated_at", f"cursor: {word}"))
    assert config.streams["catalog.course_run"].cursor == word


def test_f81_secrets_are_neither_shown_nor_told() -> None:
    text = TEXT.replace("sqlite:///lms.db", "postgresql://u:hunter2@h/db")
    config = parsed(text)
    shown = f"{config!r} {config.model_dump_json()} {config.sources['lms'].url}"
    assert "hunter2" not in shown
    assert redacted("postgresql://u:hunter2@h/db") == "postgresql://u:***@h/db"
    assert "hunter2" in dump(config)


def test_f81_a_refused_file_does_not_tell_its_secrets() -> None:
    text = TEXT.replace("lms: sqlite:///lms.db", "lms: {ulr: 'postgresql://u:hunter2@h/db'}")
    try:
        parsed(text)
    except ConfigError:
        assert "hunter2" not in traceback.format_exc()
    else:
        pytest.fail("an unknown key was accepted")


def test_every_key_is_documented() -> None:
    text = (Path(configuration.__file__).parents[2] / "docs" / "configuration.md").read_text()
    models = (
        Config,
        configuration.BusConfig,
        SourceConfig,
        StreamConfig,
        configuration.TypeMapping,
        SinkConfig,
        configuration.SinkBatch,
    )
    for model in models:
        for name, field in model.model_fields.items():
            if not field.exclude:
                assert f"`{name}`" in text, f"{model.__name__}.{name} is not in docs/configuration.md"
