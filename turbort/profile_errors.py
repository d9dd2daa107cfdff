"""Turns pydantic's complaints about a profile into sentences with file, line and the nearest valid name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from turbort.errors import InputError, nearest
from turbort.profile_model import Profile
from turbort.profile_yaml import Document, Loc

_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
}
_LENGTHS = {"too_short": "at least {min_length}", "too_long": "at most {max_length}"}
FIX = "correct the line; `turbort profiles validate FILE` checks it again, `turbort profiles show cpu` shows an example"


def explain(error: ValidationError, document: Document) -> InputError:
    """One InputError: the first complaint as the message, further ones listed below it."""
    # One bad word may be reported for both ends of a range: dict.fromkeys keeps the first of equal sentences.
    # A misspelt key comes first, because what is missing is often only that key's right name.
    items = sorted(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
    found = list(dict.fromkeys(_sentence(item, document) for item in items))
    if len(found) == 1:
        return InputError(found[0], fix=FIX)
    return InputError(f"{found[0]} (and {len(found) - 1} more)", tried=found[1:], fix=FIX)


def _sentence(item: Any, document: Document) -> str:
    loc: Loc = tuple(item["loc"])
    kind, value, context = item["type"], item.get("input"), item.get("ctx", {})
    where = document.where(loc)
    path = ".".join(str(part) for part in document.known(loc))
    if kind == "extra_forbidden":
        return f"{where}: unknown key {_short(loc[-1])}{_place(loc)}{_keys(loc)}"
    if kind == "missing" and isinstance(loc[-1], int):
        return f"{where}: {path}: has too few entries"
    if kind == "missing":
        return f"{where}: key {str(loc[-1])!r} is missing{_place(loc)}"
    if kind == "value_error":
        return f"{where}: {path}: {context.get('error', item['msg'])}"
    if kind == "literal_error":
        return f"{where}: {path}: {_short(value)} is not {context['expected']}{_near(value, context['expected'])}"
    if kind in _KINDS:
        return f"{where}: {path}: {_short(value)} is not {_KINDS[kind]}"
    if kind in _LENGTHS:
        return f"{where}: {path}: has {context['actual_length']} entries, must have {_LENGTHS[kind].format(**context)}"
    if kind == "string_pattern_mismatch":
        return f"{where}: {path or loc[-1]}: {_short(value)} has characters that are not allowed here"
    message = item["msg"].removeprefix("Input should be ").removeprefix("Input ")
    return f"{where}: {path}: {_short(value)} must be {message}"


def _short(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _near(value: Any, expected: str) -> str:
    words = [word for word in expected.split("'") if word.replace("-", "").isalnum()]
    close = nearest(value, words, 1) if isinstance(value, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""


def _place(loc: Loc) -> str:
    return f" in {'.'.join(str(part) for part in loc[:-1])}" if len(loc) > 1 else ""


def _keys(loc: Loc) -> str:
    """What could stand in place of an unknown key: the nearest name first, then all of them."""
    known = _section_keys(loc[:-1])
    close = nearest(str(loc[-1]), known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known keys: {', '.join(known)})" if known else hint


def _section_keys(loc: Loc) -> list[str]:
    """Names of the keys of the section at `loc`."""
    section: Any = Profile
    for part in loc:
        fields: Mapping[str, Any] = section.model_fields
        section = next((kind for kind in _models(fields[str(part)].annotation)), None) if str(part) in fields else None
        if section is None:
            return []
    names = [field.alias or name for name, field in section.model_fields.items()]
    return [*names, "extends"] if section is Profile else names


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models inside an annotation such as `Section | None`."""
    return [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and issubclass(kind, BaseModel)]
