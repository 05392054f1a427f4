"""Training of a video tokenizer."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import interpolate

from kinema.errors import KinemaError
from kinema.eval.frames.psnr import clip_psnr
from kinema.generation.loading import check_weights, one_line, quiet_loading
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import PRESETS
from kinema.training.config import TOKENIZER_PRESETS, TokenizerTrainingConfig, select_preset
from kinema.training.data.batches import TokenizerBatches
from kinema.training.entry import parse_arguments, run_log
from kinema.training.latent_statistics import measure_latents
from kinema.training.loop import Task, make_accelerator
from kinema.training.loop import train as run_loop
from kinema.training.losses.reconstruction import charbonnier, l1, mse
from kinema.training.samples import Samples
from kinema.training.seeds import step_generator
from kinema.video import to_uint8

logger = logging.getLogger(__name__)

AFTER_TRAINING = 10**9  # batches of steps that no training reaches: for statistics


class TokenizerTask(Task[Tensor]):
    """A tokenizer, clips for it, and its loss."""

    def __init__(
        self, config: TokenizerTrainingConfig, accelerator: Accelerator, model: nn.Module | None = None
    ) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        self.model: Any = model or start_model(config)
        if config.init_linear:
            self.model.freeze_linear()
        if config.freeze_encoder:
            self.model.encoder.requires_grad_(False)
        with accelerator.main_process_first():  # it decodes the videos, the others find them in the cache
            self.batches = TokenizerBatches(config, accelerator.process_index, accelerator.num_processes)
        self.validation = self.batches.validation_clips() if accelerator.is_main_process else {}
        self.lpips = make_lpips(accelerator.device) if config.lpips_weight else None

    def prepare(self) -> None:
        """Starts from the best linear code, where the configuration says so."""
        if self.config.init_linear:
            self.model.init_linear(self.batches(AFTER_TRAINING + k) for k in range(32))

    def batch(self, step: int) -> Tensor:
        return self.batches(step)

    def num_clips(self, batch: Tensor) -> int:
        return batch.shape[0]

    def loss(self, model: nn.Module, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        reconstruction, output = model(batch, sample_posterior=config.sample_posterior, generator=generator)
        reconstruction = reconstruction.float()
        terms = {"mse": mse(reconstruction, batch), "l1": l1(reconstruction, batch)}
        total = config.mse_weight * terms["mse"] + config.l1_weight * terms["l1"]
        if config.charbonnier_weight:
            terms["charbonnier"] = charbonnier(reconstruction, batch)
            total = total + config.charbonnier_weight * terms["charbonnier"]
        if self.lpips is not None:
            terms["lpips"] = self.lpips(reconstruction, batch)
            total = total + config.lpips_weight * terms["lpips"]
        for name, value in output.losses.items():
            terms[name] = value
            total = total + getattr(config, f"{name}_weight") * value
        return total, terms

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """PSNR of each validation source and their mean (the score)."""
        tokenizer: Any = model
        scores: dict[str, float] = {}
        for name, clips in self.validation.items():
            each = [clip_psnr(c[None], tokenizer.reconstruct(c[None].to(tokenizer.device)).cpu()) for c in clips]
            scores[name] = float(torch.cat(each).mean())
        if not scores:
            return {}
        files = [value for name, value in scores.items() if name != "toybox"]
        score = sum(files) / len(files) if files else scores["toybox"]
        return {"score": score} | {f"psnr_{name}": value for name, value in scores.items()}

    @torch.no_grad()
    def sample(self, model: nn.Module) -> Samples:
        """Clips over their reconstructions."""
        tokenizer: Any = model
        clips = [c[0] for c in list(self.validation.values())[:4]] or [self.batches(0)[0]]
        rows, labels = [], []
        for clip in clips:
            reconstruction = tokenizer.reconstruct(clip[None].to(tokenizer.device)).float().cpu()
            rows += [to_uint8(clip), to_uint8(reconstruction[0])]
            labels += ["input", f"reconstruction, {float(clip_psnr(clip[None], reconstruction)):.2f} dB"]
        return Samples(rows, labels)

    @torch.no_grad()
    def export(self, model: nn.Module, folder: Path) -> None:
        """Measures the latents on training clips, then saves the tokenizer."""
        tokenizer: Any = model
        clips = [self.batches(AFTER_TRAINING + k)[: self.config.batch_size] for k in range(16)]
        generator = step_generator(self.config.seed, 0, AFTER_TRAINING, "latents")
        measure_latents(tokenizer, clips, self.config.latent_balance, generator)
        tokenizer.save_pretrained(folder)


def start_model(config: TokenizerTrainingConfig) -> CausalVideoTokenizer:
    """What training starts from: the preset untrained, or the tokenizer in `init_from`.

    Raises:
        KinemaError: `init_from` holds no tokenizer, or one that is not of the preset.
    """
    fresh = CausalVideoTokenizer.from_preset(config.preset)
    if config.init_from is None:
        return fresh
    loaded = load_tokenizer(config.init_from, "init_from")
    for name in PRESETS[config.preset]:
        given, wanted = loaded.config[name], fresh.config[name]
        if json.dumps(given) != json.dumps(wanted):  # lists and tuples are the same here
            raise KinemaError(
                f"`init_from` (={config.init_from}) must have `{name}` {wanted} of {config.preset}, not {given}"
            )
    return loaded


def load_tokenizer(folder: Path | None, argument: str = "tokenizer") -> CausalVideoTokenizer:
    """The tokenizer in a folder, for the setting `argument`.

    Raises:
        KinemaError: none is given, or the folder holds none.
    """
    if folder is None or not (folder / "config.json").is_file():
        raise KinemaError(f"`{argument}` (={folder}) must be the folder of a trained tokenizer, with a config.json")
    try:
        with quiet_loading():
            tokenizer: Any = CausalVideoTokenizer.from_pretrained(folder, use_safetensors=True)
        check_weights(tokenizer, folder)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = one_line(error)
        raise KinemaError(f"`{argument}` (={folder}) must be the folder of a trained tokenizer: {reason}") from error
    return tokenizer


def make_lpips(device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS (Zhang et al. 2018) of clips, frame by frame, on VGG; fetches its weights once.

    Returns:
        From a reconstruction and the video, `b c t h w` in [-1, 1], to the mean over frames; frames narrower than 64
        pixels are doubled, since the backbone halves them four times.

    Raises:
        KinemaError: The weights cannot be had.
    """
    from kinema.eval.networks.lpips import load_lpips

    network = load_lpips("vgg").to(device)

    def distance(reconstruction: Tensor, video: Tensor) -> Tensor:
        frames = [x.transpose(1, 2).flatten(0, 1) for x in (reconstruction, video)]
        if frames[0].shape[-1] < 64:
            frames = [interpolate(x, scale_factor=2.0, mode="bilinear") for x in frames]
        return network(*frames).mean()

    return distance


def train(config: TokenizerTrainingConfig, model: nn.Module | None = None) -> Path:
    """Trains a tokenizer (a new one of the preset, unless one is given) and returns the folder of the result.

    Raises:
        KinemaError: the configuration, the data or the run's folder does not allow it.
    """
    if model is None:
        select_preset(TOKENIZER_PRESETS, config.preset)
    accelerator = make_accelerator(config)
    with run_log(config.run_dir, accelerator.is_main_process):
        return run_loop(TokenizerTask(config, accelerator, model), config, accelerator)


def main(argv: list[str] | None = None, program: str = "train_tokenizer") -> None:
    """Entry point: PRESET and settings from the command line.

    Raises:
        KinemaError: what the command line asks for is not allowed.
    """
    train(parse_arguments(TOKENIZER_PRESETS, argv, program))
