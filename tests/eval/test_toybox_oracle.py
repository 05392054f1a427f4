"""The oracle names what real clips show, from their pixels alone, and follows the object."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from kinema.errors import KinemaError
from kinema.eval.toybox.evaluation import _REVERSED, seen, truth_of
from kinema.eval.toybox.matching import frame_spectra, match, place_object, prepare_pictures
from kinema.eval.toybox.oracle import Oracle
from kinema.eval.toybox.report import chance_of, fractions
from kinema.eval.toybox.tracking import STILL, Track, turning_path, unwrap
from kinema.training.data.toybox import BACKGROUNDS, MOTIONS, ClipSpec, ObjectSpec, Toybox
from kinema.training.data.toybox.schema import RELATIONS

SPRITES = Path(os.environ.get("KINEMA_SPRITES") or Path(__file__).parents[2] / "../shared/data/sprites")
PARAMETERS = (0.3, 0.1, 0.7, 0.5, 0.5, 0.2)
AMOUNTS = {"grows": 1.8, "shrinks": 0.55, "spins": 240.0, "bounces": 20.0}


@pytest.fixture(scope="module")
def world() -> Toybox:
    return Toybox(split="test")


@pytest.fixture(scope="module")
def oracle(world) -> Oracle:
    return Oracle(world.atlas)


def one(motion="left", background="sea", name="red heart", **values) -> ClipSpec:
    start = {"left": (45.0, 32.0), "right": (19.0, 32.0), "up": (32.0, 45.0), "down": (32.0, 19.0)}
    x, y = start.get(motion, (32.0, 40.0 if motion == "bounces" else 32.0))
    size = {"grows": 18.0, "shrinks": 34.0}.get(motion, 27.0)
    item = {"x": x, "y": y, "size": size, "amount": AMOUNTS.get(motion, 26.0), **values}
    return ClipSpec(
        objects=(ObjectSpec(name=name, motion=motion, **item),), background=background, background_parameters=PARAMETERS
    )


def spoil(clip: torch.Tensor) -> torch.Tensor:
    """Blurred and noisy, as a clip may come out of a tokenizer."""
    blurred = gaussian_blur(clip.transpose(0, 1), [9, 9], [1.2, 1.2]).transpose(0, 1)
    return blurred + 0.06 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def decided(world, oracle):
    """What 32 clips show, and what the oracle says of them."""
    batch = world.batch(range(32))
    return [truth_of(spec) for spec in batch.specs], [seen(oracle.decide(clip)) for clip in batch.video]


def test_right_on_real_clips_of_drawn_shapes(decided):
    for aspect, share in fractions(*decided).items():
        assert share >= 0.95, aspect


def test_near_chance_on_other_clips_prompts(decided):
    truths, decisions = decided
    for aspect, share in fractions(truths[16:] + truths[:16], decisions).items():
        assert share < chance_of(truths)[aspect] + 0.2, aspect


@pytest.mark.skipif(not (SPRITES / "sprites.json").is_file(), reason="no sprite folder (set KINEMA_SPRITES)")
@pytest.mark.parametrize("change", [lambda clip: clip, spoil], ids=["as they are", "blurred"])
def test_right_on_clips_of_sprites(change):
    world = Toybox(SPRITES, split="test")
    oracle = Oracle(world.atlas)
    batch = world.batch(range(100, 124))
    decisions = [seen(oracle.decide(change(clip))) for clip in batch.video]
    for aspect, share in fractions([truth_of(spec) for spec in batch.specs], decisions).items():
        assert share >= 0.95, aspect


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_on_spoilt_clips(world, oracle, motion):
    batch = world.render(
        [one(motion), one(motion, "brick wall", "green arrow"), one(motion, "night sky", "green cross")]
    )
    decisions = [oracle.decide(spoil(clip)) for clip in batch.video]
    assert [decision.motion for decision in decisions] == [motion] * 3
    assert [decision.object for decision in decisions] == ["red heart", "green arrow", "green cross"]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_background_on_spoilt_clips(world, oracle, background):
    batch = world.render([one("spins", background), one("up", background, "blue heart")])
    assert [oracle.decide(spoil(clip)).background for clip in batch.video] == [background] * 2


def test_pixels_decide(world, oracle):
    """A clip that is mirrored or runs backwards shows something else, and its description is not asked."""
    left, up, grows, bounces = world.render([one("left"), one("up"), one("grows"), one("bounces")]).video
    assert oracle.decide(left.flip(-1)).motion == "right"
    assert oracle.decide(left.flip(1)).motion == "right"
    assert oracle.decide(up.flip(1)).motion == "down"
    assert oracle.decide(grows.flip(1)).motion == "shrinks"
    assert oracle.decide(bounces.flip(1)).motion == "bounces"
    empty = world.render([one("left", x=-500.0)]).video[0]
    is_object = (left - empty).abs().amax(0) > 0.05
    assert oracle.decide(torch.where(is_object, left[[2, 1, 0]], left)).object == "blue heart"


def test_what_does_not_move_is_said_to_be_still(world, oracle):
    still = world.render([one("left", amount=0.0), one("grows", amount=1.05, size=25.0)]).video
    assert [oracle.decide(clip).motion for clip in still] == [STILL, STILL]


def test_files_are_seen_as_tensors_are(world, oracle):
    clip = world.render([one("down")]).video[0]
    frames = ((clip + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)
    assert seen(oracle.decide(frames)) == seen(oracle.decide(clip))


def test_other_sizes_and_lengths(oracle):
    world = Toybox(height=96, width=128, num_frames=9, split="validation")
    oracle = Oracle(world.atlas, 96, 128)
    batch = world.batch(range(6))
    for clip, spec, truth in zip(batch.video, batch.specs, batch.ground_truth, strict=True):
        decision = oracle.decide(clip)
        assert seen(decision) == truth_of(spec)
        for axis in ("x", "y"):
            found = getattr(decision.track, axis)
            assert (found - torch.tensor(truth["objects"][0][axis])).abs().max() < 4, axis


def test_tracks_follow_the_ground_truth(world, oracle):
    batch = world.render([one("bounces"), one("shrinks"), one("spins")])
    for clip, truth in zip(batch.video, batch.ground_truth, strict=True):
        track, actual = oracle.decide(clip).track, truth["objects"][0]
        assert (track.x - torch.tensor(actual["x"])).abs().max() < 2
        assert (track.y - torch.tensor(actual["y"])).abs().max() < 2
        assert (track.size.log() - torch.tensor(actual["size"]).log()).abs().max() < 0.2
        assert (track.angle - torch.tensor(actual["angle"])).abs().max() < 25


def test_explains_real_clips_and_not_others(world, oracle):
    clip = world.render([one("left")]).video[0]
    assert oracle.decide(clip).explained > 0.8
    scrambled = clip[:, :, torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    assert oracle.decide(scrambled).explained < 0.5


@pytest.mark.parametrize("shape", [(3, 17, 64, 60), (3, 4, 64, 64)])
def test_wrong_clips_are_refused(oracle, shape):
    with pytest.raises(KinemaError, match="`clip`"):
        oracle.decide(torch.zeros(shape))


def test_energy_is_the_difference_that_the_object_takes_away(world):
    """Against the formula computed pixel by pixel, at a place where the object is inside the frame."""
    which, sizes, angles = torch.tensor([3, 7]), torch.tensor([20.0, 26.0]), torch.tensor([0.0, 40.0])
    pictures = prepare_pictures(world.atlas, which, sizes, angles, 64, 64)
    generator = torch.Generator().manual_seed(0)
    frames, background = torch.rand(2, 3, 32, 32, generator=generator), torch.rand(3, 32, 32, generator=generator)
    found = match(frame_spectra(frames, background), pictures)
    channels = torch.fft.irfft2(pictures.spectra.conj().reshape(32, 17, 8, 2).permute(3, 2, 0, 1), s=(32, 32))
    for t in range(2):
        for n in range(2):
            shift = (int(found.y[t, n] / 2) - 16, int(found.x[t, n] / 2) - 16)
            colours, alpha = (each.roll(shift, (-2, -1)) for each in (channels[n, :3] / 2, -channels[n, 3:4] / 2))
            drawn = colours + (1 - alpha) * background
            taken = (frames[t] - background).square().sum() - (frames[t] - drawn).square().sum()
            torch.testing.assert_close(found.energy[t, n], taken, rtol=1e-4, atol=1e-3)


def test_objects_are_found_where_they_are_drawn(world, oracle):
    """The oracle's own pictures lie where the renderer's do: clockwise, y downwards, centred."""
    spec = one("spins", "desert", "red arrow", x=30.0, y=36.0, angle=90.0, amount=0.0)
    moved = replace(spec, objects=(replace(spec.objects[0], x=-500.0),))
    frame, empty = (world.render([each]).video[0, :, 0] for each in (spec, moved))
    halves = [torch.nn.functional.avg_pool2d(each, 2) for each in (frame, empty)]
    angles = torch.tensor([0.0, 90.0, 180.0, 270.0])
    which = torch.full((4,), world.objects.index("red arrow"))
    pictures = prepare_pictures(world.atlas, which, torch.full((4,), 27.0), angles, 64, 64)
    found = match(frame_spectra(halves[0][None], halves[1]), pictures)
    assert int(found.energy[0].argmax()) == 1
    assert (float(found.x[0, 1]), float(found.y[0, 1])) == (30.0, 36.0)
    explained = found.energy[0, 1] / (halves[0] - halves[1]).square().sum()
    assert 0.99 < explained <= 1


def test_turning_path_prefers_steady_turns():
    angles = torch.arange(0, 360, 20).float()
    energy = torch.zeros(6, 18)
    for t in range(6):
        energy[t, 2 * t] = 1.0
    energy[3, 15] = 1.2  # a better match that it would have to jump to
    assert turning_path(energy, angles) == [0, 2, 4, 6, 8, 10]
    assert unwrap(torch.tensor([340.0, 0.0, 20.0, 340.0])).tolist() == [340.0, 360.0, 380.0, 340.0]


def two(relation: str, motions: tuple[str, str] = ("grows", "spins"), background="desert") -> ClipSpec:
    """A heart and an arrow that do not cover each other; the relation is the heart's to the arrow."""
    places = {"left of": ((17, 32), (47, 32)), "above": ((32, 17), (32, 47))}
    first, second = places[relation] if relation in places else places[_REVERSED[relation]][::-1]
    sizes = {"grows": 16.0, "spins": 24.0}
    objects = tuple(
        ObjectSpec(name=name, motion=motion, x=x, y=y, size=sizes[motion], amount=AMOUNTS[motion])
        for name, motion, (x, y) in zip(("red heart", "blue arrow"), motions, (first, second), strict=True)
    )
    return ClipSpec(objects=objects, background=background, background_parameters=PARAMETERS, relation=relation)


