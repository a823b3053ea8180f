"""JSON Schemas for editors: what they take and refuse, and golden files of the whole.

`HEADWATER_UPDATE_GOLDEN=1` writes the golden files again, to be reviewed as a difference.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from headwater.errors import ConfigError
from headwater.jsonschema import json_schema

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("kind", ["config", "contract", "vocabulary"])
def test_golden_files(kind: str) -> None:
    path = GOLDEN / f"{kind}.schema.json"
    text = json.dumps(json_schema(kind), indent=2, ensure_ascii=False) + "\n"
    if os.environ.get("HEADWATER_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


def resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    name = str(node.get("$ref", "")).removeprefix("#/$defs/")
    found: dict[str, Any] = schema["$defs"][name] if name else node
    return found


def test_short_spellings_are_allowed() -> None:
    schema = json_schema("config")
    (sources,) = schema["properties"]["sources"]["patternProperties"].values()
    assert resolved(schema, sources)["anyOf"][0]["type"] == "string"
    contract = json_schema("contract")
    assert resolved(contract, {"$ref": "#/$defs/Retention"})["anyOf"][0] == {"enum": ["forever", "compacted"]}


def test_durations_may_be_text_and_numbers_may_be_variables() -> None:
    stream = json_schema("config")["$defs"]["StreamConfig"]["properties"]
    kinds = json.dumps(stream["every"])
    assert '"type": "number"' in kinds
    assert "(ms|s|m|h|d|w)" in kinds
    assert {"$ref": "#/$defs/Variable"} in stream["page_size"]["anyOf"]


def test_unknown_keys_are_refused_everywhere() -> None:
    for kind in ("config", "contract", "vocabulary"):
        schema = json_schema(kind)
        for definition in [schema, *schema["$defs"].values()]:
            shapes = definition.get("anyOf", [definition])
            assert all(shape["additionalProperties"] is False for shape in shapes if "properties" in shape)


def test_descriptions_are_the_docstrings() -> None:
    stream = json_schema("config")["$defs"]["StreamConfig"]["properties"]
    assert (
        stream["query"]["description"] == "Custom SQL instead of a table; `:cursor` stands for the last cursor value."
    )


def test_what_is_not_a_key_of_the_file_is_not_in_the_schema() -> None:
    assert "directory" not in json_schema("config")["properties"]


def test_an_unknown_kind() -> None:
    with pytest.raises(ConfigError, match="`configuration` has no schema"):
        json_schema("configuration")
