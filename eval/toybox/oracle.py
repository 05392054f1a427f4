"""Decides from the pixels alone which objects, motions and background a Toybox clip shows."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from kinema.errors import KinemaError
from kinema.eval.toybox.backgrounds import BackgroundModel
from kinema.eval.toybox.matching import Match, Pictures, frame_spectra, match, place_object, prepare_pictures
from kinema.eval.toybox.tracking import LEAST_GAIN, Track, decide_motion, strengths, turning_path, unwrap
from kinema.training.data.toybox.sprites import Atlas

# In pixels of a frame whose short side is 64: what Toybox objects measure, and a little more on both sides.
_SIZES = tuple(15.5 * 1.115**step for step in range(10))
_SPIN_SIZES = (24.0, 27.5, 31.5)
_ANGLE_STEP = 20
_LOOKS = 5  # frames that the first choice of objects looks at
_CANDIDATES = 4  # objects that are followed through the whole clip, of each of two first choices


@dataclass(frozen=True)
class Decision:
    """What the oracle saw.

    Attributes:
        object: Name of the object.
        motion: One of `MOTIONS`, or "none".
        background: One of `BACKGROUNDS`.
        explained: Share of the difference from the background that the object explains: near 1 on real clips.
        strengths: Of each motion, as multiples of what an average Toybox object does.
        track: Where the object is in each frame, in pixels of the clip.
    """

    object: str
    motion: str
    background: str
    explained: float
    strengths: Mapping[str, float]
    track: Track = field(repr=False)


@dataclass(frozen=True)
class _Found:
    """An object's row in the atlas, its track, and the squared difference that there was to explain."""

    name: int
    track: Track
    difference: float


