"""STREAM (Kim, Kim and Yoo 2024, "STREAM: Spatio-TempoRal Evaluation and Analysis Metric for Video Generative Models").

As its authors' code computes it. Features of frames are read as signals over time: their mean says what a clip shows,
the shape of their spectrum how it changes. Shapes: features `b t d`, of one length t.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from kinema.errors import KinemaError
from kinema.eval.distributions.manifold import NUM_NEIGHBOURS, manifold_scores
from kinema.eval.generation.looks import Look, Networks
from kinema.eval.summaries import gather_states, place_state

_NUM_BINS = 50
_LEAST_AMPLITUDE = 1e-6
_STATES = ("real_skewness", "real_mean", "fake_skewness", "fake_mean")


def spectrum(features: Float[Tensor, "b t d"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
    """Skewness and mean of every feature over time.

    The amplitudes of frequencies 1..t/2 are fitted by a power law, log amplitude = B log k + log A, by least squares.
    The skewness is `sum k^(B+3) sqrt(sum k^B) / sqrt(sum k^(B+2))`; A drops out. The mean is the amplitude of frequency
    0, `2 |sum over t| / (1 + t/2)`, which is not negative: about 4 times the absolute mean.

    Args:
        features: Vectors of frames, at least 4 of them: a line needs two frequencies.

    Raises:
        KinemaError: Fewer than 4 frames, or values that are not finite.
    """
    num_frames = features.shape[1]
    if num_frames < 4:
        raise KinemaError(f"`clip` (of {num_frames} frames) must have at least 4 frames for STREAM")
    if not features.isfinite().all():
        raise KinemaError("`features` (some are NaN or infinite) must be finite")
    highest = num_frames // 2
    amplitude = 2 * torch.fft.rfft(features.double(), dim=1)[:, : highest + 1].abs() / (highest + 1)
    k = torch.arange(1, highest + 1, dtype=torch.float64, device=features.device)
    log_k = k.log() - k.log().mean()
    log_amplitude = (amplitude[:, 1:] + _LEAST_AMPLITUDE).log()
    slope = torch.einsum("k,bkd->bd", log_k, log_amplitude) / log_k.square().sum()

    def power_sum(power: int) -> Tensor:
        return (k.log() * (slope.unsqueeze(-1) + power)).exp().sum(-1)

    return power_sum(3) * power_sum(0).sqrt() / power_sum(2).sqrt(), amplitude[:, 0]


def stream_t(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"]) -> float:
    """STREAM-T, in [0, 1]: how alike two sets of clips change over time.

    Of every feature, the squared correlation between the histograms of the two sets' skewness, 50 bins over the whole
    numbers around both; then the mean over features.

    Args:
        real: Skewness of one set, from `spectrum`.
        fake: Of the other.
    """
    both = torch.cat([real, fake])
    # Towards zero, as int() does in the authors' code.
    low, high = both.amin(0).trunc() - 1, both.amax(0).trunc() + 1
    x, y = (_histograms(values, low, high) for values in (real, fake))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    correlation = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1) + 1e-12)
    return float(correlation.square().mean())


def _histograms(values: Float[Tensor, "n d"], low: Float[Tensor, " d"], high: Float[Tensor, " d"]) -> Tensor:
    """Shares `d 50` of the values in each bin; the last bin has both its ends."""
    index = ((values - low) * _NUM_BINS / (high - low)).long().clamp(0, _NUM_BINS - 1)
    counts = torch.zeros(values.shape[1], _NUM_BINS, dtype=torch.float64, device=values.device)
    return counts.scatter_add_(1, index.T, torch.ones_like(index.T, dtype=torch.float64)) / len(values)


class STREAM(Metric):
    """STREAM-T, -F and -D of fake clips against real ones, from features of their frames.

    What is kept is two vectors a clip. F (fidelity) and D (diversity) are precision and recall, k = 5, on the mean of
    `spectrum`, so either set needs 6 clips. Values depend on the network of the features and on the number of frames.
    `.to` moves what is kept; a process may have no clip at all.

    Args:
        num_frames: Length of all clips; 16 as in the paper.

    Raises:
        KinemaError: `num_frames` < 4.
    """

    is_differentiable = False
    full_state_update = False
    real_skewness: list[Tensor]
    real_mean: list[Tensor]
    fake_skewness: list[Tensor]
    fake_mean: list[Tensor]

    def __init__(self, num_frames: int = 16) -> None:
        super().__init__(dist_sync_fn=gather_states)
        if num_frames < 4:
            raise KinemaError(f"`num_frames` (={num_frames}) must be at least 4")
        self.num_frames = num_frames
        for name in _STATES:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, features: Float[Tensor, "b t d"], real: bool) -> None:
        """Counts clips.

        Args:
            features: Vectors of their frames.
            real: Whether they are the real ones.

        Raises:
            KinemaError: Another number of frames, or values that are not finite.
        """
        if features.shape[1] != self.num_frames:
            raise KinemaError(f"`features` (of {features.shape[1]} frames) must have {self.num_frames} frames")
        skewness, mean = (values.to(self.device) for values in spectrum(features))
        (self.real_skewness if real else self.fake_skewness).append(skewness)
        (self.real_mean if real else self.fake_mean).append(mean)

    def compute(self) -> dict[str, float]:
        """`stream_t`, `stream_f` and `stream_d`, each in [0, 1].

        Raises:
            KinemaError: Fewer than 6 clips in either set.
        """
        for name, rows in (("real", self.real_mean), ("fake", self.fake_mean)):
            count = len(_cat(rows)) if len(rows) else 0
            if count <= NUM_NEIGHBOURS:
                raise KinemaError(f"`{name}` (={count} clips) must be at least {NUM_NEIGHBOURS + 1} clips for STREAM")
        scores = manifold_scores(_cat(self.real_mean), _cat(self.fake_mean), k=NUM_NEIGHBOURS)
        return {
            "stream_t": stream_t(_cat(self.real_skewness), _cat(self.fake_skewness)),
            "stream_f": scores.precision,
            "stream_d": scores.recall,
        }


def _cat(rows: Sequence[Tensor] | Tensor) -> Tensor:
    """All rows; after a sum over processes they are one tensor already."""
    return rows if isinstance(rows, Tensor) else torch.cat(list(rows))


class StreamOfLooks:
    """`STREAM` of the frame network's features, of every clip's first frames; no other frames go through the network.

    Args:
        networks: The networks; `stream_frames` is the number of frames.

    Raises:
        KinemaError: The frame network cannot be had.
    """

    def __init__(self, networks: Networks) -> None:
        self.stream = place_state(STREAM(networks.stream_frames), networks.device)
        assert networks.frames  # loaded before the first clip, so that a mistake shows at once

    def update(self, look: Look, real: bool) -> None:
        """Counts a clip.

        Raises:
            KinemaError: It has fewer frames than are looked at.
        """
        if look.num_frames < self.stream.num_frames:
            raise KinemaError(
                f"`clip` (of {look.num_frames} frames) must have at least {self.stream.num_frames} frames for STREAM:"
                " `stream_frames`"
            )
        self.stream.update(look.first_frame_features(self.stream.num_frames)[None], real)

    def compute(self) -> dict[str, float]:
        """As `STREAM.compute`."""
        return self.stream.compute()


make = StreamOfLooks
