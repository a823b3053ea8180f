"""What a stream promises against what its path gives: the weakest hop decides."""

from __future__ import annotations

from headwater.config import StreamConfig
from headwater.contracts.model import Contract
from headwater.errors import PromiseError
from headwater.protocols import Guarantee

RANKS: dict[str, tuple[str, ...]] = {
    "delivery": ("exactly_once", "at_least_once", "best_effort"),
    "changes": ("every", "latest"),
    "deletes": ("seen", "unseen"),
}
"""From strongest to weakest."""


def effective(*hops: Guarantee) -> Guarantee:
    """The guarantee of a path of several hops, with what each of them cannot see."""
    return Guarantee(
        delivery=_weakest("delivery", [hop.delivery for hop in hops]),
        changes=_weakest("changes", [hop.changes for hop in hops]),
        deletes=_weakest("deletes", [hop.deletes for hop in hops]),
        notes=tuple(note for hop in hops for note in hop.notes),
    )


def broken_promises(contract: Contract, given: Guarantee) -> list[str]:
    """One sentence for each promise of the contract that the path cannot keep."""
    return [
        f"it promises `{name}: {getattr(contract, name)}`, its path gives `{getattr(given, name)}`"
        for name, ranks in RANKS.items()
        if ranks.index(getattr(contract, name)) < ranks.index(getattr(given, name))
    ]


def refuse_broken_promises(contract: Contract, given: Guarantee) -> None:
    if broken := broken_promises(contract, given):
        reasons = " ".join(given.notes)
        raise PromiseError(
            f"contract {contract.stream} v{contract.version}: " + "; ".join(broken),
            hint=f"{reasons} Choose a stronger pattern (`headwater doctor` shows which are possible), or promise less.",
        )


def comparing(config: StreamConfig) -> str | None:
    """The setting by which a capture compares all rows with the whole stream, again and again; None if none does."""
    if config.pattern != "query":
        return None
    if config.cursor is None:
        return "pattern: query` without a `cursor"
    return "reconcile_deletes" if config.reconcile_deletes is not None else None


def broken_retention(contract: Contract, config: StreamConfig) -> str | None:
    """Why the capture cannot live with what the contract keeps, in one sentence."""
    setting = comparing(config)
    if setting is None or contract.keeps_history:
        return None
    dropping = "age" if contract.retention.age is not None else "until_consumed"
    return f"`{setting}` compares all rows with the whole stream, and `retention: {dropping}` drops events of it"


RETENTION_HINT = "Keep what a comparison needs (`retention: forever` or `compacted`), or capture by trigger or log."


def refuse_broken_retention(contract: Contract, config: StreamConfig) -> None:
    if reason := broken_retention(contract, config):
        raise PromiseError(f"contract {contract.stream} v{contract.version}: {reason}", hint=RETENTION_HINT)


def _weakest(name: str, values: list[str]) -> str:
    return max(values, key=RANKS[name].index)