class Oracle:
    """Knows the objects' pictures and the backgrounds, and nothing of a clip but its pixels.

    A background is fitted to the median frame; the object is the one that, drawn over that background at its best
    place, size and angle in every frame, explains most of what is left; its motion is read off its track.

    Args:
        atlas: Pictures of the objects to choose from (`Toybox.atlas`).
        height: Frame height of the clips in pixels.
        width: Frame width of the clips in pixels.
    """

    def __init__(self, atlas: Atlas, height: int = 64, width: int = 64) -> None:
        self.names = atlas.names
        self.height, self.width = height, width
        # All work is done at one scale; sides are even, because frames are halved.
        scale = 64 / min(height, width)
        self._scale = scale
        self._size = (2 * round(height * scale / 2), 2 * round(width * scale / 2))
        self._atlas = atlas
        self._backgrounds = BackgroundModel(*self._size)
        sizes = torch.tensor(_SIZES)
        count = len(self.names)
        self._upright = prepare_pictures(
            atlas,
            torch.arange(count).repeat_interleave(len(sizes)),
            sizes.repeat(count),
            torch.zeros(count * len(sizes)),
            *self._size,
        )
        self._turned: dict[int, Pictures] = {}

    def decide(self, clip: Float[Tensor, "3 t h w"] | UInt8[Tensor, "t h w 3"]) -> Decision:
        """Looks at a clip with one object.

        Args:
            clip: Values in [-1, 1], or the frames of a video file.

        Raises:
            KinemaError: The clip has another size, or fewer than 5 frames.
        """
        return self.decide_all(clip, 1)[0]

    @torch.no_grad()
    def decide_all(self, clip: Float[Tensor, "3 t h w"] | UInt8[Tensor, "t h w 3"], num_objects: int) -> list[Decision]:
        """Looks at a clip with a known number of different objects that do not cover each other.

        Objects are found one after the other, each over the background with those found before drawn in; then each is
        looked for again with all others drawn in, since the first were found while the others were unexplained.

        Args:
            clip: Values in [-1, 1], or the frames of a video file.
            num_objects: How many objects to look for.

        Returns:
            One decision for each object, in alphabetical order of the objects.

        Raises:
            KinemaError: The clip has another size, or fewer than 5 frames.
        """
        frames = self._halved(clip)
        background, picture = self._backgrounds.fit(frames.median(0).values)
        found: list[_Found] = []
        for _ in range(num_objects):
            found.append(self._find(frames, picture, found))
        for number in range(num_objects if num_objects > 1 else 0):
            found[number] = self._find(frames, picture, found[:number] + found[number + 1 :])
        decisions = [self._decision(each, background) for each in found]
        return sorted(decisions, key=lambda decision: decision.object)

    def _halved(self, clip: Tensor) -> Float[Tensor, "t 3 h w"]:
        """The frames at half the working size, checked."""
        if clip.dtype == torch.uint8:
            clip = rearrange(clip, "t h w c -> c t h w").float() / 127.5 - 1
        if tuple(clip.shape[2:]) != (self.height, self.width) or clip.shape[1] < 5:
            raise KinemaError(
                f"`clip` (of shape {tuple(clip.shape)}) must have at least 5 frames of {self.height}x{self.width}"
            )
        frames = rearrange(clip.float().cpu(), "c t h w -> t c h w")
        if tuple(frames.shape[2:]) != self._size:
            frames = interpolate(frames, self._size, mode="bilinear", antialias=True, align_corners=False)
        return avg_pool2d(frames, 2)

    def _find(self, frames: Tensor, picture: Tensor, others: Sequence["_Found"]) -> "_Found":
        """The object that explains most of what the background and the other objects leave."""
        for other in others:
            picture = place_object(picture, self._atlas, other.name, other.track)
        spectra = frame_spectra(frames, picture)
        names = self._candidates(spectra, {other.name for other in others})
        tracks = {name: self._follow(spectra, name) for name in names}
        name = max(names, key=lambda each: float(tracks[each].energy.sum()))
        return _Found(name, tracks[name], float((frames - picture).square().sum()))

    def _decision(self, found: "_Found", background: str) -> Decision:
        track, scale = found.track, self._scale
        values = strengths(track, 64)
        return Decision(
            object=self.names[found.name],
            motion=decide_motion(values),
            background=background,
            explained=float(track.energy.sum()) / max(found.difference, 1e-6),
            strengths=values,
            track=Track(track.x / scale, track.y / scale, track.size / scale, track.angle, track.energy),
        )

    def _candidates(self, spectra: Tensor, taken: Collection[int]) -> list[int]:
        """Objects worth following: those that explain the first frame best, which is upright, or all frames."""
        looks = torch.linspace(0, spectra.shape[1] - 1, _LOOKS).round().long()
        energy = match(spectra[:, looks], self._upright).energy.clamp_min(0)
        by_object = rearrange(energy, "t (n s) -> t n s", s=len(_SIZES)).amax(2)
        by_object[:, list(taken)] = -1.0
        count = min(_CANDIDATES, len(self.names) - len(taken))
        first = by_object[0].topk(count).indices
        all_frames = by_object.sum(0).topk(count).indices
        return sorted({*first.tolist(), *all_frames.tolist()})

    def _follow(self, spectra: Tensor, name: int) -> Track:
        """The object's track, upright or turning, whichever explains more."""
        rows = slice(name * len(_SIZES), (name + 1) * len(_SIZES))
        upright = self._upright
        own = Pictures(upright.spectra[..., rows], upright.constants[rows], upright.allowed[rows])
        straight = _track(match(spectra, own), torch.tensor(_SIZES), torch.zeros(len(_SIZES)))
        if name not in self._turned:
            self._turned[name] = self._turned_pictures(name)
        found = match(spectra, self._turned[name])
        angles = torch.arange(0, 360, _ANGLE_STEP).float()
        by_angle = rearrange(found.energy, "t (a s) -> t a s", a=len(angles))
        path = torch.tensor(turning_path(by_angle.amax(2), angles))
        time = torch.arange(len(path))
        chosen = path * len(_SPIN_SIZES) + by_angle[time, path].argmax(1)
        turning = Track(
            found.x[time, chosen],
            found.y[time, chosen],
            torch.tensor(_SPIN_SIZES)[chosen % len(_SPIN_SIZES)],
            unwrap(angles[path]),
            found.energy[time, chosen],
        )
        return turning if turning.energy.sum() > (1 + LEAST_GAIN) * straight.energy.sum() else straight

    def _turned_pictures(self, name: int) -> Pictures:
        angles = torch.arange(0, 360, _ANGLE_STEP).float()
        count = len(angles) * len(_SPIN_SIZES)
        return prepare_pictures(
            self._atlas,
            torch.full((count,), name),
            torch.tensor(_SPIN_SIZES).repeat(len(angles)),
            angles.repeat_interleave(len(_SPIN_SIZES)),
            *self._size,
        )


def _track(found: Match, sizes: Tensor, angles: Tensor) -> Track:
    """The best picture in each frame, whatever it was in the frame before."""
    energy, chosen = found.energy.max(1)
    time = torch.arange(len(chosen))
    return Track(found.x[time, chosen], found.y[time, chosen], sizes[chosen], angles[chosen], energy)