@pytest.mark.parametrize("relation", RELATIONS)
def test_two_objects_are_found_with_their_motions_and_their_relation(world, oracle, relation):
    spec = two(relation)
    decisions = oracle.decide_all(spoil(world.render([spec]).video[0]), 2)
    # In alphabetical order of the objects, so that the relation is the arrow's to the heart.
    assert seen(*decisions) == {
        "object": "blue arrow and red heart",
        "motion": "spins, grows",
        "background": "desert",
        "relation": _REVERSED[relation],
    }
    assert seen(*decisions) == truth_of(spec)


def test_right_on_real_clips_with_two_objects():
    world = Toybox(split="test", num_objects=(2, 2))
    oracle = Oracle(world.atlas)
    batch = world.batch(range(16))
    truths = [truth_of(spec) for spec in batch.specs]
    decisions = [seen(*oracle.decide_all(clip, 2)) for clip in batch.video]
    for aspect, share in fractions(truths, decisions).items():
        assert share >= 0.95, aspect
    assert fractions(truths[8:] + truths[:8], decisions)["object"] < 0.2


def test_mirrored_and_swapped_pairs_are_others(world, oracle):
    clip = world.render([two("left of")]).video[0]
    asked = truth_of(two("left of"))
    mirrored = seen(*oracle.decide_all(clip.flip(-1), 2))
    assert (mirrored["object"], mirrored["relation"]) == (asked["object"], "left of")
    swapped = seen(*oracle.decide_all(world.render([two("left of", ("spins", "grows"))]).video[0], 2))
    assert (swapped["motion"], swapped["relation"]) == ("grows, spins", asked["relation"])


def test_one_object_alone_is_no_pair(world, oracle):
    """The second thing that is found explains next to nothing."""
    decisions = oracle.decide_all(world.render([one("left")]).video[0], 2)
    assert "red heart" in {decision.object for decision in decisions}
    assert min(decision.explained for decision in decisions) < 0.3


def test_placed_objects_are_where_matching_finds_them(world):
    which, sizes, angles = torch.tensor([5]), torch.tensor([24.0]), torch.tensor([40.0])
    background = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor([30.0, 40.0]), torch.tensor([22.0, 36.0])
    track = Track(x, y, sizes.expand(2), angles.expand(2), torch.ones(2))
    drawn = place_object(background, world.atlas, 5, track)
    found = match(frame_spectra(drawn, background), prepare_pictures(world.atlas, which, sizes, angles, 64, 64))
    assert torch.equal(found.x[:, 0], track.x)
    assert torch.equal(found.y[:, 0], track.y)
    explained = found.energy[:, 0] / (drawn - background).square().sum((1, 2, 3))
    torch.testing.assert_close(explained, torch.ones(2), rtol=1e-3, atol=1e-3)
