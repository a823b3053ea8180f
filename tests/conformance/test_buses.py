"""Every bus that is installed keeps every promise of the protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headwater import plugins
from headwater.testing.buses import Bench, BusConformance


class TestBuses(BusConformance):
    @pytest.fixture(params=plugins.known("buses"))
    def bench(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
        with Bench(request.param, str(tmp_path)) as bench:
            yield bench
