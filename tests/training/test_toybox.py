"""The Toybox renderer: clips depend on their number alone, stay inside the frame, and agree with their ground truth."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.errors import KinemaError
from kinema.training.data.toybox import (
    BACKGROUNDS,
    CAMERAS,
    DEFAULT_OBJECTS,
    DEFAULT_SHAPES,
    MOTIONS,
    ClipSpec,
    ObjectSpec,
    Toybox,
)
from kinema.training.data.toybox.backgrounds import paint
from kinema.training.data.toybox.render import ground_truth, track
from kinema.training.data.toybox.sampling import Sampler
from kinema.training.data.toybox.shapes import draw_shape

PARAMETERS = (0.3, 0.1, 0.7, 0.5, 0.5, 0.2)


@pytest.fixture(scope="module")
def world() -> Toybox:
    return Toybox()


def one(name="red square", background="night sky", **values) -> ClipSpec:
    item = {"x": 32.0, "y": 32.0, "size": 24.0, "amount": 0.0, "motion": "left", **values}
    return ClipSpec(objects=(ObjectSpec(name=name, **item),), background=background, background_parameters=PARAMETERS)


def coverage(world: Toybox, spec: ClipSpec) -> torch.Tensor:
    """How strongly each pixel differs from the empty background: (t, h, w)."""
    empty = world.render([replace(spec, objects=(replace(spec.objects[0], x=-500.0, y=-500.0),))]).video[0]
    return (world.render([spec]).video[0] - empty).abs().sum(0)


def centroid(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y of the weights' middle in each frame, in pixels."""
    total = weights.sum((1, 2))
    ys, xs = (torch.arange(n) + 0.5 for n in weights.shape[1:])
    return (weights.sum(1) * xs).sum(1) / total, (weights.sum(2) * ys).sum(1) / total


_MIXED = Toybox(num_frames=5, height=32, width=32, num_objects=(1, 3), cameras=CAMERAS)


def test_shapes_and_ranges(world):
    batch = world.batch(range(5))
    assert batch.video.shape == (5, 3, 17, 64, 64)
    assert batch.video.dtype == torch.float32
    assert batch.video.min() >= -1 - 1e-5
    assert batch.video.max() <= 1 + 1e-5
    assert batch.video.amax((1, 2, 3, 4)).min() - batch.video.amin((1, 2, 3, 4)).max() > 0.2
    assert len(batch.captions) == len(batch.specs) == len(batch.ground_truth) == 5


def test_clips_depend_on_seed_split_and_index_alone(world):
    assert world.specs([7, 3]) == Toybox().specs(range(8))[7:2:-4]
    assert world.specs([7]) != Toybox(seed=1).specs([7])
    assert world.specs([7]) != Toybox(split="test").specs([7])
    torch.testing.assert_close(world.batch([7]).video, Toybox().batch([7]).video, rtol=0, atol=0)


@settings(max_examples=8, deadline=None)
@given(indices=st.lists(st.integers(0, 50), min_size=2, max_size=7), data=st.data())
def test_a_clip_does_not_depend_on_its_batch(indices, data):
    world = _MIXED
    place = data.draw(st.integers(0, len(indices) - 1))
    whole, alone = world.batch(indices), world.batch([indices[place]])
    torch.testing.assert_close(whole.video[place], alone.video[0], rtol=0, atol=1e-5)
    assert whole.ground_truth[place] == alone.ground_truth[0]
    assert whole.captions[place] == alone.captions[0]


@pytest.mark.parametrize("motion", ["left", "right", "up", "down", "bounces"])
def test_ground_truth_place_agrees_with_the_pixels(world, motion):
    spec = one(motion=motion, amount=18.0, x=31.3, y=31.6)
    seen_x, seen_y = centroid((coverage(world, spec) > 0.2).float())
    truth = world.render([spec]).ground_truth[0]["objects"][0]
    assert (seen_x - torch.tensor(truth["x"])).abs().max() < 0.6
    assert (seen_y - torch.tensor(truth["y"])).abs().max() < 0.6
    moved = {"left": (-18, 0), "right": (18, 0), "up": (0, -18), "down": (0, 18), "bounces": (0, 0)}[motion]
    assert (truth["x"][-1] - spec.objects[0].x, truth["y"][-1] - spec.objects[0].y) == pytest.approx(moved, abs=0.01)


