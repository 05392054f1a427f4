"""What Toybox clips are drawn from (the split by combination) and how they are described."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from kinema.errors import KinemaError
from kinema.training.data.toybox import (
    BACKGROUNDS,
    CAMERAS,
    DEFAULT_OBJECTS,
    MOTIONS,
    RELATIONS,
    SPLITS,
    Toybox,
    caption,
    split_of,
    split_words,
    vocabulary,
)
from kinema.training.data.toybox.captions import BACKGROUND_PHRASES, MOTION_PHRASES, with_article
from kinema.training.data.toybox.objects import ADJECTIVES
from kinema.training.data.toybox.sampling import Sampler


def sampled(split, count=300, objects=DEFAULT_OBJECTS, **values):
    sampler = Sampler(objects, split, **values)
    return [sampler(index) for index in range(count)]


def test_splits_hold_disjoint_combinations_in_the_stated_shares():
    shares = Counter(split_of(o, m, b) for o in DEFAULT_OBJECTS for m in MOTIONS for b in BACKGROUNDS)
    total = sum(shares.values())
    assert shares["train"] / total == pytest.approx(0.8, abs=0.03)
    assert shares["validation"] / total == pytest.approx(0.1, abs=0.02)
    assert shares["test"] / total == pytest.approx(0.1, abs=0.02)
    for split in SPLITS:
        for seed in (0, 5):
            for spec in sampled(split, seed=seed, num_objects=(1, 3)):
                assert all(split_of(item.name, item.motion, spec.background) == split for item in spec.objects)


def test_every_part_of_a_test_prompt_is_in_training():
    seen = {(o, m) for o in DEFAULT_OBJECTS for m in MOTIONS if any(split_of(o, m, b) == "train" for b in BACKGROUNDS)}
    assert len(seen) == len(DEFAULT_OBJECTS) * len(MOTIONS)
    objects = Counter(item.name for spec in sampled("train", 3000) for item in spec.objects)
    assert set(objects) == set(DEFAULT_OBJECTS)
    assert min(objects.values()) > 25
    assert min(Counter(spec.background for spec in sampled("train", 1200)).values()) > 140


def test_too_few_objects_for_a_split_are_refused():
    # A name with none of its 48 combinations in the test split: about one in 150.
    lonely = next(
        name
        for name in (f"thing {number}" for number in range(10_000))
        if all(split_of(name, motion, background) != "test" for motion in MOTIONS for background in BACKGROUNDS)
    )
    with pytest.raises(KinemaError, match="`objects`"):
        Sampler([lonely], "test")


def test_every_word_of_every_caption_is_in_the_vocabulary():
    words = set(vocabulary())
    specs = sampled("train", 4000) + sampled("test", 500, num_objects=(2, 3), cameras=CAMERAS)
    used = {word for spec in specs for word in split_words(caption(spec))}
    assert used <= words
    assert words - used == set()  # nothing superfluous either


def test_vocabulary_is_fixed_and_follows_the_objects():
    words = vocabulary()
    assert words == sorted(set(words)) == vocabulary(DEFAULT_OBJECTS)
    assert len(words) == 144
    assert {"red", "car", "panda", "left", "snowy"} <= set(words)
    assert "mauve" in vocabulary(["mauve blob"])
    assert "panda" not in vocabulary(["mauve blob"])


def test_paraphrases_cover_every_motion_and_background():
    heard = {motion: set() for motion in MOTIONS}
    placed = {background: set() for background in BACKGROUNDS}
    for spec in sampled("train", 4000):
        text = caption(spec)
        item = spec.objects[0]
        phrases = [p for p in MOTION_PHRASES[item.motion] if re.search(rf"\b{p}\b", text)]
        assert phrases, text
        heard[item.motion].add(max(phrases, key=len))
        places = [p for p in BACKGROUND_PHRASES[spec.background] if p in text]
        assert bool(places) == spec.mentions_background, text
        placed[spec.background].update(places)
        assert item.name in text
        others = [b for b in BACKGROUNDS if b != spec.background and any(p in text for p in BACKGROUND_PHRASES[b])]
        assert not others, text
    assert all(len(heard[motion]) >= 5 for motion in MOTIONS)
    assert all(placed[background] == set(BACKGROUND_PHRASES[background]) for background in BACKGROUNDS)


def test_no_phrase_says_two_things():
    for table in (MOTION_PHRASES, BACKGROUND_PHRASES):
        phrases = [phrase for group in table.values() for phrase in group]
        assert len(phrases) == len(set(phrases))


def test_captions_outside_training_always_say_where():
    assert all(spec.mentions_background for split in ("validation", "test") for spec in sampled(split))
    unsaid = sum(not spec.mentions_background for spec in sampled("train", 2000)) / 2000
    assert 0.03 < unsaid < 0.1


def test_captions_of_several_objects_say_the_relation_and_the_camera():
    specs = sampled("train", 200, num_objects=(2, 2), cameras=CAMERAS)
    for spec in specs:
        text = caption(spec)
        first, second = (item.name for item in spec.objects)
        said = {"left of": "to the left of", "right of": "to the right of"}.get(str(spec.relation), spec.relation)
        assert f"the {first} is {said} the {second}" in text
        assert (f"the camera {spec.camera}" in text) == (spec.camera != "static")
    assert {spec.relation for spec in specs} == set(RELATIONS)
    assert {spec.camera for spec in specs} == set(CAMERAS)


def test_a_caption_depends_on_its_variant():
    spec = sampled("train", 1)[0]
    assert caption(spec) == caption(spec)
    assert len({caption(replace(spec, variant=variant)) for variant in range(40)}) > 20


def test_articles():
    assert [with_article(noun) for noun in ("owl", "unicorn", "umbrella", "ufo", "red car", "elephant")] == [
        "an owl", "a unicorn", "an umbrella", "a ufo", "a red car", "an elephant",
    ]  # fmt: skip
    assert split_words("A red-hot car, drives!  Über 3 sea") == ["a", "red", "hot", "car", "drives", "über", "3", "sea"]


def test_default_objects():
    assert len(DEFAULT_OBJECTS) == len(set(DEFAULT_OBJECTS)) == 48
    assert set(ADJECTIVES) <= set(DEFAULT_OBJECTS)


def test_worlds_know_their_words_and_combinations():
    world = Toybox(split="test")
    assert world.vocabulary() == vocabulary(world.objects)
    assert all(split_of(*combination) == "test" for combination in world.combinations)
    assert {(s.objects[0].name, s.objects[0].motion, s.background) for s in world.specs(range(50))} <= set(
        world.combinations
    )
