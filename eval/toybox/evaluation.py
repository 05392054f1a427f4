"""Generates clips from Toybox prompts that were never trained on, and counts how many show what was asked."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from kinema.errors import KinemaError
from kinema.eval.frames.psnr import decibels
from kinema.eval.toybox.oracle import Decision, Oracle
from kinema.eval.toybox.report import ToyboxReport, Truth, chance_of, check_oracle, fractions, share_of_all
from kinema.eval.toybox.tracking import relation_between
from kinema.files import check_output_file
from kinema.generation.guidance import SamplerSettings, sampler_settings
from kinema.training.data.toybox import ClipSpec, Toybox
from kinema.training.seeds import step_generator
from kinema.video import contact_sheet, to_uint8, write_image

if TYPE_CHECKING:
    from kinema.generation.pipeline import KinemaPipeline
    from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer

logger = logging.getLogger(__name__)

_LARGEST_PSNR = 120.0  # of equal images, where the formula says infinity and JSON has no word for it
_MOST_SHOWN = 24
_MOST_OBJECTS = 2  # a prompt gives the relation of two
_REVERSED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How clips are generated.

    Attributes:
        num_steps: Of the sampler; None takes the pipeline's own.
        guidance_scale: None takes the pipeline's own.
        guidance_interval: Noise levels between which guidance is applied; None takes the pipeline's own.
        seed: Of the noise.
        batch_size: Clips generated together; each has noise of its own, whatever the batch.
        image: Whether the rendered clip's first frame is given along with the prompt.
    """

    num_steps: int | None = None
    guidance_scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    seed: int = 0
    batch_size: int = 8
    image: bool = False


