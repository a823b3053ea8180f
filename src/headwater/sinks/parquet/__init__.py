"""Parquet files as a target. URLs: `parquet:folder`, relative to the configuration, or `parquet:` before any
`pyarrow.fs` URL (`parquet:s3://bucket/lake`).

One folder a stream, named like a table. What plain readers glob, `<folder>/<table>/*.parquet`, is right at any moment:
in mode `current` it is one file, `current.parquet`, that is replaced whole; in mode `history` it is a sequence of files
of which only the last is ever replaced, by a longer one. Batches are durable before that, as parts beside a manifest
in `<table>/_headwater/`; a published file's metadata says at which cursor it stands.

The manifest is the commit: a write is a part file and then a new manifest, each by an atomic rename. On a local disk a
lock keeps a second writer out; on an object store, whose rename cannot compare, only the manifest's cursor does, and
two writers at the same instant are not told apart: give each target one pipeline.
"""

from __future__ import annotations

from headwater.config import SinkBatch, SinkConfig
from headwater.sinks.parquet.sink import ParquetSink
from headwater.sinks.parquet.store import Store, place_of
from headwater.sinks.placing import table_name

BATCH = SinkBatch(events=200_000, age=2.0)


def open_sink(*, name: str, pipeline: str, config: SinkConfig, directory: str) -> ParquetSink:
    system, root = place_of(config.url.get_secret_value(), directory)
    return ParquetSink(name, pipeline, config, lambda stream: Store(system, f"{root.rstrip('/')}/{table_name(stream)}"))
