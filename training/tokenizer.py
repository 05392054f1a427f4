"""Training of a video tokenizer."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.eval.frames.psnr import clip_psnr
from kinema.eval.weights import find_weights
from kinema.tokenizers.base import LatentTokenizer
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.transfer import check_transfer, transfer
from kinema.tokenizers.interface import pad_to_grid
from kinema.tokenizers.published.loading import load_tokenizer
from kinema.tokenizers.quantizers.usage import CodebookUsage
from kinema.tokenizers.registry import make_tokenizer
from kinema.training.accelerator import make_accelerator
from kinema.training.config import TokenizerTrainingConfig
from kinema.training.data.batches import TokenizerBatches
from kinema.training.data.registry import SOURCES
from kinema.training.entry import run_program
from kinema.training.latent_statistics import measure_latents
from kinema.training.latents_cache import model_hash
from kinema.training.loop import train as run_loop
from kinema.training.losses.adversarial import Adversary, last_weight
from kinema.training.losses.image_vae import ImageVAE
from kinema.training.losses.perceptual import make_lpips, some_frames
from kinema.training.losses.reconstruction import charbonnier, l1, mse
from kinema.training.optimization import process_mean
from kinema.training.presets import TOKENIZER_PRESETS, select_preset
from kinema.training.record import Contents, Record, check_data, check_depends
from kinema.training.run import open_run
from kinema.training.samples import Samples
from kinema.training.seeds import step_generator
from kinema.training.task import Discriminator, StepLoss, Task
from kinema.video import to_uint8

logger = logging.getLogger(__name__)

AFTER_TRAINING = 10**9  # batches of steps that no training reaches: for statistics


class TokenizerTask(Task[Tensor]):
    """A tokenizer, clips for it, and its loss."""

    def __init__(
        self,
        config: TokenizerTrainingConfig,
        accelerator: Accelerator,
        model: nn.Module | None = None,
        start: Record | None = None,
    ) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        self.transfer_from: Any = None
        if model is None:
            # A run that goes on has its weights in the checkpoint.
            model, self.transfer_from = start_model(config if start is None else replace(config, init_from=None))
        self.model: Any = model
        if start is not None and start.statistics is not None:
            self.model.set_latent_statistics(*map(torch.tensor, start.statistics))
        if config.init_linear or config.init_from is not None:
            self.model.freeze_linear()
        if config.freeze_encoder:
            self.model.encoder.requires_grad_(False)
            self.model.quantizer.requires_grad_(False)
        self.average = process_mean(accelerator)
        self.adversary: Adversary | None = None
        if config.adversarial_weight:
            self.adversary = Adversary(config.discriminator_width, config.discriminator_levels, config.lecam_weight)
            rate = config.discriminator_learning_rate
            self.discriminator = Discriminator(module=self.adversary, learning_rate=rate)
        with accelerator.main_process_first():  # it decodes the videos, the others find them in the cache
            ranks = accelerator.process_index, accelerator.num_processes
            self.batches = TokenizerBatches(config, *ranks, device=accelerator.device)
        self.validation = self.batches.validation_clips() if accelerator.is_main_process else {}
        self.lpips = make_lpips(accelerator.device) if config.lpips_weight else None
        self.score_lpips = start_score(config, accelerator.device) if accelerator.is_main_process else None
        self.score_name = name_of_score(config, self.score_lpips is not None)
        self.image_vae: ImageVAE | None = None
        if config.image_vae is not None:
            ratio = self.model.spatial_compression_ratio
            self.image_vae = ImageVAE(config.image_vae, self.model.latent_channels, ratio, accelerator.device)
        self.depends = {"image_vae": None if self.image_vae is None else model_hash(self.image_vae.vae)}
        check_depends(config, "image_vae", self.depends["image_vae"], start)
        self.contents = self.batches.contents()
        check_data(config, self.contents, start)
        size = getattr(self.model.quantizer, "codebook_size", None)
        self.usage = None if size is None else CodebookUsage(size)
        self.step = 0

    def depends_on(self) -> dict[str, Any]:
        return self.depends

    def data_contents(self) -> Contents:
        return self.contents

    def save_data_report(self, path: Path) -> None:
        self.batches.save_report(path)

    def prepare(self) -> None:
        """Starts from a tokenizer with another bottleneck or from the best linear code, as the configuration says."""
        clips = LongClips(self.batches, 32)
        if self.transfer_from is not None:
            transfer(self.transfer_from, self.model, clips)
            self.transfer_from = None
        elif self.config.init_linear:
            self.model.init_linear(clips)

    def batch(self, step: int) -> Tensor:
        return self.batches(step)

    def num_clips(self, batch: Tensor) -> int:
        return batch.shape[0]

    def start_step(self, step: int) -> None:
        self.step = step
        if self.config.freeze_encoder:  # no codebook moves
            self.model.encoder.eval()
            self.model.quantizer.eval()

    def loss(self, model: nn.Module, batch: Tensor, generator: torch.Generator) -> StepLoss:
        config = self.config
        reconstruction, output = model(batch, sample_posterior=config.sample_posterior, generator=generator)
        reconstruction = reconstruction.float()
        terms: dict[str, Tensor] = {}
        pixel_loss = partial(self._pixel_loss, batch=batch, generator=generator, terms=terms)
        if self.adversary is not None and self.step >= config.adversarial_start:
            total, more = self.adversary.blend(
                reconstruction,
                pixel_loss,
                last_weight(self.model.decoder),
                config.adversarial_weight,
                adaptive=config.adversarial_adaptive,
                average=self.average,
            )
            terms |= more
        else:
            total = pixel_loss(reconstruction)
        losses = dict(output.losses)
        if self.image_vae is not None:
            ratios = self.model.temporal_compression_ratio, self.model.spatial_compression_ratio
            decode = config.image_decode_weight > 0
            losses |= self.image_vae.distances(output.latents, pad_to_grid(batch, *ratios), decode)
        for name, value in losses.items():
            terms[name] = value
            total = total + getattr(config, f"{name}_weight") * value
        if self.usage is not None:
            self.usage.update(output.indices, torch.isfinite(total.detach()))  # what is not finite has no code
        return StepLoss(total, terms, outputs=(batch, reconstruction.detach()))

    def _pixel_loss(
        self, reconstruction: Tensor, batch: Tensor, generator: torch.Generator, terms: dict[str, Tensor]
    ) -> Tensor:
        """The loss of pixels and of what LPIPS sees in them; its parts go into `terms`."""
        config = self.config
        terms |= {"mse": mse(reconstruction, batch), "l1": l1(reconstruction, batch)}
        total = config.mse_weight * terms["mse"] + config.l1_weight * terms["l1"]
        if config.charbonnier_weight:
            terms["charbonnier"] = charbonnier(reconstruction, batch)
            total = total + config.charbonnier_weight * terms["charbonnier"]
        if self.lpips is not None:
            terms["lpips"] = self.lpips(*some_frames((reconstruction, batch), config.lpips_frames, generator))
            total = total + config.lpips_weight * terms["lpips"]
        return total

    def trains_discriminator(self) -> bool:
        start = self.config.adversarial_start - self.config.discriminator_lead
        return self.adversary is not None and self.step >= start

    def discriminator_loss(self, discriminator: nn.Module, outputs: tuple[Tensor, Tensor]) -> StepLoss:
        """The loss on clips and their reconstructions, in one pass."""
        assert self.adversary is not None
        return StepLoss(*self.adversary.loss(discriminator(torch.cat(outputs)), self.average))

    def numbers(self) -> dict[str, float]:
        """Use of the codebook by all processes since the last line of the log."""
        if self.usage is None:
            return {}
        total = CodebookUsage(self.usage.codebook_size)
        for codes, counts in gather_object([(self.usage.codes, self.usage.counts)]):
            total.add(codes, counts)
        self.usage.reset()
        return total.compute() if len(total.codes) else {}

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """PSNR of each validation source; their mean, with LPIPS where that is in the score; use of the codebook."""
        tokenizer: Any = model
        scores: dict[str, float] = {}
        distances: dict[str, float] = {}
        usage = None if self.usage is None else CodebookUsage(self.usage.codebook_size)
        for name, clips in self.validation.items():
            psnrs, lpips = [], []
            for clip in clips:
                video = clip[None].to(tokenizer.device)
                code = tokenizer.encode(video)
                sizes = code.num_frames, code.height, code.width
                reconstruction = tokenizer.decode(code.latents, *sizes).sample.clamp(-1, 1).float()
                psnrs.append(float(clip_psnr(clip[None], reconstruction.cpu())))
                if self.score_lpips is not None:
                    lpips.append(float(self.score_lpips(reconstruction, video)))
                if usage is not None:
                    usage.update(code.indices)
            scores[name] = sum(psnrs) / len(psnrs)
            if lpips:
                distances[name] = sum(lpips) / len(lpips)
        if not scores:
            return {}
        numbers = {"score": mean_of_files(scores)}
        if distances:
            numbers |= {"psnr": numbers["score"], "lpips": mean_of_files(distances)}
            numbers["score"] -= self.config.lpips_in_score * numbers["lpips"]
        numbers |= {f"psnr_{name}": value for name, value in scores.items()}
        return numbers | (usage.compute() if usage is not None else {})

    @torch.no_grad()
    def sample(self, model: nn.Module) -> Samples:
        """Clips over their reconstructions."""
        tokenizer: Any = model
        clips = [c[0] for c in list(self.validation.values())[:4]] or [self.batches(0)[0].cpu()]
        rows, labels = [], []
        for clip in clips:
            reconstruction = tokenizer.reconstruct(clip[None].to(tokenizer.device)).float().cpu()
            rows += [to_uint8(clip), to_uint8(reconstruction[0])]
            labels += ["input", f"reconstruction, {float(clip_psnr(clip[None], reconstruction)):.2f} dB"]
        return Samples(rows, labels)

    @torch.no_grad()
    def export(self, model: nn.Module, folder: Path) -> None:
        """Measures the latents on training clips, then saves the tokenizer.

        Latents that stay what they were keep their statistics: models are trained on them.
        """
        tokenizer: Any = model
        if self.config.freeze_encoder and tokenizer.config.latents_mean is not None:
            tokenizer.save_pretrained(folder)
            return
        clips = LongClips(self.batches, 16)
        generator = step_generator(self.config.seed, 0, AFTER_TRAINING, "latents")
        measure_latents(tokenizer, clips, self.config.latent_balance, generator)
        tokenizer.save_pretrained(folder)


class LongClips(Sequence[Tensor]):
    """Batches that no training step reaches, of the longest of the shapes: for starts and statistics, made when asked.

    Still images are left out where there are clips: the first frame of a latent grid is not like the others.
    """

    def __init__(self, batches: TokenizerBatches, length: int) -> None:
        self.batches, self.length = batches, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.batches(AFTER_TRAINING + index, self.batches.longest).cpu()


def name_of_score(config: TokenizerTrainingConfig, with_lpips: bool) -> str:
    """What the score measures: its terms, and on which clips."""
    terms = f"PSNR - {config.lpips_in_score:g} LPIPS" if with_lpips else "PSNR"
    files = ", ".join(config.validation) or "no files"
    return f"{terms} on {config.validation_clips} {config.validation_shape} of {files}"


def mean_of_files(values: dict[str, float]) -> float:
    """The mean over held-out files; data sources other than folders count only if there are no such files."""
    files = [value for name, value in values.items() if name not in SOURCES] or list(values.values())
    return sum(files) / len(files)


def start_score(config: TokenizerTrainingConfig, device: torch.device) -> Any:
    """LPIPS for the score, where the score has it and the weights are on this machine.

    AlexNet's, while the loss takes VGG's: what is optimised is a poor judge of itself.
    """
    if not config.lpips_in_score:
        return None
    if find_weights("lpips-alex") is None:
        logger.warning("the score is PSNR alone: LPIPS needs `kinema weights fetch lpips-alex`")
        return None
    return make_lpips(device, "alex")


def start_model(config: TokenizerTrainingConfig) -> tuple[Any, Any]:
    """What training starts from: the preset untrained, or the tokenizer in `init_from`.

    Returns:
        The model, and the tokenizer whose networks it is to take over (see `transfer`) or None.

    Raises:
        KinemaError: `init_from` holds no tokenizer, or one that is not of the preset.
    """
    fresh = make_tokenizer(config.preset)
    if config.init_from is None:
        return fresh, None
    loaded = load_own_tokenizer(config.init_from, "init_from")
    if type(loaded) is not type(fresh):
        raise KinemaError(
            f"`init_from` (={config.init_from}) must be a {type(fresh).__name__}, as {config.preset} is, and not a "
            f"{type(loaded).__name__}"
        )
    differing = set()
    for name, wanted in fresh.config.items():
        measured = name.startswith("_") or name in ("latents_mean", "latents_std")
        if not measured and json.dumps(loaded.config.get(name)) != json.dumps(wanted):  # lists and tuples are the same
            differing.add(name)
    transferable = type(fresh) is CausalVideoTokenizer
    for name in sorted(differing):
        if not transferable or name != "bottleneck":
            raise KinemaError(
                f"`init_from` (={config.init_from}) must have `{name}` {fresh.config[name]} of {config.preset}, "
                f"not {loaded.config.get(name)}"
            )
    if not differing:
        return loaded, None
    try:
        check_transfer(loaded, fresh)
    except KinemaError as error:
        raise KinemaError(f"`init_from` (={config.init_from}) does not fit {config.preset}: {error}") from error
    return fresh, loaded


def load_own_tokenizer(name: Path | None, argument: str = "tokenizer") -> Any:
    """Load the tokenizer that the setting `argument` names, which must be one of kinema's own classes.

    Raises:
        KinemaError: `name` is None, cannot be loaded, or is a tokenizer of another class.
    """
    if name is None:
        raise KinemaError(
            f"`{argument}` (=None) must be the folder of a trained tokenizer, or the name of an embedded one"
        )
    tokenizer = load_tokenizer(name, argument=argument)
    if not isinstance(tokenizer, LatentTokenizer):
        kind = type(tokenizer).__name__
        raise KinemaError(f"`{argument}` (={str(name)!r}, a {kind}) must be one of kinema's own tokenizers")
    return tokenizer


def train(config: TokenizerTrainingConfig, model: nn.Module | None = None) -> Path:
    """Trains a tokenizer (a new one of the preset, unless one is given) and returns the folder of the result.

    Raises:
        KinemaError: the configuration, the data or the run's folder does not allow it.
    """
    if model is None:
        select_preset(TOKENIZER_PRESETS, config.preset)
    accelerator = make_accelerator(config)
    with open_run(config, accelerator) as run:
        return run_loop(TokenizerTask(run.config, accelerator, model, run.start), run, accelerator)


def main(argv: list[str] | None = None, program: str = "train_tokenizer") -> None:
    """Entry point: PRESET and settings from the command line.

    Raises:
        KinemaError: what the command line asks for is not allowed.
    """
    run_program(train, TOKENIZER_PRESETS, argv, program)
