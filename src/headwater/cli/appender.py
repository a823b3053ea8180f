"""What only the process that appends may do, asked of it from another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.cli.output import assembled

if TYPE_CHECKING:
    from headwater.requests import Handler


def by_the_appender(config: Path, what: str, **arguments: Any) -> dict[str, Any]:
    """Only one process appends: the running pipeline if there is one, else this one."""
    from headwater import requests
    from headwater.runtime import Runtime
    from headwater.status import running

    with assembled(config) as assembly:
        home = assembly.home
        if home is not None and running(home) is not None:
            return requests.ask(home, what, **arguments)
    with assembled(config, append=True) as assembly:
        handler: Handler = getattr(Runtime(assembly), what)
        return handler(**arguments)
