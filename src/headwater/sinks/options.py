"""What a sink's `options` may say."""

from __future__ import annotations

from pydantic import Field

from headwater.config import SinkConfig
from headwater.contracts.model import Duration, Frozen, validated


class Options(Frozen):
    guards: Duration = Field(7 * 86400.0)
    """For how many seconds the key of a deleted row is remembered, so that a late event cannot revive it."""

    @classmethod
    def of(cls, name: str, config: SinkConfig) -> Options:
        return validated(cls, config.options, where=f"sink {name}: options")
