"""The address that `init` was given: what it is called, and how it is written into a file without its secrets (F81)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headwater.config import scheme_of
from headwater.errors import ConfigError
from headwater.redaction import holds_secrets, redacted, without_secrets


@dataclass(frozen=True, slots=True)
class Address:
    """`name`: the database's. `written`: as it stands in a file. `remark`: what who reads the file must know."""

    name: str
    written: str
    remark: str = ""


def address_of(url: str, target: Path) -> Address:
    """`target`: the folder of the file. Raises `ConfigError` for what is no URL of a database."""
    scheme = scheme_of(url)
    if not scheme:
        hint = f"for a SQLite file, write sqlite:///{redacted(url)}"
        if "=" in url:
            hint = "write it as a URL: postgresql://user@host:5432/database"
        raise ConfigError(f"`{redacted(url)}` is no URL of a database", hint=hint)
    return _KINDS.get(scheme, _any)(url, target)


def _sqlite(url: str, target: Path) -> Address:
    from headwater.drivers.sqlite import path_of

    path = path_of(url, Path.cwd()).resolve()
    from_target = os.path.relpath(path, target)
    return Address(_stem(url), f"sqlite:///{path if from_target.startswith('..') else from_target}")


def _postgres(url: str, target: Path) -> Address:
    """A password becomes an environment variable, with the address without it in its place."""
    from headwater.drivers.postgres import understood

    parts = understood(url)
    name = str(parts.get("dbname") or parts.get("service") or parts.get("user") or "db")
    if not holds_secrets(url):
        return Address(name, url)
    variable = re.sub(r"[^A-Z0-9]+", "_", f"{pipeline_name(name).upper()}_URL")
    shown = without_secrets(url).replace("{", "%7B").replace("}", "%7D")
    remark = (
        f"The password is not kept here. Set {variable} to the whole address; or leave it unset, and give the password "
        "by PGPASSWORD, by ~/.pgpass, or with `passfile=` in the address."
    )
    return Address(name, f"${{{variable}:-{shown}}}", remark)


def _any(url: str, target: Path) -> Address:
    return Address(_stem(url), url)


_KINDS: dict[str, Callable[[str, Path], Address]] = {"sqlite": _sqlite, "postgresql": _postgres}


def _stem(url: str) -> str:
    return Path(url.split("?", 1)[0].rstrip("/")).stem


def pipeline_name(database: str) -> str:
    """The database's name, as far as it can be a pipeline's."""
    text = re.sub(r"[^a-z0-9]+", "-", database.lower()).strip("-")
    return (text if text[:1].isascii() and text[:1].isalpha() else f"db-{text}")[:40].strip("-")
