"""Every sink that `plugins` knows, under the shipped suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater import plugins
from headwater.testing.sinks import SinkConformance, SinkTarget


class TestSinks(SinkConformance):
    @pytest.fixture(params=plugins.known("sinks"))
    def target(self, request: pytest.FixtureRequest, tmp_path: Path) -> SinkTarget:
        return SinkTarget(f"{request.param}:target", tmp_path)
