"""Every sink that `plugins` knows, under the shipped suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater import plugins
from headwater.testing.sink_events import SinkTarget, sink_target
from headwater.testing.sinks import SinkConformance


class TestSinks(SinkConformance):
    @pytest.fixture(params=plugins.known("sinks"))
    def target(self, request: pytest.FixtureRequest, tmp_path: Path) -> SinkTarget:
        return sink_target(request.param, tmp_path, lambda: str(request.getfixturevalue("database")))
