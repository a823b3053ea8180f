"""`headwater init`: a database becomes a first headwater.yaml, with a contract for each table that is worth publishing.

What it writes is a draft to be read by people: each choice carries its reason, what looks secret or personal stays
out, and nothing that is there already is overwritten.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from headwater import plugins
from headwater.config import FILE, NAME_PATTERN, SourceConfig, StreamConfig
from headwater.contracts import vocabulary as vocabulary_module
from headwater.contracts.validation import nearest
from headwater.dialects import Dialect, Table, named
from headwater.errors import ConfigError
from headwater.protocols import Guarantee
from headwater.redaction import redacted
from headwater.scaffold import text
from headwater.scaffold.address import Address, address_of, pipeline_name
from headwater.scaffold.obstacles import looking
from headwater.scaffold.plan import Circumstances, Plan, plan

__all__ = ["scaffold"]


def scaffold(
    url: str, directory: str | Path = ".", *, tables: Sequence[str] | None = None, name: str | None = None
) -> list[Path]:
    """Look at the database and write headwater.yaml, vocabulary.yaml and contracts/; return the files written.

    A relative path in `url` starts at the working directory. `tables`: these alone, even if they look like a
    framework's. `name`: the pipeline's, else the database's. A password in `url` is not written into any file, see
    `address`. Raises `ConfigError` if a file is there already.
    """
    target = Path(directory).resolve()
    address = address_of(url, target)
    name = name or pipeline_name(address.name)
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"`{name}` cannot be a pipeline's name", hint="lower-case letters, digits and `-`, a letter first"
        )
    source = SourceConfig.model_validate(url)
    source_name = pipeline_name(address.name).replace("-", "_")
    with looking(source, pipeline=name, name=source_name) as obstacles:
        around = Circumstances(
            pipeline=name,
            source=source_name,
            obstacles=obstacles,
            guarantee=lambda config, keyed: _guarantee(source.scheme, config, keyed=keyed),
            asked_for=frozenset(tables or ()),
        )
        planned = plan(_inspected(source, tables), around)
    if not planned.streams:
        reasons = "; ".join(f"{skipped.table}: {skipped.why}" for skipped in planned.skipped) or "it has no tables"
        raise ConfigError(f"nothing to publish in {redacted(url)}: {reasons}", hint="name tables with --table")
    return _write(target, _files(planned, name, address))


def _inspected(source: SourceConfig, wanted: Sequence[str] | None) -> list[Table]:
    factory = plugins.dialect_factory(source.scheme)
    dialect: Dialect = factory(config=source, directory=str(Path.cwd()))
    try:
        known = {str(table): table for table in dialect.tables()}
        chosen = [str(named(known.values(), table)) for table in wanted or ()]
        for table in chosen:
            if table not in known:
                near = nearest(table, list(known))
                hint = f"did you mean `{near}`?" if near else f"tables are {', '.join(known) or 'none'}"
                raise ConfigError(f"the database has no table `{table}`", hint=hint)
        return [dialect.table(known[table]) for table in (chosen or sorted(known))]
    finally:
        dialect.close()


def _guarantee(scheme: str, config: StreamConfig, *, keyed: bool) -> Guarantee:
    return plugins.source_guarantee(scheme, config.pattern)(config, keyed=keyed)


def _files(planned: Plan, name: str, address: Address) -> dict[str, str]:
    files = {
        FILE: text.configuration(planned, pipeline=name, address=address),
        vocabulary_module.FILE: text.vocabulary(planned),
    }
    for stream in planned.streams:
        files[f"contracts/{stream.naming.stream}.yaml"] = text.contract(stream)
    return files


def _write(target: Path, files: dict[str, str]) -> list[Path]:
    """All or nothing, as far as files that are there already go."""
    paths = {target / name: content for name, content in files.items()}
    there = [str(path) for path in paths if path.exists()]
    if there:
        raise ConfigError(
            f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} there already, and init overwrites nothing",
            hint="choose another --directory, or move them away",
        )
    for path, content in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    return list(paths)
