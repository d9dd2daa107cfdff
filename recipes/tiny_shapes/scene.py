"""What a clip shows: attributes, scenes, and the split between training and held-out scenes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SHAPES = ("circle", "square", "triangle", "star")
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
TRAVELS = ("right", "left", "up", "down", "up_right", "up_left", "down_right", "down_left")
MOTIONS = (*TRAVELS, "bounce_vertical", "bounce_horizontal", "rotate", "grow", "shrink")

TWO_OBJECT_SHARE = 0.35
TRAINED_TWO_SHARE = 0.65  # in training data: two objects are harder, and every clip of two teaches each of them
HELD_OUT_TRIPLES = 24  # about 8 % of the 306 valid (shape, color, motion) triples
HELD_OUT_PAIR_PERCENT = 6


@dataclass(frozen=True, order=True)
class Object:
    """One coloured shape and the one thing it does during the clip."""

    shape: str
    color: str
    motion: str

    def __post_init__(self) -> None:
        if self.shape not in SHAPES or self.color not in COLORS or self.motion not in MOTIONS:
            raise ValueError(f"unknown attribute in {(self.shape, self.color, self.motion)}")
        if not is_visible(self.shape, self.motion):
            raise ValueError("a circle that rotates looks still")


@dataclass(frozen=True)
class Scene:
    """One or two objects; two objects never share a colour."""

    objects: tuple[Object, ...]

    def __post_init__(self) -> None:
        if len(self.objects) not in (1, 2):
            raise ValueError(f"a scene has one or two objects, got {len(self.objects)}")
        if len({o.color for o in self.objects}) != len(self.objects):
            raise ValueError("two objects must have different colours")


def is_visible(shape: str, motion: str) -> bool:
    """Whether `shape` doing `motion` can be told from a still shape."""
    return not (shape == "circle" and motion == "rotate")


@lru_cache(maxsize=1)
def all_single_scenes() -> tuple[Scene, ...]:
    """Every valid scene of one object, in a fixed order (306 of them)."""
    return tuple(
        Scene((Object(s, c, m),)) for s in SHAPES for c in COLORS for m in MOTIONS if is_visible(s, m)
    )


def _hash(key: str) -> int:
    """A 64-bit hash that is the same in every process, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def _key(obj: Object) -> str:
    return f"{obj.shape}|{obj.color}|{obj.motion}"


@lru_cache(maxsize=1)
def held_out_objects() -> tuple[Object, ...]:
    """The triples that training never sees, picked by hash order.

    At most one colour is held out per (shape, motion) and one shape per (color, motion), and at
    most two motions per (shape, color), so every pair of attributes stays in training.
    """
    chosen: list[Object] = []
    for obj in sorted((s.objects[0] for s in all_single_scenes()), key=lambda o: _hash("triple|" + _key(o))):
        shape_motion = sum((o.shape, o.motion) == (obj.shape, obj.motion) for o in chosen)
        color_motion = sum((o.color, o.motion) == (obj.color, obj.motion) for o in chosen)
        shape_color = sum((o.shape, o.color) == (obj.shape, obj.color) for o in chosen)
        if shape_motion < 1 and color_motion < 1 and shape_color < 2:
            chosen.append(obj)
        if len(chosen) == HELD_OUT_TRIPLES:
            break
    return tuple(chosen)


@lru_cache(maxsize=1)
def _held_out_set() -> frozenset[Object]:
    return frozenset(held_out_objects())


def _is_held_out_pair(scene: Scene) -> bool:
    """Whether this unordered pair of objects is one of the held-out pairs."""
    key = "pair|" + "&".join(_key(o) for o in sorted(scene.objects))
    return len(scene.objects) == 2 and _hash(key) % 100 < HELD_OUT_PAIR_PERCENT


def is_held_out(scene: Scene) -> bool:
    """Whether the training sampler must never draw `scene`."""
    return any(o in _held_out_set() for o in scene.objects) or _is_held_out_pair(scene)


def _draw_object(rng: np.random.Generator, taken: str | None = None) -> Object:
    """A uniform valid object whose colour is not `taken`."""
    while True:
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        color = COLORS[int(rng.integers(len(COLORS)))]
        motion = MOTIONS[int(rng.integers(len(MOTIONS)))]
        if color != taken and is_visible(shape, motion):
            return Object(shape, color, motion)


def _draw_scene(rng: np.random.Generator, two: bool) -> Scene:
    first = _draw_object(rng)
    return Scene((first, _draw_object(rng, first.color)) if two else (first,))


def sample_scene(rng: np.random.Generator, two_share: float = TWO_OBJECT_SHARE) -> Scene:
    """A training scene: 65 % one object, 35 % (`two_share`) two, never a held-out one."""
    two = bool(rng.random() < two_share)  # decided once, so that rejection keeps the mix
    while True:
        scene = _draw_scene(rng, two)
        if not is_held_out(scene):
            return scene


def held_out_scenes(n: int = 200, seed: int = 0) -> list[Scene]:
    """`n` evaluation scenes that `sample_scene` never returns: 65 % one object, 35 % two, shuffled.

    The single-object ones walk the held-out triples evenly (they repeat once `n` is large). Of the
    two-object ones, half contain a held-out triple and half are held-out pairs of known triples.
    """
    rng = np.random.default_rng(seed)
    pairs = round(TWO_OBJECT_SHARE * n)
    order = [held_out_objects()[i] for i in rng.permutation(HELD_OUT_TRIPLES)]
    scenes = [Scene((order[i % len(order)],)) for i in range(n - pairs)]
    for i in range(pairs):
        if i % 2 == 0:
            known = order[(i // 2) % len(order)]
            both = [known, _draw_object(rng, known.color)]
            scenes.append(Scene(tuple(both if rng.random() < 0.5 else both[::-1])))
        else:
            scene = _draw_scene(rng, two=True)
            while not _is_held_out_pair(scene) or any(o in _held_out_set() for o in scene.objects):
                scene = _draw_scene(rng, two=True)
            scenes.append(scene)
    return [scenes[i] for i in rng.permutation(n)]
