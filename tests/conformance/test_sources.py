"""Every source that is installed keeps every promise of the protocol."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

pytest.register_assert_rewrite("headwater.testing.sources")

from headwater.testing.sources import SourceConformance, World, known, worlds  # noqa: E402


class TestSources(SourceConformance):
    @pytest.fixture(params=known(), ids=" ".join)
    def world(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
        adapter, name = request.param
        url = request.getfixturevalue("database") if adapter.startswith("postgresql") else ""
        with closing(worlds(adapter, tmp_path, url)[name]()) as world:
            yield world
