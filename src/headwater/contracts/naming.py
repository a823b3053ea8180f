"""Names as contracts write them: lower-case letters, digits and `_`, a letter first, 63 characters at the most."""

from __future__ import annotations

import re
import unicodedata

LONGEST = 63


def snake(name: str) -> str:
    """A name as contracts write it: `courseOverview` and `Course-Overview` become `course_overview`, `Événement`
    becomes `evenement`.
    """
    name = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    text = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "unnamed"
    return cut(text if text[0].isalpha() else f"n_{text}")


def cut(name: str, ending: str = "") -> str:
    """`name` and `ending`, as long as a name may be at the most; the ending stays whole."""
    return name[: LONGEST - len(ending)].rstrip("_") + ending


def field_name(column: str) -> str:
    """A contract field's name; two names are Headwater's own."""
    name = snake(column)
    return f"{name}_value" if name in ("before", "type") else name
