"""The caption language: scenes, paraphrases, the inverse parser, the pattern and the tokenizer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.tiny_shapes.captions import (
    ARTICLES,
    JOINS,
    caption,
    grammar_pattern,
    motion_phrases,
    parse,
    vocabulary,
)
from recipes.tiny_shapes.scene import (
    COLORS,
    MOTIONS,
    SHAPES,
    Object,
    Scene,
    all_single_scenes,
    held_out_objects,
    held_out_scenes,
    is_held_out,
    is_visible,
    sample_scene,
)
from recipes.tiny_shapes.tokenizer import MAX_TOKENS, build_tokenizer, save_tokenizer
from tests.properties import examples

PATTERN = re.compile(grammar_pattern())


def _matches(text: str) -> bool:
    return PATTERN.search(text) is not None


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    colors = draw(st.lists(st.sampled_from(COLORS), min_size=1, max_size=2, unique=True))
    objects = []
    for color in colors:
        shape = draw(st.sampled_from(SHAPES))
        motion = draw(st.sampled_from([m for m in MOTIONS if is_visible(shape, m)]))
        objects.append(Object(shape, color, motion))
    return Scene(tuple(objects))


def test_canonical_captions_read_as_plain_english() -> None:
    red = Object("circle", "red", "right")
    assert caption(Scene((red,))) == "a red circle moves right"
    both = Scene((Object("square", "blue", "rotate"), Object("star", "yellow", "grow")))
    assert caption(both) == "a blue square rotates and a yellow star grows"


@given(scenes(), st.integers(0, 2**32 - 1))
@examples(300)
def test_parse_inverts_every_paraphrase(scene: Scene, seed: int) -> None:
    text = caption(scene, np.random.default_rng(seed))
    assert parse(text) == scene
    assert _matches(text)
    messy = "  " + text.upper().replace(" ", " \t ") + " . "
    assert parse(messy) == scene
    assert _matches(messy)


def test_every_phrase_of_every_motion_is_understood() -> None:
    seen: dict[str, str] = {}
    for motion in MOTIONS:
        for phrase in motion_phrases(motion):
            assert seen.setdefault(phrase, motion) == motion
            text = f"the cyan star {phrase}"
            assert parse(text) == Scene((Object("star", "cyan", motion),))
            assert _matches(text)
    assert parse("a red circle bounces") == parse("a red circle bounces up and down")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a red circle rotates",
        "a red circle spins while a blue star grows",
        "a red square moves right and a red star grows",
        "a pink square moves right",
        "red square moves right",
        "a red square moves right and",
        "a red square moves right a blue star grows",
        "a red square moves right and a blue star grows and a cyan star grows",
        "a red squaremoves right",
        "a red square moves right..",
        "a red square, moves right",
        "a red square moves diagonally",
    ],
)
def test_other_texts_are_outside(text: str) -> None:
    assert parse(text) is None
    assert not _matches(text)


_WORDS = st.sampled_from([*vocabulary(), ",", "."])
_CLAUSE = st.tuples(
    st.sampled_from(ARTICLES),
    st.sampled_from(COLORS),
    st.sampled_from(SHAPES),
    st.one_of(
        st.sampled_from([p for m in MOTIONS for p in motion_phrases(m)]),
        st.lists(_WORDS, max_size=4).map(" ".join),
    ),
).map(" ".join)


@given(_CLAUSE, st.sampled_from([*JOINS, ", and", ",while", "or", ""]), st.one_of(st.just(""), _CLAUSE))
@examples(500)
def test_pattern_and_parser_accept_the_same_texts(first: str, join: str, second: str) -> None:
    text = f"{first} {join} {second}" if second else first
    assert _matches(text) == (parse(text) is not None)


def test_pattern_survives_json_and_long_hostile_input() -> None:
    assert json.loads(json.dumps(grammar_pattern())) == grammar_pattern()
    assert not _matches("a red circle moves up " + "and right " * 2000)
    assert not _matches("a red circle moves right" + " " * 5000 + "x")


def test_scene_rejects_what_cannot_be_seen_or_told_apart() -> None:
    with pytest.raises(ValueError, match="still"):
        Object("circle", "red", "rotate")
    with pytest.raises(ValueError, match="colours"):
        Scene((Object("circle", "red", "up"), Object("star", "red", "up")))
    with pytest.raises(ValueError, match="unknown"):
        Object("circle", "orange", "up")
    with pytest.raises(ValueError, match="one or two"):
        Scene(())


def test_training_never_draws_a_held_out_scene() -> None:
    rng = np.random.default_rng(0)
    drawn = [sample_scene(rng) for _ in range(4000)]
    held = set(held_out_scenes(400, seed=1))
    assert all(is_held_out(s) for s in held)
    assert not any(is_held_out(s) for s in drawn)
    assert not held.intersection(drawn)
    assert 0.62 < np.mean([len(s.objects) == 1 for s in drawn]) < 0.68


def test_held_out_scenes_are_fixed_and_mixed() -> None:
    scenes_ = held_out_scenes(200, seed=0)
    assert scenes_ == held_out_scenes(200, seed=0) != held_out_scenes(200, seed=1)
    assert len(scenes_) == 200
    assert sum(len(s.objects) == 1 for s in scenes_) == 130
    assert {s.objects[0] for s in scenes_ if len(s.objects) == 1} == set(held_out_objects())


def test_every_pair_of_attributes_stays_in_training() -> None:
    kept = [s.objects[0] for s in all_single_scenes() if not is_held_out(s)]
    assert len(all_single_scenes()) == 306
    assert len(kept) == 306 - len(held_out_objects()) == 282
    assert len({(o.shape, o.color) for o in kept}) == 24
    assert len({(o.shape, o.motion) for o in kept}) == 51
    assert len({(o.color, o.motion) for o in kept}) == 78


def test_tokenizer_round_trip(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    save_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [tokenizer.token_to_id(t) for t in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]
    ids = tokenizer.encode("A red, CIRCLE moves-right. zebra").ids
    assert ids == [*(tokenizer.token_to_id(w) for w in ["a", "red", "circle", "moves", "right"]), 2, 1]
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["pad_token"] == "<pad>"


def test_tokenizer_knows_every_caption() -> None:
    tokenizer = build_tokenizer()
    rng = np.random.default_rng(1)
    encodings = tokenizer.encode_batch([caption(sample_scene(rng), rng) for _ in range(1000)])
    assert not any(2 in e.ids for e in encodings)
    longest = max((p for m in MOTIONS for p in motion_phrases(m)), key=lambda p: len(p.split()))
    clause = f"a red star {longest}"
    assert len(tokenizer.encode(f"{clause} while {clause}").ids) <= MAX_TOKENS


def test_tokenizer_loads_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_tokenizer(tmp_path)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    batch = tokenizer(["a red circle moves right.", "a blue star grows"], padding=True)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert [row[-2:] for row in batch["input_ids"]] == [[batch["input_ids"][0][-2], 1], [1, 0]]
    assert batch["attention_mask"] == [[1] * 6, [1] * 5 + [0]]
