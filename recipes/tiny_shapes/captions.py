"""The caption language: scenes to English, English to scenes, and one pattern for all of it.

    caption   := clause [ join clause ] [ "." ]
    clause    := article color shape phrase      (a circle never takes a rotate phrase)
    article   := "a" | "one" | "the"
    join      := [","] ( "and" | "while" )       (the two colours differ)

A phrase is a head ("moves", "is moving", ...) and a tail ("right", "to the right", ...).
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np

from recipes.tiny_shapes.scene import COLORS, MOTIONS, SHAPES, Object, Scene, is_visible

ARTICLES = ("a", "one", "the")
JOINS = ("and", "while")
CANONICAL_SHARE = 0.4


def _forms(*verbs: tuple[str, str]) -> tuple[str, ...]:
    """("moves", "moving") -> moves, is moving, moving."""
    return tuple(form for finite, ing in verbs for form in (finite, f"is {ing}", ing))


_TRAVEL = (
    *_forms(("moves", "moving"), ("slides", "sliding"), ("travels", "travelling"), ("goes", "going")),
    *("is traveling", "traveling"),
)
_BOUNCE = _forms(("bounces", "bouncing"))
_ROTATE = _forms(("rotates", "rotating"), ("spins", "spinning"), ("turns", "turning"))
_BECOME = _forms(("gets", "getting"), ("becomes", "becoming"))


def _diagonal(vertical: str, edge: str, side: str) -> tuple[str, ...]:
    return (
        f"diagonally {vertical} and {side}",
        f"diagonally {vertical} and to the {side}",
        f"{vertical} and {side}",
        f"{vertical} and to the {side}",
        f"diagonally to the {edge} {side}",
        f"to the {edge} {side}",
        f"toward the {edge} {side}",
    )


# motion -> rows of (heads, tails); the first head with the first tail is the canonical phrase.
_Rows = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
_PHRASES: dict[str, _Rows] = {
    "right": ((_TRAVEL, ("right", "to the right", "from left to right")),),
    "left": ((_TRAVEL, ("left", "to the left", "from right to left")),),
    "up": ((_TRAVEL, ("up", "upward", "upwards", "from bottom to top")),),
    "down": ((_TRAVEL, ("down", "downward", "downwards", "from top to bottom")),),
    "up_right": ((_TRAVEL, _diagonal("up", "top", "right")),),
    "up_left": ((_TRAVEL, _diagonal("up", "top", "left")),),
    "down_right": ((_TRAVEL, _diagonal("down", "bottom", "right")),),
    "down_left": ((_TRAVEL, _diagonal("down", "bottom", "left")),),
    "bounce_vertical": ((_BOUNCE, ("up and down", "", "vertically")),),
    "bounce_horizontal": (
        (_BOUNCE, ("left and right", "side to side", "from side to side", "horizontally")),
    ),
    "rotate": ((_ROTATE, ("", "clockwise", "in place")),),
    "grow": (
        (_forms(("grows", "growing")), ("", "larger", "bigger")),
        (_BECOME, ("larger", "bigger")),
    ),
    "shrink": ((_forms(("shrinks", "shrinking")), ("",)), (_BECOME, ("smaller",))),
}


@cache
def motion_phrases(motion: str) -> tuple[str, ...]:
    """Every verb phrase for `motion`, the canonical one first."""
    return tuple(f"{h} {t}".strip() for heads, tails in _PHRASES[motion] for h in heads for t in tails)


@lru_cache(maxsize=1)
def _motion_of() -> dict[str, str]:
    return {phrase: motion for motion in MOTIONS for phrase in motion_phrases(motion)}


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """A caption of `scene`; without `rng` the canonical one ("a red circle moves right").

    With `rng`, 40 % are canonical and the rest draw article, verb phrase and join word freely.
    """
    if rng is None or rng.random() < CANONICAL_SHARE:
        return " and ".join(f"a {o.color} {o.shape} {motion_phrases(o.motion)[0]}" for o in scene.objects)
    clauses = []
    for obj in scene.objects:
        article = ARTICLES[int(rng.choice(3, p=(0.8, 0.1, 0.1)))]
        phrases = motion_phrases(obj.motion)
        phrase = phrases[int(rng.integers(len(phrases)))]
        clauses.append(f"{article} {obj.color} {obj.shape} {phrase}")
    join = (" and ", " while ", ", and ", ", while ")[int(rng.integers(4))]
    return join.join(clauses)


def _parse_clause(words: list[str]) -> Object | None:
    """One clause as words -> the object it describes."""
    if len(words) < 4 or words[0] not in ARTICLES or words[1] not in COLORS or words[2] not in SHAPES:
        return None
    motion = _motion_of().get(" ".join(words[3:]))
    if motion is None or not is_visible(words[2], motion):
        return None
    return Object(words[2], words[1], motion)


def parse(text: str) -> Scene | None:
    """The scene that `text` describes, or None when it is outside the caption language."""
    text = text.lower().strip().removesuffix(".")
    words = text.replace(",", " , ").split()
    whole = _parse_clause(words)
    if whole is not None:
        return Scene((whole,))
    # Phrases contain "and" themselves, so every join word is tried as the border of the clauses.
    for i in range(1, len(words)):
        if words[i] not in JOINS:
            continue
        first = _parse_clause(words[: i - 1] if words[i - 1] == "," else words[:i])
        second = _parse_clause(words[i + 1 :])
        if first is not None and second is not None and first.color != second.color:
            return Scene((first, second))
    return None


def _any(options: tuple[str, ...]) -> str:
    """Alternation of word sequences, longest first; any run of white space may separate words."""
    ordered = sorted(options, key=len, reverse=True)
    return "(?:" + "|".join(r"\s+".join(o.split()) for o in ordered) + ")"


def _phrase_pattern(motions: tuple[str, ...]) -> str:
    """Pattern for all phrases of `motions`: heads shared by several motions are written once."""
    tails_of: dict[tuple[str, ...], tuple[str, ...]] = {}
    for motion in motions:
        for heads, tails in _PHRASES[motion]:
            tails_of[heads] = tails_of.get(heads, ()) + tails
    parts = []
    for heads, tails in tails_of.items():
        spoken = tuple(t for t in tails if t)
        rest = rf"\s+{_any(spoken)}" if spoken else ""
        parts.append(_any(heads) + (f"(?:{rest})?" if "" in tails else rest))
    return "(?:" + "|".join(parts) + ")"


@lru_cache(maxsize=1)
def grammar_pattern() -> str:
    r"""One regular expression that matches a text exactly when `parse` returns a scene.

    It ignores case, allows any white space between words and a trailing period. `\1` is the first
    colour: the second clause must name another one. Group 1 is the only capturing group.
    """
    still_circle = tuple(m for m in MOTIONS if is_visible("circle", m))
    turning = tuple(s for s in SHAPES if is_visible(s, "rotate"))
    # The rotate phrases are written apart so that the long list of the others appears once a clause.
    act = (
        rf"(?:{_any(SHAPES)}\s+{_phrase_pattern(still_circle)}"
        rf"|{_any(turning)}\s+{_phrase_pattern(('rotate',))})"
    )
    article, color = _any(ARTICLES), _any(COLORS)
    first = rf"{article}\s+({color})\s+{act}"
    second = rf"{article}\s+(?!\1\b){color}\s+{act}"
    join = rf"(?:\s*,\s*|\s+){_any(JOINS)}\s+"
    return rf"(?i)^\s*{first}(?:{join}{second})?\s*(?:\.\s*)?$"


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Every word of the language, sorted."""
    phrases = (p for m in MOTIONS for p in motion_phrases(m))
    words = {w for p in phrases for w in p.split()}
    return tuple(sorted(words.union(ARTICLES, JOINS, COLORS, SHAPES)))
