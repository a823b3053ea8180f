"""Addresses as they are shown: no password, however it was written, and everything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import ConfigError
from headwater.redaction import holds_secrets, redacted, refuse_ambiguous, without_secrets

HARMLESS = [
    "embedded:data",
    "sqlite:////a/b@c.db?mode=ro",
    "postgresql://u@h/db",
    "postgresql:///db?passfile=/run/pg&service=lms",
    "postgresql://h1:1,h2:2/db?target_session_attrs=read-write",
    "postgresql://[::1]:5432/db?user=me@x",
    "host=h port=1 dbname=d passfile=/x",
]


@pytest.mark.parametrize("address", HARMLESS)
def test_what_holds_no_secret_is_shown_as_it_is(address: str) -> None:
    assert redacted(address) == address
    assert not holds_secrets(address)
    assert without_secrets(address) == address
    refuse_ambiguous(address)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://u:pw@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:p:w@h1:1,h2:2/db", "postgresql://u:***@h1:1,h2:2/db"),
        ("postgresql://u:p?w@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:p@w@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:p/w@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:12/3@h/db", "postgresql://u:***@h/db"),
        (
            "postgresql://h/db?user=u&password=pw&sslmode=require",
            "postgresql://h/db?user=u&password=***&sslmode=require",
        ),
        ("postgresql://h/db?pass%77ord=pw", "postgresql://h/db?pass%77ord=***"),
        ("postgresql://h/db?sslpassword=pw", "postgresql://h/db?sslpassword=***"),
        ("postgresql://h/db?pasword=pw", "postgresql://h/db?***"),
        ("postgresql://h/db?password=p&w", "postgresql://h/db?password=***&***"),
        ("duckdb:md:lake?motherduck_token=t", "duckdb:md:lake?***"),
        ("host=h password=pw dbname=d", "host=h password=*** dbname=d"),
        ("host=h password = 'p\\'w x' dbname=d", "host=h password=*** dbname=d"),
        ("host=h password=p w dbname=d", "host=h password=*** *** dbname=d"),
        ("host=h password='pw", "host=h password=***"),
    ],
)
def test_f81_what_is_hidden(address: str, shown: str) -> None:
    assert redacted(address) == shown
    assert holds_secrets(address)


@pytest.mark.parametrize("address", ["postgresql://u:p@w@h/db", "postgresql://u:p/w@h/db", "postgresql://u:1/w@h/db"])
def test_f81_an_address_that_can_be_read_in_two_ways_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="percent-encoded") as caught:
        refuse_ambiguous(address)
    assert "w@h" not in str(caught.value)
    refuse_ambiguous("postgresql://u:p%40%2Fw@h/db")


def test_without_its_secrets_an_address_still_works() -> None:
    address = "postgresql://u:pw@h1:1,h2:2/db?password=x&sslmode=require&sslpassword=y"
    assert without_secrets(address) == "postgresql://u@h1:1,h2:2/db?sslmode=require"
    assert without_secrets("postgresql://u:pw@h/db?password=x") == "postgresql://u@h/db"


@given(st.text(st.characters(codec="ascii", exclude_characters=" ", exclude_categories=["Cc"]), min_size=4))
def test_f81_no_password_of_any_form_is_shown(secret: str) -> None:
    known = redacted("postgresql://user:@host/database?password=&sslmode=require") + "host= password=*** user="
    for form in ("postgresql://user:{}@host/database?sslmode=require", "postgresql://host/database?password={}"):
        shown = redacted(form.format(secret))
        assert secret not in shown or secret in known
