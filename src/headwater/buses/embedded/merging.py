"""Merging of small segments: live capture makes one for each commit, and history is read by the ten thousand.

Segments are merged in sizes that grow by sixteen, so that an event is rewritten a few times in its life, not once for
each commit behind it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from headwater.buses.embedded import reading, segments
from headwater.buses.embedded.rewriting import Kept, Workshop
from headwater.buses.embedded.segments import Decoded

FAN = 16
LEVELS = (16, 256, 4_096, 16_384)
"""Segments below the n-th number of events are of level n; those above the last are left alone."""
MOST_ROWS = 65_536
MOST_BYTES = 8 * 2**20
LARGE_BYTES = 2 * 2**20


def steps(shop: Workshop, age: float | None) -> Iterator[None]:
    """Merge what can be merged; one small transaction between two steps.

    `age`: of a retention by age, in seconds. Segments whose appends lie far apart for it are not merged: one falls
    away only as a whole.
    """
    if shop.appender.fresh[shop.id] < FAN and shop.id in shop.appender.fresh:
        return
    shop.appender.fresh[shop.id] = 0
    span = None if age is None else int(age * 1e6 / FAN)
    for limit in LEVELS:
        for run in _runs(shop, limit, span):
            if not _merge(shop, run):
                return
            yield


def _runs(shop: Workshop, limit: int, span: int | None) -> list[list[Kept]]:
    """Groups of adjacent small segments of one shape that are worth merging."""
    schemas = _Schemas(shop)
    groups: list[list[Kept]] = []
    run: list[Kept] = []
    for kept in shop.kept():
        fits = kept.count < limit and kept.nbytes < LARGE_BYTES
        if run and not (fits and _belongs(schemas, run[0], kept, span)):
            groups += _groups(run)
            run = []
        if fits:
            run.append(kept)
    return groups + _groups(run)


def _belongs(schemas: _Schemas, first: Kept, kept: Kept, span: int | None) -> bool:
    if span is not None and kept.appended - first.appended > span:
        return False
    return schemas.kind(first) == schemas.kind(kept)


class _Schemas:
    """What makes two segments alike, whether or not they carry the bus's own columns."""

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self._digests: dict[int, bytes] = {}

    def kind(self, kept: Kept) -> tuple[object, ...]:
        if kept.shape not in self._digests:
            self._digests[kept.shape] = segments.digest(self._shop.schema(kept))
        return (self._digests[kept.shape], kept.type, kept.version, kept.source, kept.seed, kept.content_ids)


def _groups(run: list[Kept]) -> list[list[Kept]]:
    """A run cut into groups of at most the size of a full segment; short runs wait for company."""
    if len(run) < FAN:
        return []
    groups: list[list[Kept]] = [[]]
    rows = nbytes = 0
    for kept in run:
        if groups[-1] and (rows + kept.count > MOST_ROWS or nbytes + kept.nbytes > MOST_BYTES):
            groups.append([])
            rows = nbytes = 0
        groups[-1].append(kept)
        rows, nbytes = rows + kept.count, nbytes + kept.nbytes
    return [group for group in groups if len(group) > 1]


def _merge(shop: Workshop, run: list[Kept]) -> bool:
    parts = [_timed(kept, shop.load(kept)) for kept in run]
    whole = reading.joined(parts)
    newest = max(kept.appended for kept in run)
    return shop.replace(run, shop.repacked(run[0], whole), run[0].base, newest)


def _timed(kept: Kept, part: Decoded) -> Decoded:
    """With append times, if some event needs its own."""
    if not part.data.column("_time").null_count:
        return Decoded(part.data, part.offsets, pa.nulls(len(part), pa.int64()))
    return Decoded(part.data, part.offsets, segments.append_times(part, kept.appended))