def test_a_bouncing_object_is_up_twice_and_down_three_times(world):
    y = torch.tensor(world.render([one(motion="bounces", amount=20.0, y=45.0)]).ground_truth[0]["objects"][0]["y"])
    assert [float(y[k]) for k in (0, 4, 8, 12, 16)] == pytest.approx([45, 25, 45, 25, 45])
    assert y.min() == pytest.approx(25)


@pytest.mark.parametrize(("motion", "amount"), [("grows", 2.0), ("shrinks", 0.5)])
def test_ground_truth_size_agrees_with_the_pixels(world, motion, amount):
    covered = (coverage(world, one(motion=motion, amount=amount, size=20.0)) > 0.2).float()
    size = torch.tensor(
        world.render([one(motion=motion, amount=amount, size=20.0)]).ground_truth[0]["objects"][0]["size"]
    )
    assert size[-1] / size[0] == pytest.approx(amount)
    seen_width, seen_height = covered.amax(1).sum(1), covered.amax(2).sum(1)
    assert (seen_width - size).abs().max() <= 2
    assert (seen_height - size).abs().max() <= 2


def test_spinning_turns_clockwise(world):
    spec = one("red triangle", motion="spins", amount=360.0)
    batch = world.render([spec])
    angle = batch.ground_truth[0]["objects"][0]["angle"]
    assert [angle[k] for k in (0, 4, 16)] == pytest.approx([0, 90, 360])
    # The heavy end of a triangle is its base: below at first, then left, above, right.
    x, y = centroid((coverage(world, spec) > 0.2).float())
    assert x[4] < 30.5
    assert y[8] < 30.5
    assert x[12] > 33.5
    assert min(y[0], y[16]) > 33.5
    turned = world.render([one("red triangle", angle=90.0)]).video[0, :, 0]
    torch.testing.assert_close(batch.video[0, :, 4], turned, rtol=0, atol=1e-3)
    torch.testing.assert_close(batch.video[0, :, 16], batch.video[0, :, 0], rtol=0, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(index=st.integers(0, 10**6), count=st.integers(1, 4), size=st.sampled_from([(64, 64), (48, 80), (96, 64)]))
def test_objects_stay_in_the_frame_and_keep_their_relation(index, count, size):
    height, width = size
    sampler = Sampler(DEFAULT_OBJECTS, "train", num_objects=(count, count), cameras=CAMERAS, height=height, width=width)
    spec = sampler(index)
    assert len(spec.objects) == count
    truth = ground_truth([spec], track([spec], 17, *size))[0]
    for item in truth["objects"]:
        for x, y, side, angle in zip(item["x"], item["y"], item["size"], item["angle"], strict=True):
            reach = 0.5 * side * (1.2 if angle % 90 else 1.0)  # corners of a turned box may be cut
            assert reach - 0.01 <= x <= width - reach + 0.01
            assert reach - 0.01 <= y <= height - reach + 0.01
        assert item["angle"][0] == 0
    if count == 1:
        assert truth["relation"] is None
        return
    first, second = truth["objects"][:2]
    axis, sign = {"left of": ("x", -1), "right of": ("x", 1), "above": ("y", -1), "below": ("y", 1)}[truth["relation"]]
    assert all(sign * (a - b) > 0 for a, b in zip(first[axis], second[axis], strict=True))
    assert len({item["name"] for item in truth["objects"]}) == count


def test_motions_of_one_object_are_large(world):
    least = {"left": 20, "right": 20, "up": 20, "down": 20, "bounces": 15, "grows": 1.7, "spins": 180}
    seen = set()
    for spec in world.specs(range(400)):
        item = spec.objects[0]
        seen.add(item.motion)
        assert 17 <= item.size <= 38
        if item.motion == "shrinks":
            assert 0.5 <= item.amount <= 0.58
        else:
            assert item.amount >= least[item.motion]
    assert seen == set(MOTIONS)


def test_the_background_stands_still_unless_the_camera_moves(world):
    still = world.render([one(x=-500.0)]).video[0]
    assert (still - still[:, :1]).abs().max() == 0
    for camera, amount in [("pans left", 8.0), ("zooms in", 1.3), ("zooms out", 0.75)]:
        moving = world.render([replace(one(x=-500.0), camera=camera, camera_amount=amount)]).video[0]
        assert (moving - moving[:, :1]).abs().max() > 0.1


def test_a_pan_moves_what_is_seen_the_other_way(world):
    spec = replace(one("red square", "brick wall", size=20.0), camera="pans left", camera_amount=8.0)
    batch = world.render([spec])
    first, last = batch.video[0, :, 0], batch.video[0, :, -1]
    torch.testing.assert_close(last[:, :, 8:], first[:, :, :-8], rtol=0, atol=2e-3)
    assert batch.ground_truth[0]["objects"][0]["x"][-1] == pytest.approx(40.0)


def test_a_zoom_keeps_the_middle_and_scales_the_objects(world):
    truth = world.render([replace(one(x=42.0), camera="zooms in", camera_amount=1.25)]).ground_truth[0]["objects"][0]
    assert (truth["x"][-1], truth["y"][-1], truth["size"][-1]) == pytest.approx((44.5, 32.0, 30.0))
    truth = world.render([replace(one(x=42.0), camera="zooms out", camera_amount=0.8)]).ground_truth[0]["objects"][0]
    assert (truth["x"][0], truth["size"][0]) == pytest.approx((44.5, 30.0))
    assert (truth["x"][-1], truth["size"][-1]) == pytest.approx((42.0, 24.0))


def test_later_objects_cover_earlier_ones(world):
    spec = one("red square")
    both = replace(spec, objects=(*spec.objects, replace(spec.objects[0], name="blue square", size=12.0)))
    pixel = world.render([both, spec]).video[:, :, 0, 34, 34]
    assert pixel[0, 2] > pixel[0, 0] + 0.3
    assert pixel[1, 0] > pixel[1, 2] + 0.3


def test_backgrounds_differ_from_each_other_more_than_within():
    axis = torch.arange(64) + 0.5
    x, y = axis.expand(3, 1, 64, 64), axis[:, None].expand(3, 1, 64, 64)
    parameters = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    pictures = {name: paint(name, x, y, parameters) for name in BACKGROUNDS}
    within = max((p[0] - p[k]).abs().mean() for p in pictures.values() for k in (1, 2))
    between = min((pictures[a] - pictures[b]).abs().mean() for a in BACKGROUNDS for b in BACKGROUNDS if a < b)
    assert between > 1.3 * within
    assert all((p[0] - p[1]).abs().max() > 0.02 for p in pictures.values())


def test_drawn_shapes_all_differ_and_show_when_they_are_turned():
    pictures = torch.stack([draw_shape(name, 32) for name in DEFAULT_SHAPES])
    premultiplied = pictures[:, :3] * pictures[:, 3:]
    for number, picture in enumerate(premultiplied):
        others = torch.cat([premultiplied[:number], premultiplied[number + 1 :]])
        assert (others - picture).abs().mean((1, 2, 3)).min() > 0.01
        for quarters in (1, 2, 3):
            assert (torch.rot90(picture, quarters, (1, 2)) - picture).abs().max() > 0.3
    assert pictures.min() >= 0
    assert pictures.max() <= 1


def test_specs_survive_json(world):
    for spec in Toybox(num_objects=(1, 3), cameras=CAMERAS).specs(range(10)):
        assert ClipSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert json.loads(json.dumps(world.batch([0]).ground_truth)) == world.batch([0]).ground_truth
    with pytest.raises(KinemaError, match="surprise"):
        ClipSpec.from_dict({**world.specs([0])[0].to_dict(), "surprise": 1})


def test_a_single_frame_is_the_first_frame_of_the_clip(world):
    image = Toybox(num_frames=1).batch([3]).video
    torch.testing.assert_close(image, world.batch([3]).video[:, :, :1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tset"}, "`split` .*'tset'.* train, validation, test"),
        ({"cameras": ("shakes",)}, "`cameras` .*'shakes'"),
        ({"cameras": ()}, "`cameras`"),
        ({"num_objects": (0, 1)}, "`num_objects`"),
        ({"num_objects": (2, 9)}, "`num_objects`"),
        ({"num_frames": 0}, "`num_frames` .*=0"),
        ({"height": 8}, "`height` .*=8"),
        ({"objects": ("mauve blob",)}, "'mauve blob'"),
        ({"objects": ()}, "`objects`"),
        ({"objects": ("red star", "red star")}, "`objects`"),
        ({"sprites": "/nowhere/at/all"}, "sprites.json"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(KinemaError, match=message):
        Toybox(**arguments)


def test_a_clip_with_a_foreign_object_is_refused(world):
    with pytest.raises(KinemaError, match="zeppelin"):
        world.render([one("zeppelin")])
    with pytest.raises(KinemaError, match="`specs`"):
        world.render([])
