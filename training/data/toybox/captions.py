"""Captions with paraphrases, and the list of every word that they can contain."""

import random
from collections.abc import Iterable, Sequence

from kinema.generation.words import split_words
from kinema.training.data.toybox.objects import ADJECTIVES, DEFAULT_OBJECTS
from kinema.training.data.toybox.schema import CAMERAS, ClipSpec, ObjectSpec

_SIDEWAYS = ("moves", "goes", "drives", "slides", "drifts", "travels", "flies", "walks", "runs", "rolls")
_UPRIGHT = ("moves", "goes", "flies", "floats", "drifts", "travels", "slides")


def _phrases(verbs: Sequence[str], directions: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{verb} {direction}" for verb in verbs for direction in directions)


MOTION_PHRASES: dict[str, tuple[str, ...]] = {
    "left": _phrases(_SIDEWAYS, ("left", "to the left", "leftwards", "towards the left")),
    "right": _phrases(_SIDEWAYS, ("right", "to the right", "rightwards", "towards the right")),
    "up": (*_phrases(_UPRIGHT, ("up", "upwards")), "rises", "climbs", "rises up", "climbs up"),
    "down": (*_phrases(_UPRIGHT, ("down", "downwards")), "falls", "sinks", "falls down", "sinks down"),
    "grows": (
        "grows", "gets bigger", "gets larger", "becomes bigger", "becomes larger", "grows bigger", "grows larger",
    ),
    "shrinks": ("shrinks", "gets smaller", "becomes smaller", "shrinks down", "shrinks and gets smaller"),
    "spins": (
        "spins", "rotates", "turns", "spins around", "turns around", "rotates around", "spins clockwise",
        "rotates clockwise",
    ),
    "bounces": ("bounces", "hops", "jumps", "bounces up and down", "hops up and down", "jumps up and down"),
}  # fmt: skip
BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "meadow": ("in a meadow", "in a green meadow", "on a meadow", "over a meadow", "in the grass", "on the grass"),
    "desert": ("in a desert", "in the desert", "in a sandy desert", "over a desert", "on the sand", "over the sand"),
    "night sky": ("in the night sky", "in a starry night sky", "at night", "under the stars", "in a dark night sky"),
    "snowy field": ("in a snowy field", "over a snowy field", "on a snowy field", "in the snow", "on the snow"),
    "sea": ("over the sea", "at sea", "on the sea", "above the sea", "over the ocean", "on the water"),
    "brick wall": ("in front of a brick wall", "by a brick wall", "before a brick wall", "against a red brick wall"),
}
CAMERA_PHRASES: dict[str, str] = {camera: f"the camera {camera}" for camera in CAMERAS if camera != "static"}
RELATION_PHRASES: dict[str, str] = {
    "left of": "to the left of",
    "right of": "to the right of",
    "above": "above",
    "below": "below",
}
_JOINING = ("and", "while")
_ARTICLES = ("a", "an", "the")
_LEADING_PLACE, _ADJECTIVE = 0.15, 0.25  # how often the place comes first, and an object gets its adjective


def with_article(noun: str) -> str:
    """`noun` with "a" or "an", by how it is spelt ("unicorn" and "ufo" sound like "you")."""
    vowel = noun[:1] in "aeio" or (noun.startswith("u") and not noun.startswith(("uni", "ufo")))
    return f"{'an' if vowel else 'a'} {noun}"


def _noun_phrase(item: ObjectSpec, rng: random.Random) -> str:
    adjective = ADJECTIVES.get(item.name)
    noun = f"{adjective} {item.name}" if adjective and rng.random() < _ADJECTIVE else item.name
    return f"the {noun}" if rng.random() < 0.15 else with_article(noun)


def caption(spec: ClipSpec) -> str:
    """A sentence that says what happens in the clip, worded by `spec.variant`; lower case, no full stop."""
    rng = random.Random(spec.variant)
    place = rng.choice(BACKGROUND_PHRASES[spec.background])
    place_first = rng.random() < _LEADING_PLACE
    actions = [f"{_noun_phrase(item, rng)} {rng.choice(MOTION_PHRASES[item.motion])}" for item in spec.objects]
    sentence = f" {rng.choice(_JOINING)} ".join(actions)
    if spec.mentions_background:
        sentence = f"{place}, {sentence}" if place_first else f"{sentence} {place}"
    if spec.relation is not None:
        first, second = spec.objects[0].name, spec.objects[1].name
        sentence = f"{sentence}, the {first} is {RELATION_PHRASES[spec.relation]} the {second}"
    if spec.camera != "static":
        sentence = f"{sentence}, {CAMERA_PHRASES[spec.camera]}"
    return sentence


def vocabulary(objects: Iterable[str] = DEFAULT_OBJECTS) -> list[str]:
    """Every word that a caption about these objects can contain, in alphabetical order."""
    texts = [*objects, *_ARTICLES, *_JOINING, "is", *RELATION_PHRASES.values(), *CAMERA_PHRASES.values()]
    texts += [ADJECTIVES[name] for name in texts if name in ADJECTIVES]
    for table in (MOTION_PHRASES, BACKGROUND_PHRASES):
        texts += [phrase for phrases in table.values() for phrase in phrases]
    return sorted({word for text in texts for word in split_words(text)})
