"""What a decoder of `pgoutput` knows of tables, as objects and as the arrays that its loops look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwater import native
from headwater.wire.pgoutput_columns import FIXED, FORMATS, VARIABLE
from headwater.wire.pgoutput_messages import Relation
from headwater.wire.pgoutput_ready import Recipe

Wanted = Callable[[Relation], Sequence[tuple[int, str]] | None]
Recipes = Callable[[Relation], Recipe | None]

CODES = frozenset((*FIXED, *VARIABLE, "numeric"))


class Known(NamedTuple):
    """A relation and its wanted columns: ordinals and wire codes, or None where its rows are left out."""

    relation: Relation
    wanted: tuple[tuple[int, str], ...] | None
    recipe: Recipe | None = None

    @property
    def columns(self) -> tuple[tuple[int, str], ...]:
        return self.wanted or ()

    @property
    def shape(self) -> tuple[tuple[int, str, str, int, int], ...]:
        """All that its rows look like: another column that nobody wants leaves them as they are."""
        found = self.relation.columns
        return tuple((n, code, found[n].name, found[n].oid, found[n].typmod) for n, code in self.columns)


class Tables:
    """Relations by slot, a number that a relation keeps when it changes."""

    def __init__(self, binary: bool, wanted: Wanted, recipes: Recipes | None = None) -> None:
        self.relations: dict[int, Relation] = {}
        self.known: list[Known] = []
        self._slots: dict[int, int] = {}
        self._binary = binary
        self._wanted = wanted
        self._recipes = recipes
        self._arrays: tuple[memoryview, ...] | None = None

    def described(self, relation: Relation) -> tuple[Known, bool]:
        """A relation with what is wanted of it, and whether rows of it look as they did before."""
        wanted = self._columns(relation)
        recipe = self._recipes(relation) if wanted and self._recipes is not None else None
        known = Known(relation, wanted, recipe)
        slot = self._slots.get(relation.oid)
        return known, slot is None or self.known[slot].shape == known.shape

    def put(self, known: Known) -> None:
        relation = known.relation
        slot = self._slots.setdefault(relation.oid, len(self.known))
        self.known[slot : slot + 1] = [known]
        self.relations[relation.oid] = relation
        self._arrays = None

    def arrays(self) -> tuple[memoryview, ...]:
        """As `Scan.know` takes them."""
        if self._arrays is None:
            self._arrays = tuple(array.data for array in self._described())
        return self._arrays

    def _columns(self, relation: Relation) -> tuple[tuple[int, str], ...] | None:
        asked = self._wanted(relation)
        if asked is None:
            return None
        wanted = tuple((ordinal, code if self._binary else "") for ordinal, code in asked)
        ordinals = {ordinal for ordinal, _ in wanted}
        if len(ordinals) != len(wanted) or not ordinals <= set(range(len(relation.columns))):
            raise ValueError(f"{relation} has {len(relation.columns)} columns; wanted are {[o for o, _ in wanted]}")
        if strange := {code for _, code in wanted} - CODES:
            raise ValueError(f"{relation}: there are no wire codes {sorted(strange)}")
        return wanted

    def _described(self) -> tuple[NDArray[np.int64], ...]:
        oids = np.array(sorted(self._slots), np.int64)
        slots = np.array([self._slots[oid] for oid in sorted(self._slots)], np.int64)
        tables = np.empty((len(self.known), 3), np.int64)
        targets = [np.empty(0, np.int64)]
        formats = [np.empty(0, np.int64)]
        first = 0
        for slot, (relation, wanted, _) in enumerate(self.known):
            width = len(relation.columns)
            tables[slot] = width, first, -1 if wanted is None else len(wanted)
            targets.append(np.full(width, -1, np.int64))
            formats.append(np.zeros(width, np.int64))
            for place, (ordinal, code) in enumerate(wanted or ()):
                targets[-1][ordinal] = place
                formats[-1][ordinal] = FORMATS.get(code, ord("b"))
            first += width
        return oids, slots, tables, np.concatenate(targets), np.concatenate(formats)


class Loops(NamedTuple):
    """The modules of the loops over messages and over values."""

    messages: ModuleType
    values: ModuleType

    @classmethod
    def chosen(cls) -> Loops:
        """As `HEADWATER_NATIVE` says."""
        return cls(*map(native.either, NAMES))

    @classmethod
    def uncompiled(cls) -> Loops:
        return cls(*map(native.uncompiled, NAMES))


NAMES = ("headwater.wire.pgoutput_cy", "headwater.wire.pgoutput_values_cy")
