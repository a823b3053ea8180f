"""Decimals as plain text, at every scale: Arrow's own cast turns to exponents below 0.000001."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def text(array: pa.Array) -> pa.Array:
    """`-1.23E-8` of scale 10 becomes `-0.0000000123`: its digits, padded, are the unscaled number."""
    plain = array.cast(pa.string())
    if array.type.scale < 6 or not pc.any(pc.match_substring(plain, "E")).as_py():
        return plain
    digits = pc.replace_substring_regex(plain, r"^-|\.|E.*$", "")
    sign = pc.if_else(pc.starts_with(plain, "-"), "-0.", "0.")
    small = pc.binary_join_element_wise(sign, pc.utf8_lpad(digits, array.type.scale, "0"), "")
    return pc.if_else(pc.match_substring(plain, "E"), small, plain)
