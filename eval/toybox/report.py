"""What an evaluation on Toybox prompts found, and whether its oracle can be believed."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kinema.files import atomic_path, check_output_file

LEAST_ON_REAL = 0.98
LEAST_ON_RECONSTRUCTIONS = 0.95

Truth = dict[str, str]
"""What a clip shows, by aspect: asked for, or seen.

The aspects are object, motion and background; of clips with two objects, "object" names both in alphabetical order,
"motion" their motions in that order, and "relation" says how the first stands to the second.
"""


@dataclass(frozen=True, kw_only=True)
class ToyboxReport:
    """What `evaluate` found; fractions are of `num_prompts` clips.

    Attributes:
        object: Share of generated clips that show the object of their prompt; where there are two, both.
        motion: Likewise.
        background: Likewise.
        relation: Share with the two objects in the place that the prompt says; None for one object.
        all: Share with every aspect right.
        oracle_on_real: The oracle's own shares on rendered clips of the same prompts.
        oracle_on_reconstructions: Its shares on what the tokenizer makes of these.
        oracle_on_shuffled: Its shares on rendered clips, each held against another clip's prompt.
        chance: What agreement by chance is for these prompts.
        oracle_ok: Whether the oracle keeps its bounds.
        num_prompts: Number of prompts.
        seed: Of the noise.
        num_steps: Of the sampler.
        guidance_scale: Of the sampler.
        guidance_interval: Noise levels between which guidance was applied.
        model: Name of the model.
        objects: "sprites" or "shapes".
        num_names: Names that the prompts choose from.
        num_objects: Objects in each prompt.
        image: Whether the first frame was given.
        first_frame_psnr: Mean PSNR in dB between the generated first frame and the given one as the tokenizer
            reconstructs it; 120 stands for equal; None without images.
        first_frame_max_difference: Largest difference between them, in [0, 1]; None without images.
        clips: Of each clip the prompt, what it asks for and what was seen.
    """

    object: float
    motion: float
    background: float
    relation: float | None = None
    all: float
    oracle_on_real: dict[str, float]
    oracle_on_reconstructions: dict[str, float]
    oracle_on_shuffled: dict[str, float]
    chance: dict[str, float]
    oracle_ok: bool
    num_prompts: int
    seed: int
    num_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]
    model: str
    objects: str
    num_names: int
    num_objects: int
    image: bool
    first_frame_psnr: float | None
    first_frame_max_difference: float | None
    clips: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; `confusions` lists the clips that show something else than was asked."""
        values = asdict(self)
        return {**values, "confusions": [clip for clip in values["clips"] if clip["decided"] != clip["asked"]]}

    def table(self) -> str:
        """The fractions as lines of text."""
        aspects = list(self.chance)
        rows = [
            (f"generated ({self.num_prompts} prompts)", {aspect: getattr(self, aspect) for aspect in aspects}),
            ("oracle on real clips", self.oracle_on_real),
            ("oracle on reconstructions", self.oracle_on_reconstructions),
            ("oracle on shuffled prompts", self.oracle_on_shuffled),
            ("chance", self.chance),
        ]
        lines = [f"{'':28}" + "".join(f"{aspect:>12}" for aspect in aspects)]
        lines += [f"{label:28}" + "".join(f"{values[aspect]:12.3f}" for aspect in aspects) for label, values in rows]
        lines.append(f"{'all of these right':28}{self.all:12.3f}")
        if self.first_frame_psnr is not None:
            lines.append(
                f"first frame as reconstructed: {self.first_frame_psnr:.1f} dB, "
                f"largest difference {self.first_frame_max_difference:.2g}"
            )
        if not self.oracle_ok:
            lines.append("The oracle is below its own bounds: the first line is not to be trusted.")
        return "\n".join(lines)


def fractions(asked: Sequence[Truth], decided: Sequence[Truth]) -> dict[str, float]:
    """Of each aspect, how often what was seen is what was asked."""
    return {
        aspect: sum(a[aspect] == d[aspect] for a, d in zip(asked, decided, strict=True)) / len(asked)
        for aspect in asked[0]
    }


def share_of_all(asked: Sequence[Truth], decided: Sequence[Truth]) -> float:
    """How often every aspect is what was asked."""
    return sum(a == d for a, d in zip(asked, decided, strict=True)) / max(len(asked), 1)


def chance_of(asked: Sequence[Truth]) -> dict[str, float]:
    """Of each aspect, how often two different ones of these prompts agree."""
    pairs = max(len(asked) * (len(asked) - 1), 1)
    shares = {}
    for aspect in asked[0]:
        values = [truth[aspect] for truth in asked]
        shares[aspect] = sum(values.count(value) * (values.count(value) - 1) for value in set(values)) / pairs
    return shares


def check_oracle(
    on_real: dict[str, float],
    on_reconstructions: dict[str, float],
    on_shuffled: dict[str, float],
    chance: dict[str, float],
    num_clips: int,
) -> list[str]:
    """What is wrong with the oracle, a sentence each; nothing if it keeps its bounds."""
    complaints = []
    for aspect in chance:
        for values, least, kind in (
            (on_real, LEAST_ON_REAL, "real clips"),
            (on_reconstructions, LEAST_ON_RECONSTRUCTIONS, "reconstructions"),
        ):
            if values[aspect] < least:
                complaints.append(
                    f"the oracle names the {aspect} of {values[aspect]:.1%} of the {kind}, less than {least:.0%}"
                )
        # Four standard deviations above chance: agreement by accident is a binomial.
        accident = 4 * math.sqrt(chance[aspect] * (1 - chance[aspect]) / num_clips)
        if on_shuffled[aspect] > chance[aspect] + accident + 1 / num_clips:
            complaints.append(
                f"the oracle finds the {aspect} of {on_shuffled[aspect]:.1%} of the wrong prompts, "
                f"far above chance ({chance[aspect]:.1%})"
            )
    return complaints


def write_report(report: ToyboxReport, path: Path | str, *, overwrite: bool = False) -> None:
    """Writes the report as JSON, whole or not at all.

    Raises:
        KinemaError: The file exists and `overwrite` is not set.
    """
    check_output_file(path, overwrite=overwrite)
    with atomic_path(path) as temporary:
        text = json.dumps(report.to_dict(), indent=1, allow_nan=False, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
