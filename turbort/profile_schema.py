"""The JSON schema of profiles, for editors: `python -m turbort.profile_schema > profiles/schema.json`."""

from __future__ import annotations

import json
from typing import Any

from turbort.profile_model import Profile


def profile_schema() -> dict[str, Any]:
    """What a profile file may hold; `extends` is resolved by the reader, so only files have it."""
    schema = Profile.model_json_schema(by_alias=True)
    schema["required"] = [key for key in schema["required"] if key not in ("name", "target")]
    schema["anyOf"] = [{"required": ["target"]}, {"required": ["extends"]}]
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "Name or path of one profile whose values apply where this one is silent.",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "turbort hardware profile", **schema}


def schema_text() -> str:
    """The schema as it is stored in `profiles/schema.json`."""
    return json.dumps(profile_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
