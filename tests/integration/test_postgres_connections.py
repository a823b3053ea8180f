"""Addresses as libpq knows them: TLS, password and service files, several hosts; through psycopg and ADBC alike.

ADBC brings a libpq of its own, so whatever holds for one is shown for the other.
"""

from __future__ import annotations

import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.config import parse
from headwater.drivers.postgres import connect, connect_adbc, execute
from headwater.errors import ConfigError, HeadwaterError, NotConnected
from headwater.testing.postgres import PostgresServer

pytestmark = pytest.mark.needs("postgres")

PASSWORD = "s3cret:/@%&= '\\pw"
"""Each of these characters means something to somebody on the way."""

Asked = Callable[[str], str]


def by_psycopg(url: str) -> str:
    with connect(url, application="tests") as connection:
        ((user,),) = execute(connection, "SELECT current_user::text || ' ' || current_setting('transaction_read_only')")
        return str(user)


def by_adbc(url: str) -> str:
    with closing(connect_adbc(url, application="tests")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_user::text || ' ' || current_setting('transaction_read_only')")
        row = cursor.fetchone()
        assert row is not None
        return str(row[0])


@pytest.fixture(params=[by_psycopg, by_adbc], ids=["psycopg", "adbc"])
def asked(request: pytest.FixtureRequest) -> Asked:
    """Connects, and says as whom, and whether the session is read-only."""
    found: Asked = request.param
    return found


@dataclass(frozen=True, slots=True)
class Authority:
    """A certification authority of our own, made with the openssl command."""

    directory: Path

    def make(self) -> None:
        self._openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tests CA",
                      "-keyout", "ca.key", "-out", "ca.crt")  # fmt: skip

    def certify(self, name: str, subject: str, alternatives: str = "") -> None:
        """`name`.key and `name`.crt, signed by this authority. `alternatives`: as in subjectAltName."""
        self._openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={subject}",
                      "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        more = []
        if alternatives:
            (self.directory / f"{name}.ext").write_text(f"subjectAltName={alternatives}\n")
            more = ["-extfile", f"{name}.ext"]
        self._openssl("x509", "-req", "-days", "2", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
                      "-CAcreateserial", "-out", f"{name}.crt", *more)  # fmt: skip

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("authority"))
    made.make()
    made.certify("server", "db.example", "DNS:localhost")
    made.certify("client", "clara")
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[PostgresServer]:
    """Takes `secretive` by password and over TLS only, and `clara` by her certificate."""
    made = PostgresServer(tmp_path_factory.mktemp("tls") / "data", settings={"ssl": "on", "ssl_ca_file": "ca.crt"})
    owner = made.directory.stat()
    for name in ("server.key", "server.crt", "ca.crt"):
        target = made.directory / name
        target.write_bytes((authority.directory / name).read_bytes())
        target.chmod(0o600)
        _give(target, owner.st_uid, owner.st_gid)
    (made.directory / "pg_hba.conf").write_text(
        "host all postgres 127.0.0.1/32 trust\nhostssl all secretive all scram-sha-256\nhostssl all clara all cert\n"
    )
    with made:
        literal = PASSWORD.replace("'", "''")
        made.execute(f"CREATE ROLE secretive LOGIN PASSWORD '{literal}'", "CREATE ROLE clara LOGIN")
        yield made


def _give(path: Path, user: int, group: int) -> None:
    import os

    if os.geteuid() == 0:
        os.chown(path, user, group)


def address(server: PostgresServer, user: str = "secretive", host: str = "localhost", **parameters: str) -> str:
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
    return f"postgresql://{user}@{host}:{server.port}/postgres?{query}"


# TLS


def test_verify_full_with_an_authority_of_ones_own(asked: Asked, server: PostgresServer, authority: Authority) -> None:
    root = str(authority.directory / "ca.crt")
    url = address(server, sslmode="verify-full", sslrootcert=root, password=PASSWORD)
    assert asked(url) == "secretive off"


def test_a_certificate_for_another_name_is_refused(asked: Asked, server: PostgresServer, authority: Authority) -> None:
    root = str(authority.directory / "ca.crt")
    url = address(server, host="127.0.0.1", sslmode="verify-full", sslrootcert=root, password=PASSWORD)
    with pytest.raises(NotConnected, match="does not match host name") as caught:
        asked(url)
    assert_silent(caught.value)
    assert asked(url.replace("verify-full", "verify-ca")) == "secretive off"


def test_an_unknown_authority_is_refused(asked: Asked, server: PostgresServer, tmp_path: Path) -> None:
    other = Authority(tmp_path)
    other.make()
    url = address(server, sslmode="verify-full", sslrootcert=str(tmp_path / "ca.crt"), password=PASSWORD)
    with pytest.raises(NotConnected, match="certificate verify failed") as caught:
        asked(url)
    assert_silent(caught.value)


def test_without_tls_the_server_does_not_let_us_in(asked: Asked, server: PostgresServer) -> None:
    with pytest.raises(HeadwaterError, match="no encryption") as caught:
        asked(address(server, host="127.0.0.1", sslmode="disable", password=PASSWORD))
    assert_silent(caught.value)