def evaluate(
    pipeline: "KinemaPipeline",
    world: Toybox,
    num_prompts: int = 200,
    sampling: Sampling | None = None,
    *,
    model: str = "",
    sheet: Path | str | None = None,
    overwrite: bool = False,
) -> ToyboxReport:
    """Measures how well a pipeline follows the prompts of a Toybox.

    First the oracle proves itself on rendered clips of the same prompts; then the pipeline generates a clip for each.

    Args:
        pipeline: Text- and image-to-video.
        world: The world of the prompts, with one or two objects in each clip, in the split that was not trained on; its
            frames have the size of the clips.
        num_prompts: How many, at least 2.
        sampling: How clips are generated.
        model: The model's name for the report.
        sheet: A PNG file to make, of generated clips with their prompts and what was seen.
        overwrite: Replace that file.

    Raises:
        KinemaError: An argument is outside what is allowed, or the file exists.
    """
    sampling = sampling or Sampling()
    # With two, one prompt can be held against the other's clip.
    limits = (
        ("num_prompts", num_prompts, 2), ("batch_size", sampling.batch_size, 1), ("num_steps", sampling.num_steps, 1),
    )  # fmt: skip
    for name, value, least in limits:
        if value is not None and value < least:
            raise KinemaError(f"`{name}` (={value}) must be at least {least}")
    settings = sampler_settings(
        pipeline.config, sampling.num_steps, sampling.guidance_scale, sampling.guidance_interval
    )
    if sheet is not None:
        check_output_file(sheet, overwrite=overwrite)
    least, most = world.num_objects
    if least != most or most > _MOST_OBJECTS:
        raise KinemaError(f"`world` (with {least} to {most} objects in a clip) must have one in each, or two in each")
    oracle = Oracle(world.atlas, world.height, world.width)
    prompts = world.specs(range(num_prompts))
    asked = [truth_of(spec) for spec in prompts]
    chance = chance_of(asked)

    real, reconstructed = _prove(oracle, pipeline.vae, world, prompts, sampling.batch_size)
    on_real, on_reconstructions = fractions(asked, real), fractions(asked, reconstructed)
    wrong = asked[num_prompts // 2 :] + asked[: num_prompts // 2]
    on_shuffled = fractions(wrong, real)
    complaints = check_oracle(on_real, on_reconstructions, on_shuffled, chance, num_prompts)
    for complaint in complaints:
        logger.warning("%s", complaint)

    clips: list[dict[str, Any]] = []
    shown: list[Tensor] = []
    first_frames: list[tuple[float, float]] = []
    for specs, generated in _generate(pipeline, world, prompts, sampling, settings):
        for spec, clip, caption in zip(specs, generated, world.captions(specs), strict=True):
            decisions = oracle.decide_all(clip, most)
            clips.append(
                {
                    "prompt": caption,
                    "asked": truth_of(spec),
                    "decided": seen(*decisions),
                    "explained": round(min(decision.explained for decision in decisions), 3),
                }
            )
        shown += [to_uint8(clip) for clip in generated[: _MOST_SHOWN - len(shown)]]
        if sampling.image:
            first_frames += _compare_first_frames(pipeline.vae, world.render(specs).video, generated)
    if sheet is not None:
        labels = [_label(clip) for clip in clips[: len(shown)]]
        write_image(sheet, contact_sheet(shown, labels), overwrite=overwrite)

    decided = [clip["decided"] for clip in clips]
    return ToyboxReport(
        **fractions(asked, decided),
        all=share_of_all(asked, decided),
        oracle_on_real=on_real,
        oracle_on_reconstructions=on_reconstructions,
        oracle_on_shuffled=on_shuffled,
        chance=chance,
        oracle_ok=not complaints,
        num_prompts=num_prompts,
        seed=sampling.seed,
        num_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        guidance_interval=settings.guidance_interval,
        model=model,
        objects="shapes" if world.sprites is None else "sprites",
        num_names=len(world.objects),
        num_objects=most,
        image=sampling.image,
        first_frame_psnr=sum(psnr for psnr, _ in first_frames) / len(first_frames) if first_frames else None,
        first_frame_max_difference=max(worst for _, worst in first_frames) if first_frames else None,
        clips=clips,
    )


def truth_of(spec: ClipSpec) -> Truth:
    """What the prompt of a clip with one or two objects asks for."""
    objects = sorted(spec.objects, key=lambda item: item.name)
    relation = spec.relation
    if relation is not None and objects[0] is not spec.objects[0]:
        relation = _REVERSED[relation]
    return _truth([item.name for item in objects], [item.motion for item in objects], spec.background, relation)


def seen(first: Decision, second: Decision | None = None) -> Truth:
    """What the oracle says of a clip's one or two objects, as `truth_of` says it."""
    if second is None:
        return _truth([first.object], [first.motion], first.background, None)
    relation = relation_between(first.track, second.track)
    return _truth([first.object, second.object], [first.motion, second.motion], first.background, relation)


def _truth(names: list[str], motions: list[str], background: str, relation: str | None) -> Truth:
    aspects = {"object": " and ".join(names), "motion": ", ".join(motions), "background": background}
    return aspects if relation is None else aspects | {"relation": relation}


def _in_batches(specs: list[ClipSpec], size: int, what: str) -> Iterator[list[ClipSpec]]:
    """Batches, with a progress bar on a terminal."""
    with tqdm(total=len(specs), desc=what, unit="clip", disable=None) as progress:
        for start in range(0, len(specs), size):
            batch = specs[start : start + size]
            yield batch
            progress.update(len(batch))


def _prove(
    oracle: Oracle, vae: "CausalVideoTokenizer", world: Toybox, specs: list[ClipSpec], batch_size: int
) -> tuple[list[Truth], list[Truth]]:
    """What the oracle says of rendered clips, and of what the tokenizer makes of them."""
    real: list[Truth] = []
    reconstructed: list[Truth] = []
    for batch in _in_batches(specs, batch_size, "oracle on real clips"):
        video = world.render(batch).video
        most = world.num_objects[1]
        real += [seen(*oracle.decide_all(clip, most)) for clip in video]
        reconstructed += [seen(*oracle.decide_all(clip, most)) for clip in _reconstruct(vae, video)]
    return real, reconstructed


def _generate(
    pipeline: "KinemaPipeline",
    world: Toybox,
    specs: list[ClipSpec],
    sampling: Sampling,
    settings: SamplerSettings,
) -> Iterator[tuple[list[ClipSpec], Float[Tensor, "b 3 t h w"]]]:
    """Batches of descriptions and of the clips, in [-1, 1], generated from their prompts."""
    pipeline.set_progress_bar_config(disable=True)
    done = 0
    try:
        for batch in _in_batches(specs, sampling.batch_size, "generated clips"):
            images: Any = None
            if sampling.image:
                images = (world.render(batch).video[:, :, 0] / 2 + 0.5).clamp(0, 1)
            frames = pipeline(
                world.captions(batch),
                image=images,
                num_frames=world.num_frames,
                height=world.height,
                width=world.width,
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=settings.guidance_scale,
                guidance_interval=settings.guidance_interval,
                generator=[
                    step_generator(sampling.seed, 0, done + number, "toybox evaluation") for number in range(len(batch))
                ],
                output_type="pt",
            )
            video = torch.as_tensor(frames.frames).float().cpu()  # pyright: ignore[reportAttributeAccessIssue]
            yield batch, rearrange(video * 2 - 1, "b t c h w -> b c t h w")
            done += len(batch)
    finally:
        pipeline.set_progress_bar_config(disable=None)


@torch.no_grad()
def _reconstruct(vae: "CausalVideoTokenizer", video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
    return vae.reconstruct(video.to(vae.device, vae.dtype)).float().cpu().clamp(-1, 1)


def _compare_first_frames(
    vae: "CausalVideoTokenizer", real: Float[Tensor, "b 3 t h w"], generated: Float[Tensor, "b 3 t h w"]
) -> list[tuple[float, float]]:
    """PSNR in dB and largest difference in [0, 1] of each clip's first frame to the given one, reconstructed alone."""
    wanted = _reconstruct(vae, real[:, :, :1].clamp(-1, 1))
    difference = ((generated[:, :, :1] - wanted) / 2).flatten(1)
    psnr = decibels(difference.square().mean(1), peak=1.0, ceiling=_LARGEST_PSNR)
    return list(zip(psnr.tolist(), difference.abs().amax(1).tolist(), strict=True))


def _label(clip: dict[str, Any]) -> str:
    decided = clip["decided"]
    verdict = "right" if decided == clip["asked"] else "seen: " + ", ".join(decided.values())
    return f"{clip['prompt']} ({verdict})"
