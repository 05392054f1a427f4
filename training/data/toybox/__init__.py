"""The Toybox: a procedural captioned world, for training and for measuring prompt adherence."""

from kinema.training.data.toybox.build import build_sprites
from kinema.training.data.toybox.captions import caption, split_words, vocabulary
from kinema.training.data.toybox.folder import render_to_folder
from kinema.training.data.toybox.objects import DEFAULT_OBJECTS
from kinema.training.data.toybox.sampling import split_of
from kinema.training.data.toybox.schema import BACKGROUNDS, CAMERAS, MOTIONS, RELATIONS, SPLITS, ClipSpec, ObjectSpec
from kinema.training.data.toybox.shapes import DEFAULT_SHAPES
from kinema.training.data.toybox.world import Toybox, ToyboxBatch

__all__ = [
    "BACKGROUNDS",
    "CAMERAS",
    "DEFAULT_OBJECTS",
    "DEFAULT_SHAPES",
    "MOTIONS",
    "RELATIONS",
    "SPLITS",
    "ClipSpec",
    "ObjectSpec",
    "Toybox",
    "ToyboxBatch",
    "build_sprites",
    "caption",
    "render_to_folder",
    "split_of",
    "split_words",
    "vocabulary",
]