def test_a_client_certificate(asked: Asked, server: PostgresServer, authority: Authority) -> None:
    files = {name: str(authority.directory / file) for name, file in
             {"sslrootcert": "ca.crt", "sslcert": "client.crt", "sslkey": "client.key"}.items()}  # fmt: skip
    (authority.directory / "client.key").chmod(0o600)
    assert asked(address(server, user="clara", sslmode="verify-full", **files)) == "clara off"


# where the password comes from


def test_a_password_file(asked: Asked, server: PostgresServer, tmp_path: Path) -> None:
    file = tmp_path / "pgpass"
    written = PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    file.write_text(f"localhost:{server.port}:postgres:secretive:{written}\n")
    file.chmod(0o600)
    assert asked(address(server, passfile=str(file), sslmode="require")) == "secretive off"


def test_pgpassword(asked: Asked, server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert asked(address(server, sslmode="require")) == "secretive off"


def test_a_service_file(asked: Asked, server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "services.conf"
    file.write_text(
        f"[lms]\nhost=localhost\nport={server.port}\nuser=secretive\ndbname=postgres\n"
        f"sslmode=require\npassword={PASSWORD}\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    assert asked("postgresql:///?service=lms") == "secretive off"


def test_a_secret_from_a_file_of_its_own(asked: Asked, server: PostgresServer, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(quote(PASSWORD, safe="") + "\n")
    text = (
        "headwater: 1\nname: p\nsources:\n"
        f"  lms: postgresql://secretive:${{file:{file}}}@localhost:{server.port}/postgres?sslmode=require\n"
    )
    config = parse(text, directory=tmp_path)
    assert asked(config.sources["lms"].url.get_secret_value()) == "secretive off"
    assert "s3cret" not in repr(config)


# several hosts


def test_a_first_host_that_is_dead(asked: Asked, server: PostgresServer) -> None:
    url = f"postgresql://postgres@127.0.0.1:1,127.0.0.1:{server.port}/postgres"
    assert asked(url) == "postgres off"


@pytest.mark.parametrize("host", ["x" * 64, "a..b"])
def test_what_can_be_no_host_is_an_error_of_ours(asked: Asked, host: str) -> None:
    with pytest.raises(HeadwaterError, match="postgresql://u@"):
        asked(f"postgresql://u@{host}:1/db")


def test_only_dead_hosts_are_all_named(asked: Asked) -> None:
    with pytest.raises(NotConnected) as caught:
        asked("postgresql://u:hunter2hunter2@127.0.0.1:1,127.0.0.1:2/db")
    assert "port 1 failed" in str(caught.value)
    assert "port 2 failed" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_target_session_attrs_finds_the_server_that_takes_writes(
    asked: Asked, server: PostgresServer, tmp_path: Path
) -> None:
    settings = {"default_transaction_read_only": "on"}
    with PostgresServer(tmp_path / "data", settings=settings) as frozen:
        hosts = f"postgresql://postgres@127.0.0.1:{frozen.port},127.0.0.1:{server.port}/postgres"
        assert asked(hosts) == "postgres on"
        assert asked(f"{hosts}?target_session_attrs=read-write") == "postgres off"
        with pytest.raises(NotConnected, match="session is read-only"):
            asked(f"{frozen.url}?target_session_attrs=read-write")


# what is said of secrets (F81)


def assert_silent(error: BaseException, secret: str = "s3cret") -> None:
    told = "".join(traceback.format_exception(error)) + repr(error)
    assert secret not in told


def test_f81_a_wrong_password_is_not_told(asked: Asked, server: PostgresServer) -> None:
    with pytest.raises(NotConnected, match="password authentication failed") as caught:
        asked(address(server, password=PASSWORD[:-1], sslmode="require"))
    assert_silent(caught.value)


SECRETS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=8, max_size=24).filter(
    lambda text: text.strip() == text and len(set(text)) > 4
)
FORMS = [
    "postgresql://u:{encoded}@127.0.0.1:1/db",
    "postgresql://u:{raw}@127.0.0.1:1/db",
    "postgresql://u:{raw}@127.0.0.1:1,127.0.0.1:2/db",
    "postgresql://127.0.0.1:1/db?user=u&password={encoded}",
    "postgresql://127.0.0.1:1/db?user=u&password={raw}",
    "postgresql://127.0.0.1:1/db?user=u&pasword={raw}",
    "postgresql://127.0.0.1:1/db?sslpassword={encoded}",
    "host=127.0.0.1 port=1 password='{quoted}'",
    "host=127.0.0.1 port=1 password={raw}",
]


def tell(form: str, secret: str, connecting: Asked) -> str:
    """All that is said of a connection that fails."""
    quoted = secret.replace("\\", "\\\\").replace("'", "\\'")
    with pytest.raises((NotConnected, ConfigError)) as caught:
        connecting(form.format(raw=secret, encoded=quote(secret, safe=""), quoted=quoted))
    return "".join(traceback.format_exception(caught.value)) + repr(caught.value)


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(secret=SECRETS)
def test_f81_no_error_of_a_failing_connection_tells_a_secret(asked: Asked, form: str, secret: str) -> None:
    """Properly written or not: libpq's own complaints repeat what they could not read.

    Not even six characters of it are told, but for those that are in every such message.
    """
    told, innocent = tell(form, secret, asked), tell(form, "Q", asked)
    for written in (secret, quote(secret, safe="")):
        pieces = {written[start : start + 6] for start in range(len(written) - 5)}
        assert [piece for piece in pieces if piece in told and piece not in innocent] == []
