"""The base of a profile's sections, and types of their values: precisions by kind, byte counts, bounds, globs. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationInfo
from pydantic import WithJsonSchema as Schema

from turbort.errors import nearest
from turbort.precision import PRECISIONS, Precision
from turbort.units import Bound, exact_bytes, parse_bytes


class Section(BaseModel):
    """Base of every part of a profile: immutable, no unknown keys, no silent conversions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


STAGES = ("text", "dit", "vae")
_WORD = {"type": "string", "minLength": 1}
_SIZE = r"\d{1,15}(\.\d{1,6})?\s*([KkMmGgTt][Ii]?)?[Bb]"


def table_of(info: ValidationInfo) -> Mapping[str, Precision]:
    """The precisions in force: the built-in table, or the one with the plugins' that the reader passes in."""
    table: Mapping[str, Precision] = (info.context or {}).get("precisions", PRECISIONS)
    return table


def not_one_of(value: Any, allowed: Iterable[str]) -> ValueError:
    """An error that lists what is allowed, the nearest spelling first."""
    names = list(allowed)
    close = nearest(value, names, 1) if isinstance(value, str) else []
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ValueError(f"{value!r} is not one of {', '.join(names)}{hint}")


def _precision(*kinds: str, also: tuple[str, ...] = ()) -> Any:
    """A precision of one of these kinds (or a word of `also`), as an annotated string."""

    def known(value: Any, info: ValidationInfo) -> Any:
        allowed = [*also, *(row.name for row in table_of(info).values() if row.kind in kinds)]
        if not isinstance(value, str) or value not in allowed:
            raise not_one_of(value, allowed)
        return value

    names = [*also, *(row.name for row in PRECISIONS.values() if row.kind in kinds)]
    return Annotated[str, BeforeValidator(known), Schema({"enum": names})]


def _bytes(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("must be a number with a unit, such as 40GiB")
    return parse_bytes(value)


def _bound(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError('must be a bound such as ">=32GiB"')
    return Bound.parse(value)


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _offload(value: Any) -> Any:
    if isinstance(value, str):
        if value not in ("auto", "none"):
            raise not_one_of(value, ("auto", "none", f"a list of {', '.join(STAGES)}"))
        return value
    if not isinstance(value, tuple):
        raise ValueError(f"must be auto, none or a list of {', '.join(STAGES)}")
    for stage in value:
        if not isinstance(stage, str) or stage not in STAGES:
            raise not_one_of(stage, STAGES)
    return value


def _scales(value: Any) -> Any:
    if isinstance(value, str):
        if value not in ("token", "time"):
            raise not_one_of(value, ("token", "time", "a list of globs on the paths of linears"))
        return value
    if not isinstance(value, (tuple, list)) or not value or not all(isinstance(glob, str) and glob for glob in value):
        raise ValueError("must be token, time or a list of globs on the paths of linears, such as [blocks.*.ffn.2]")
    return tuple(value)


def _capture(value: Any) -> Any:
    if value != "auto" and not isinstance(value, bool):
        raise not_one_of(value, ("auto", "true", "false"))
    return value


if TYPE_CHECKING:
    Float: TypeAlias = str
    Attention: TypeAlias = str
    Linear: TypeAlias = str
    AnyPrecision: TypeAlias = str
    CachePrecision: TypeAlias = str
else:
    Float = _precision("float")
    Attention = _precision("float", "attention")
    Linear = _precision("float", "linear")
    AnyPrecision = _precision("float", "linear", "attention")
    CachePrecision = _precision("float", "attention", also=("none",))
Bytes = Annotated[
    int,
    BeforeValidator(_bytes),
    Field(gt=0),
    PlainSerializer(exact_bytes),
    Schema({"type": "string", "pattern": rf"^\s*{_SIZE}\s*$"}),
]
MemoryBound = Annotated[
    Bound,
    BeforeValidator(_bound),
    PlainSerializer(str),
    Schema({"type": "string", "pattern": rf"^\s*(>=|<=|>|<)?\s*{_SIZE}\s*(,\s*(>=|<=|>|<)?\s*{_SIZE}\s*)*$"}),
]
Globs = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(_one_or_many),
    Field(min_length=1),
    Schema({"anyOf": [_WORD, {"type": "array", "minItems": 1, "items": _WORD}]}),
]
Offload = Annotated[
    str | tuple[str, ...],
    BeforeValidator(_offload),
    Schema({"anyOf": [{"enum": ["auto", "none"]}, {"type": "array", "uniqueItems": True, "items": {"enum": list(STAGES)}}]}),
]
Scales = Annotated[
    str | tuple[str, ...],
    BeforeValidator(_scales),
    Schema({"anyOf": [{"enum": ["token", "time"]}, {"type": "array", "minItems": 1, "items": _WORD}]}),
]
Capture = Annotated[bool | str, BeforeValidator(_capture), Schema({"enum": ["auto", True, False]})]
Share = Annotated[float, Field(ge=0, le=1)]
Edge = Annotated[int, Field(ge=16, le=1024, multiple_of=16)]
MAX_BATCH = 64
Count = Annotated[int, Field(ge=1, le=MAX_BATCH)]
