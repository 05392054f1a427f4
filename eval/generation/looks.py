"""One look at frames of a clip for all metrics: what a network sees in them is computed once, when it is asked for."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.eval.frames.features import FrameFeatures
from kinema.eval.generation.requirements import STREAM_FRAMES
from kinema.eval.motion.flow import FLOW_SIDE, load_flow
from kinema.eval.motion.frame_networks import DEFAULT_FRAME_NETWORK, CLIPFrameNetwork, load_frame_network
from kinema.eval.text.clip import CLIPEncoder, load_clip


@dataclass(frozen=True, kw_only=True)
class ClipMeasure:
    """A metric of clips that comes from a number for every frame, so that long clips are measured in windows.

    Attributes:
        curve: The frames' numbers, ` t`, of a look; NaN where there is none.
        value: A clip's number, from those of all its frames.
        before: Frames before a frame on which its number depends; besides, it may depend on the clip's first.
        after: Frames after it, likewise.
        multiple: A window must begin at a multiple of so many frames.
    """

    curve: "Callable[[Look], Float[Tensor, ' t']]"
    value: Callable[[Float[Tensor, " t"]], float]
    before: int = 0
    after: int = 0
    multiple: int = 1


def mean_of_defined(curve: Float[Tensor, " t"]) -> float:
    """Mean over the frames that have a number."""
    return float(curve.nanmean())


class Networks:
    """The networks that metrics share, each loaded when it is first asked for, and the settings of their use.

    Args:
        clip: A CLIP, or its hub id or folder; None: none was named.
        frame_network: Name of a frame network (`load_frame_network`), or one in memory, uint8 `n 3 h w` to `n d`;
            None: `DEFAULT_FRAME_NETWORK`, and the CLIP, if there is one, for frame consistency.
        flow: A network of optical flow, `n 3 h w` in [-1, 1] twice to `n 2 h w`; None: RAFT.
        flow_side: RAFT sees smaller frames enlarged to this short side; less is faster, and misses small things.
        device: Where to compute.
        weights: Files of networks' weights, by the networks' names in `kinema weights`; others come from the cache.
        fps: Frames a second of the clips.
        stream_frames: Frames of a clip that STREAM looks at.
    """

    def __init__(
        self,
        *,
        clip: str | os.PathLike[str] | CLIPEncoder | None = None,
        frame_network: str | nn.Module | None = None,
        flow: nn.Module | None = None,
        flow_side: int = FLOW_SIDE,
        device: torch.device | str = "cpu",
        weights: Mapping[str, Path] | None = None,
        fps: float = 8.0,
        stream_frames: int = STREAM_FRAMES,
    ) -> None:
        self.device = torch.device(device)
        self.weights = weights or {}
        self.fps = fps
        self.flow_side = flow_side
        self.stream_frames = stream_frames
        self.used: dict[str, str] = {}
        """The networks that metrics asked for: role -> name."""
        self._clip = clip
        self._frame_network = frame_network
        self._flow = flow
        self.consistency: str | None = None
        """The dimension of VBench that frame consistency stands for, by its features; None: they were not asked for."""

    @property
    def has_clip(self) -> bool:
        """Whether a CLIP was named."""
        return self._clip is not None

    @cached_property
    def clip(self) -> CLIPEncoder:
        """The CLIP.

        Raises:
            KinemaError: None was named, or it cannot be had.
        """
        if self._clip is None:
            raise KinemaError("`clip` (=None) must name a CLIP, by hub id or folder")
        clip = self._clip if isinstance(self._clip, CLIPEncoder) else load_clip(self._clip, device=self.device)
        self.used["clip"] = clip.name
        return clip

    @cached_property
    def frames(self) -> FrameFeatures:
        """Features of frames.

        Raises:
            KinemaError: The network cannot be had.
        """
        network = self._frame_network or DEFAULT_FRAME_NETWORK
        if isinstance(network, str):
            self.used["frame_network"] = network
            network = load_frame_network(network, self.weights)
        else:
            self.used["frame_network"] = type(network).__name__
        return FrameFeatures(network.to(self.device).eval(), self.device)

    @cached_property
    def flow(self) -> nn.Module:
        """The optical flow network.

        Raises:
            KinemaError: Its weights cannot be had.
        """
        network = self._flow
        if network is None:
            network = load_flow(self.weights.get("raft"), side=self.flow_side)
            self.used["flow"] = "raft"
        else:
            self.used["flow"] = type(network).__name__
        return network.to(self.device).eval()

    def use_consistency_features(self) -> Callable[["Look"], Float[Tensor, "t d"]]:
        """The features for frame consistency: of a frame network that was named, else of the CLIP, else the default.

        Raises:
            KinemaError: The network cannot be had.
        """
        if self._frame_network is None and self.has_clip:
            self.used["frame_consistency"] = self.clip.name
            self.consistency = "background_consistency"
            return lambda look: look.clip_features
        assert self.frames  # loaded before the first clip, so that a mistake shows at once
        self.used["frame_consistency"] = self.used["frame_network"]
        is_clip = isinstance(self.frames.network, CLIPFrameNetwork)
        self.consistency = "background_consistency" if is_clip else "subject_consistency"
        return lambda look: look.frame_features


class Look:
    """Frames of a clip, and what networks see in them.

    Args:
        frames: As in a file.
        prompt: What it should show.
        networks: The networks.
        opening: The look at the clip's first window; None: this is the first.
    """

    def __init__(
        self, frames: UInt8[Tensor, "t h w 3"], prompt: str, networks: Networks, opening: "Look | None" = None
    ) -> None:
        self.prompt = prompt
        self.networks = networks
        self.opening = opening or self
        self.clip: UInt8[Tensor, "1 3 t h w"] = rearrange(frames, "t h w c -> 1 c t h w")

    @property
    def num_frames(self) -> int:
        """How many frames are looked at."""
        return self.clip.shape[2]

    @cached_property
    def clip_features(self) -> Float[Tensor, "t d"]:
        """Unit vectors of the frames by CLIP."""
        return self.networks.clip.image_features(rearrange(self.clip, "1 c t h w -> t c h w"))

    @cached_property
    def frame_features(self) -> Float[Tensor, "t d"]:
        """Vectors of the frames by the frame network."""
        return self.networks.frames(self.clip)

    def first_frame_features(self, num_frames: int) -> Float[Tensor, "_ d"]:
        """`frame_features` of the first frames; of no others, unless they were asked for already."""
        if "frame_features" in self.__dict__:
            return self.frame_features[:num_frames]
        return self.networks.frames(self.clip[:, :, :num_frames])
