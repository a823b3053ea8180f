"""Whether the log says of old rows what a stream needs: by its own word for each table, at each place of the log.

A Relation message marks the columns of the replica identity as they were when the changes behind it were made. That of
a partition stands right behind the one of its root, and it is the partition's that counts.
"""

from __future__ import annotations

from collections.abc import Mapping

from headwater.sources.log_postgres.targets import Target
from headwater.wire.pgoutput import Relation


class Identities:
    """`untold`: by oid the tables whose changes cannot be trusted any more, and why. `strange`: partitions that are not
    known, each with its root's oid. `owners`: every table that is described with its own columns (plain ones,
    partitions) -> the captured one that it is, or belongs to.
    """

    def __init__(self, targets: Mapping[int, Target]) -> None:
        self._targets = targets
        self.owners = {oid: oid for oid, target in targets.items() if not target.partitioned}
        self.untold: dict[int, str] = {}
        self.strange: dict[int, int] = {}
        self._root: Relation | None = None

    def heard(self, relation: Relation) -> None:
        """For each description of a table, in the log's sequence."""
        root, self._root = self._root, None
        owner = self.owners.get(relation.oid)
        if owner is not None:
            if owner in self._targets:
                self._check(relation, owner)
        elif relation.oid in self._targets:
            self._root = relation
        elif root is not None and _names(root) == _names(relation):
            self.strange[relation.oid] = root.oid

    def _check(self, relation: Relation, owner: int) -> None:
        """Without any identity there are only inserts: the server refuses updates and deletes."""
        told = {column.name for column in relation.columns if column.key}
        missing = self._targets[owner].needed - told
        if told and missing:
            self.untold.setdefault(
                owner,
                f"table {self._targets[owner].id}: its replica identity became `{'`, `'.join(sorted(told))}`, so the "
                f"log does not say `{'`, `'.join(sorted(missing))}` of rows that were changed or deleted",
            )

    def settle(self) -> None:
        """Of the partitions that are not known even now, nobody can say what became of their rows."""
        for oid, root in self.strange.items():
            if oid not in self.owners and root in self._targets:
                text = f"table {self._targets[root].id}: a partition was written to that is there no longer"
                self.untold.setdefault(root, text)
        self.strange.clear()


def _names(relation: Relation) -> frozenset[str]:
    return frozenset(column.name for column in relation.columns)
