"""How published code turns videos into what I3D sees: part of every FVD, and worth hundreds of points.

A protocol says which frames are taken, how they are resized, and how covariances are normalised. A new one is one line
in `PROTOCOLS`.
"""

import hashlib
import json
import math
import random
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from kinema.errors import KinemaError
from kinema.eval.distributions.frechet import Covariance
from kinema.eval.networks.i3d import MIN_FRAMES, SIZE

MOST_FRAMES = 1024
"""Frames of a clip where a protocol takes whole clips: about 5 GB in I3D. A `num_frames` that is set may be higher."""

_PIXELS_AT_ONCE = 2**23  # whose frames are resized at once

Position = Literal["first", "center", "random", "consecutive"]


@dataclass(frozen=True, kw_only=True)
class Resize:
    """One bilinear resize to a square (`align_corners=False`).

    Attributes:
        size: Side of the square in pixels.
        mode: `stretch` to it, or scale the short side to it and `crop` the middle.
        antialias: Low-pass filter where it shrinks.
        round: `nearest` or `down` to whole levels of 0..255 afterwards, or keep fractions (`none`).
    """

    size: int
    mode: Literal["stretch", "crop"]
    antialias: bool
    round: Literal["none", "nearest", "down"] = "none"

    def __str__(self) -> str:
        how = "stretched" if self.mode == "stretch" else "scaled and cropped"
        antialias = "antialiased" if self.antialias else "not antialiased"
        levels = {"none": "not rounded", "nearest": "rounded", "down": "rounded down"}[self.round]
        return f"{how} to {self.size} (bilinear, {antialias}, {levels})"

    def __call__(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t _ _"]:
        """The resized clip; levels 0..255 in and out."""
        batch, height, width = video.shape[0], video.shape[3], video.shape[4]
        frames = rearrange(video, "b c t h w -> (b t) c h w")
        target = (self.size, self.size)
        if self.mode == "crop":
            scale = self.size / min(height, width)
            target = (math.ceil(round(height * scale, 6)), math.ceil(round(width * scale, 6)))
        if (height, width) != target:
            frames = interpolate(frames, target, mode="bilinear", align_corners=False, antialias=self.antialias)
        top, left = (target[0] - self.size) // 2, (target[1] - self.size) // 2
        frames = frames[:, :, top : top + self.size, left : left + self.size]
        if self.round == "down":
            frames = frames.clamp(0, 255).floor()
        elif self.round == "nearest":
            frames = frames.clamp(0, 255).round()
        return rearrange(frames, "(b t) c h w -> b c t h w", b=batch)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to measure FVD; printed with every value.

    Attributes:
        name: Its key in `PROTOCOLS`.
        dataset: The resize that the protocol's dataset makes, None for clips as they come.
        network: The resize to I3D's 224 pixels.
        num_frames: Frames of a window, at least 9; None takes the whole clip.
        stride: Frames from one of a window to the next.
        clips_per_video: Windows of a video; 0 with the position `consecutive`: as many as there are.
        position: Where windows start: at the `first` frame, in the `center`, at `random` (seeded by the clip's name, so
            that the same video gives the same window wherever it is), or one after the other (`consecutive`; the last
            one, where it is cut, repeats the last frame).
        covariance: `sample` (over n - 1) or `population` (over n).
        num_videos: How many videos published figures use.
        seed: Of the random positions.
        source: Where the facts come from, and what they leave open.
    """

    name: str
    dataset: Resize | None = None
    network: Resize = Resize(size=SIZE, mode="stretch", antialias=False)
    num_frames: int | None = 16
    stride: int = 1
    clips_per_video: int = 1
    position: Position = "first"
    covariance: Covariance = "sample"
    num_videos: int | None = None
    seed: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.num_frames < MIN_FRAMES:
            raise KinemaError(f"`num_frames` (={self.num_frames}) must be at least {MIN_FRAMES}")
        if self.stride < 1:
            raise KinemaError(f"`stride` (={self.stride}) must be >= 1")
        if self.clips_per_video < (self.position != "consecutive"):
            raise KinemaError(f"`clips_per_video` (={self.clips_per_video}) must be >= 1")
        if self.dataset is not None and self.dataset.size < 1:
            raise KinemaError(f"`resolution` (={self.dataset.size}) must be >= 1")

    @property
    def frames_needed(self) -> int:
        """Frames a clip must have."""
        return ((self.num_frames or MIN_FRAMES) - 1) * self.stride + 1

    @property
    def first_frames(self) -> int | None:
        """How many frames of a clip are looked at, where they are its first; None: later ones may be, too."""
        return self.frames_needed if self.position == "first" and self.num_frames is not None else None

    def changed(
        self,
        *,
        num_frames: int | None = None,
        stride: int | None = None,
        resolution: int | None = None,
        clips_per_video: int | None = None,
        seed: int | None = None,
    ) -> "Protocol":
        """This protocol with what is not None replaced; `resolution` is the size of the dataset's resize.

        Raises:
            KinemaError: A value is out of range.
        """
        given = {"num_frames": num_frames, "stride": stride, "clips_per_video": clips_per_video, "seed": seed}
        values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        if resolution is not None:
            dataset = self.dataset or Resize(size=resolution, mode="crop", antialias=True, round="nearest")
            values["dataset"] = replace(dataset, size=resolution)
        # One window at the first frame or in the middle is all there is; more of them are random ones.
        if values.get("clips_per_video", 1) > 1 and self.position in ("first", "center"):
            values["position"] = "random"
        return replace(self, **values)

    def as_dict(self) -> dict[str, Any]:
        """All settings, ready for JSON; `changed` names those that differ from the published protocol."""
        settings = asdict(self)
        published = PROTOCOLS.get(self.name)
        settings["changed"] = [
            field.name
            for field in fields(self)
            if published is None or getattr(published, field.name) != getattr(self, field.name)
        ]
        return settings

    def __str__(self) -> str:
        """Every setting on one line: without them a value means nothing."""
        frames = "all frames" if self.num_frames is None else f"{self.num_frames} frames"
        number = f"{self.clips_per_video or 'as many as there are'} a video"
        first = "clips as they come" if self.dataset is None else f"clips {self.dataset}"
        published = "" if self.num_videos is None else f", published with {self.num_videos} videos"
        changed = self.as_dict()["changed"]
        other = f", changed from the published one in {', '.join(changed)}" if changed else ""
        return (
            f"protocol {self.name}: windows of {frames} with stride {self.stride}, {number}, position {self.position}, "
            f"seed {self.seed}; {first}, then {self.network}; covariance {self.covariance}{published}{other}"
        )

    @property
    def key(self) -> str:
        """Hash of what decides the features, whatever the protocol is called."""
        settings = {k: v for k, v in asdict(self).items() if k not in ("name", "source", "covariance", "num_videos")}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def windows(self, name: str, num_frames: int) -> list[Int64[Tensor, " t"]]:
        """Frame numbers of each window of a clip.

        Args:
            name: The clip's, which seeds random positions.
            num_frames: Frames the clip has.

        Raises:
            KinemaError: The clip is too short, or too long for a protocol that takes whole clips.
        """
        if num_frames < self.frames_needed:
            stride = f", {self.num_frames} with a stride of {self.stride}" if self.stride > 1 else ""
            raise KinemaError(
                f"clip {name!r} (of {num_frames} frames) must have at least {self.frames_needed} frames for the "
                f"protocol `{self.name}`{stride}"
            )
        length = self.num_frames or len(range(0, num_frames, self.stride))
        if self.num_frames is None and length > MOST_FRAMES:
            raise KinemaError(
                f"clip {name!r} (of {num_frames} frames) must have at most {MOST_FRAMES * self.stride} frames for the"
                f" protocol `{self.name}`, which takes whole clips at once, unless `num_frames` is set"
            )
        offsets = torch.arange(length) * self.stride
        last = num_frames - 1 - int(offsets[-1])
        if self.position == "first":
            starts = [0] * self.clips_per_video
        elif self.position == "center":
            starts = [last // 2] * self.clips_per_video
        elif self.position == "random":
            # A string seeds Python's generator by its SHA-512: the same on every machine.
            generator = random.Random(f"{self.seed} {name}")
            starts = [generator.randint(0, last) for _ in range(self.clips_per_video)]
        else:
            starts = list(range(0, num_frames, length * self.stride))[: self.clips_per_video or None]
        return [(start + offsets).clamp_max(num_frames - 1) for start in starts]

    def prepare(self, video: UInt8[Tensor, "b 3 t h w"] | Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t s s"]:
        """What I3D sees of windows: resized to 224, in [-1, 1].

        Args:
            video: Levels 0..255 in uint8, or floats in [-1, 1].

        Raises:
            KinemaError: A float is out of range or NaN.
        """
        # Large frames one after the other: as floats a window of them would not fit into memory.
        at_once = max(1, _PIXELS_AT_ONCE // (video.shape[0] * video.shape[3] * video.shape[4]))
        return torch.cat([self._prepare(frames) for frames in video.split(at_once, dim=2)], dim=2)

    def _prepare(self, video: UInt8[Tensor, "b 3 t h w"] | Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t s s"]:
        if video.dtype == torch.uint8:
            levels = video.float()
        else:
            low, high = (float(value) for value in video.aminmax())
            if not (low >= -1 - 1e-4 and high <= 1 + 1e-4):  # as it is written, NaN fails too
                raise KinemaError(f"`video` (from {low:.4g} to {high:.4g}) must be floats in [-1, 1], or uint8")
            levels = (video.float() + 1) * 127.5
        if self.dataset is not None:
            levels = self.dataset(levels)
        return self.network(levels) / 127.5 - 1


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="styleganv",
            position="random",
            covariance="population",
            num_videos=2048,
            source=(
                "StyleGAN-V (Skorokhodov et al. 2022), `fvd2048_16f`: frames as the dataset has them, stretched to 224 "
                "inside the torchscript without antialiasing; covariance over n. There real videos start at a random "
                "frame and generated ones at their first; here both start at a frame that the clip's name decides, so "
                "that a set against itself is 0."
            ),
        ),
        Protocol(
            name="styleganv-128f",
            num_frames=128,
            position="random",
            covariance="population",
            num_videos=2048,
            source="StyleGAN-V, `fvd2048_128f`; as `styleganv` otherwise.",
        ),
        Protocol(
            name="videogpt",
            network=Resize(size=SIZE, mode="crop", antialias=False),
            position="random",
            num_videos=256,
            source=(
                "VideoGPT (Yan et al. 2021): short side to 224 without antialiasing, middle crop; covariance "
                "over n - 1. That code gives I3D the range [-0.5, 0.5]; here it is the [-1, 1] that I3D was trained "
                "on, as in the code that others derived from it."
            ),
        ),
        Protocol(
            name="cd-fvd",
            dataset=Resize(size=256, mode="crop", antialias=True, round="down"),
            position="random",
            covariance="population",
            num_videos=2048,
            seed=42,
            source=(
                "cd-fvd (Ge et al. 2024) with `model='i3d'`: short side to 256 with antialiasing, middle crop, cut to "
                "uint8, stretched to 224 without antialiasing; a random window of each video; covariance over n."
            ),
        ),
        Protocol(
            name="vidtok",
            dataset=Resize(size=256, mode="crop", antialias=True),
            num_frames=17,
            clips_per_video=0,
            position="consecutive",
            num_videos=30,
            source=(
                "VidTok (Tang et al. 2024): MCL-JCV at 30 frames a second, 256 by short side and middle crop with "
                "antialiasing, all consecutive windows of 17 frames, the last one filled up with its last frame. The "
                "code of its FVD is not published: resize to 224 and covariance are the usual ones."
            ),
        ),
        Protocol(
            name="common-metrics",
            network=Resize(size=SIZE, mode="crop", antialias=False),
            num_frames=None,
            source=(
                "common_metrics_on_video_quality (JunyaoHu), which many papers run: all frames given, short side to "
                "224 without antialiasing, middle crop; covariance over n - 1."
            ),
        ),
    )
}
"""Published protocols by name."""


def find_protocol(protocol: str | Protocol) -> Protocol:
    """The protocol of that name, or the one given.

    Raises:
        KinemaError: No protocol has that name.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise KinemaError(f"`protocol` (={protocol!r}) must be one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]
