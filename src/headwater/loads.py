"""Which rows a stream begins with at this start: decided from what the bus knows of its past, and noted there.

The newest note of kind `load` says which load holds, and the least epoch from then on: `token how epoch`, for a
backfill with the condition behind it, as JSON. A source carries each token out once.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass

from headwater.config import StreamConfig
from headwater.model import Note, Reload
from headwater.protocols import Bus, Declaration, Load, StreamState

KIND = "load"
_AWAY = "away skip 0"
_BACKFILL = "rows"
"""How a backfill is carried out: the rows are appended as they are, beside what the stream has."""


@dataclass(frozen=True, slots=True)
class Decision:
    load: Load
    epoch: int
    """The least epoch that the stream's changes may carry."""
    notes: tuple[Note, ...] = ()
    """To be made durable before the stream starts."""


def decide(bus: Bus, declaration: Declaration, config: StreamConfig) -> Decision:
    """What the stream begins with now."""
    stream = declaration.contract.stream
    state = bus.streams().get(stream)
    first = Load("initial", skip=config.initial == "none")
    if state is None:
        return Decision(first, 1)
    texts = _load_notes(bus, stream)
    wanted = _wanted(bus, state, declaration, config, texts)
    if wanted is not None:
        note = Note(stream, KIND, _spell(wanted, state.epoch + 1))
        return Decision(wanted, state.epoch + 1, (note, *_gaps(stream, wanted), *_mapping_notes(state, declaration)))
    load, epoch = _newest(texts, first)
    unplaced = state.head > 0 and bus.position(declaration.source) is None
    return Decision(load, max(epoch, state.epoch + unplaced, 1), _mapping_notes(state, declaration))


def away(bus: Bus, configured: set[str]) -> list[Note]:
    """Streams that are no longer configured: should one come back, its rows are compared."""
    gone = sorted(set(bus.streams()) - configured)
    return [Note(stream, KIND, _AWAY) for stream in gone if _load_notes(bus, stream)[-1:] != [_AWAY]]


def reading_owed(bus: Bus, stream: str, reload: Reload) -> Note:
    """Noted when a reading came while the stream stood still: at the next start it is made again."""
    return Note(stream, KIND, _spell(Load(f"owed-{len(_load_notes(bus, stream))}", reload), 1))


def backfill(bus: Bus, stream: str, where: str | None) -> Note:
    """Asks for rows of the source as READ events, once more; at the source's next start."""
    state = bus.streams()[stream]
    condition = "" if where is None else f" {json.dumps(where)}"
    return Note(stream, KIND, f"backfill-{len(_load_notes(bus, stream))} {_BACKFILL} {max(state.epoch, 1)}{condition}")


def repair(bus: Bus, declaration: Declaration) -> tuple[Note, ...]:
    """Asks for a comparison of all rows with the stream, because changes were lost."""
    stream = declaration.contract.stream
    load = _compare(f"repair-{len(_load_notes(bus, stream))}", declaration)
    text = "changes were lost before they were captured; all rows were compared with the stream"
    gaps = _gaps(stream, load) or (Note(stream, "gap", text),)
    return Note(stream, KIND, _spell(load, bus.streams()[stream].epoch + 1)), *gaps


def _wanted(
    bus: Bus, state: StreamState, declaration: Declaration, config: StreamConfig, texts: list[str]
) -> Load | None:
    """A load that this start asks for and no earlier one did. A stream that is empty needs none.

    A source without a position carries out the load that was noted last, whichever it is.
    """
    if not state.head and not texts:
        return None
    if _before_backfills(texts) == _AWAY:
        return _compare(f"return-{len(texts)}", declaration)
    unplaced = bus.position(declaration.source) is None and (not texts or _is_backfill(texts[-1]))
    if state.source != declaration.source or unplaced:
        return _compare(f"switch-{len(texts)}", declaration)
    if state.fingerprint != declaration.fingerprint and config.on_mapping_change == "rebuild":
        return Load(f"rebuild-{len(texts)}", Reload.REBUILD)
    return None


def _compare(token: str, declaration: Declaration) -> Load:
    """Rows that cannot be compared, for want of a key, are not read again: only what changes from now on."""
    keyed = bool(declaration.contract.key)
    return Load(token, Reload.DIFFERENCE if keyed else None, skip=not keyed)


def _gaps(stream: str, load: Load) -> tuple[Note, ...]:
    text = "it was captured otherwise, or not at all, and without a key its rows cannot be compared: what happened then"
    return (Note(stream, "gap", f"{text} is not in the stream"),) if load.skip else ()


def _mapping_notes(state: StreamState, declaration: Declaration) -> tuple[Note, ...]:
    if state.fingerprint == declaration.fingerprint:
        return ()
    return (Note(state.stream, "mapping", f"mapping {declaration.fingerprint} holds from here"),)


def _load_notes(bus: Bus, stream: str) -> list[str]:
    return [placed.note.text for placed in bus.notes(stream) if placed.note.kind == KIND]


def _newest(texts: list[str], first: Load) -> tuple[Load, int]:
    """The load that was noted last. A backfill replaces nothing: what it was asked for behind is `earlier`."""
    if not texts:
        return first, 1
    backfills = list(itertools.takewhile(_is_backfill, reversed(texts)))[::-1]
    before = _before_backfills(texts)
    begun = first if before is None else _parse(before)[0]
    *earlier, load = (begun, *(_parse(text)[0] for text in backfills))
    return dataclasses.replace(load, earlier=tuple(earlier)), _parse(texts[-1])[1]


def _before_backfills(texts: list[str]) -> str | None:
    return next((text for text in reversed(texts) if not _is_backfill(text)), None)


def _spell(load: Load, epoch: int) -> str:
    return f"{load.token} {load.reload.value if load.reload else 'skip'} {epoch}"


def _is_backfill(text: str) -> bool:
    return text.split()[1] == _BACKFILL


def _parse(text: str) -> tuple[Load, int]:
    token, how, epoch, *where = text.split(" ", 3)
    if how == _BACKFILL:
        return Load(token, where=json.loads(where[0]) if where else None), int(epoch)
    load = Load(token, skip=True) if how == "skip" else Load(token, Reload(how))
    return load, int(epoch)
