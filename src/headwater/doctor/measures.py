"""Sizes and durations in words."""

from __future__ import annotations


def size(count: float) -> str:
    """`0 bytes`, `12 kB`, `3.4 GB`: powers of 1024, as PostgreSQL's settings mean them."""
    if count < 1024:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TB"


def lasting(seconds: float) -> str:
    """`40 minutes`, `9 hours`, `3 days`; more than ten years says nothing more."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return "more than ten years" if seconds > 3650 * 86400 else f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} seconds"
