"""Headwater liberates data: databases to event streams, and streams to the stores that need them.

The public names; each is imported when it is first used, so that `import headwater` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwater.api import Event, Pipeline
    from headwater.config import Config
    from headwater.contracts.model import Contract, FieldSpec
    from headwater.errors import (
        AppenderBusy,
        BusDamaged,
        BusError,
        BusFull,
        Busy,
        ConfigError,
        ContractError,
        CursorMismatch,
        GapError,
        HeadwaterError,
        HistoryGone,
        MappingError,
        MissingExtra,
        NotConnected,
        PromiseError,
        RowRefused,
        SinkError,
        SourceError,
        StreamStopped,
        VerifyError,
    )
    from headwater.model import Cursor, Events, Op, Order

__all__ = [
    "AppenderBusy",
    "BusDamaged",
    "BusError",
    "BusFull",
    "Busy",
    "Config",
    "ConfigError",
    "Contract",
    "ContractError",
    "Cursor",
    "CursorMismatch",
    "Event",
    "Events",
    "FieldSpec",
    "GapError",
    "HeadwaterError",
    "HistoryGone",
    "MappingError",
    "MissingExtra",
    "NotConnected",
    "Op",
    "Order",
    "Pipeline",
    "PromiseError",
    "RowRefused",
    "SinkError",
    "SourceError",
    "StreamStopped",
    "VerifyError",
    "__version__",
]

_ENGINE = "pip install 'headwater[engine]'"
_HOMES = {
    "Event": "headwater.api",
    "Pipeline": "headwater.api",
    "Config": "headwater.config",
    "Contract": "headwater.contracts.model",
    "FieldSpec": "headwater.contracts.model",
    "Cursor": "headwater.model",
    "Events": "headwater.model",
    "Op": "headwater.model",
    "Order": "headwater.model",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("headwater")
    if name not in __all__:
        raise AttributeError(f"module `headwater` has no attribute `{name}`")
    try:
        return getattr(importlib.import_module(_HOMES.get(name, "headwater.errors")), name)
    except ModuleNotFoundError as error:
        from headwater.errors import MissingExtra

        raise MissingExtra(f"headwater.{name} needs `{error.name}`, which is not installed", hint=_ENGINE) from error


def __dir__() -> list[str]:
    return sorted(__all__)
