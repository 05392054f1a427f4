"""Training of a video diffusion transformer on the latents of a tokenizer, by rectified flow."""

import json
import logging
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from jaxtyping import Int
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.generation.attention import TileTopK, annealed_share, parse_pattern
from kinema.generation.conditioning import Conditioning, flow_inputs, sample_first_step_conditioning
from kinema.generation.flow import flow_loss, loss_weight, sample_timesteps, shift_for_tokens
from kinema.generation.pipeline import KinemaPipeline
from kinema.generation.text import TextFeatures
from kinema.generation.transformer.context_parallel import context_group
from kinema.generation.transformer.model import VideoTransformer
from kinema.machine import readable
from kinema.memory import out_of_memory_in_one_line
from kinema.tokenizers.base import LatentTokenizer
from kinema.tokenizers.checks import check_values
from kinema.tokenizers.interface import latent_shape
from kinema.training.accelerator import make_accelerator
from kinema.training.config import DiffusionTrainingConfig, parse_shape, to_dict
from kinema.training.data.sources import CaptionedClips
from kinema.training.data.toybox.schema import Split
from kinema.training.entry import run_program
from kinema.training.latents_cache import LatentsCache, cached_latents, clips_at_once, folder_hash, model_hash
from kinema.training.loop import train as run_loop
from kinema.training.presets import DIFFUSION_PRESETS, select_preset
from kinema.training.record import STATISTICS, Contents, Record, check_data, check_depends
from kinema.training.run import open_run
from kinema.training.samples import Samples
from kinema.training.seeds import step_generator
from kinema.training.task import StepLoss, Task
from kinema.training.text import EncodeText, load_pipeline, make_text_encoder, vocabulary_hash
from kinema.training.tokenizer import load_own_tokenizer
from kinema.video import to_uint8

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]

# Settings that decide what clips there are, so that kept latents depend on them.
_CLIP_SETTINGS = (
    *("data", "data_weights", "seed", "shape", "validation", "cache_short_side", "fps", "max_stride", "max_zoom_out"),
)


class DiffusionTask(Task[Batch]):
    """A transformer, latents for it, and its loss."""

    def __init__(self, config: DiffusionTrainingConfig, accelerator: Accelerator, start: Record | None = None) -> None:
        self.config = config
        self.splits_weights = config.fsdp
        self.autocast, self.precision = accelerator.autocast, accelerator.mixed_precision
        group = context_group(config.context_parallel) if config.context_parallel > 1 else None
        self.processes_per_batch = config.context_parallel
        self.rank = accelerator.process_index // self.processes_per_batch
        self.world_size = accelerator.num_processes // self.processes_per_batch
        self.vae = self._make_tokenizer().to(accelerator.device).eval().requires_grad_(False)
        if not self.vae.has_grid:
            kind = type(self.vae).__name__
            raise KinemaError(f"`tokenizer` (={config.tokenizer}, a {kind}) must have latents on a grid")
        self.vae_hash = model_hash(self.vae, without=STATISTICS)
        check_depends(config, "tokenizer", self.vae_hash, start)
        keep_statistics(self.vae, start)
        with accelerator.main_process_first():  # it computes what is kept, the others find it
            self.clips = self._make_clips("train")
            self.clips.check_captions()
            self.contents = self.clips.contents()
            check_data(config, self.contents, start)
            # From here on the rate is a number, and saved as one.
            self.config = config = replace(config, fps=self.clips.fps)
            self.text_tokenizer, self.text_model, self.encode_text = self._make_text_encoder(start)
            self.text_hash = None if config.text_encoder is None else folder_hash(config.text_encoder)
            check_depends(config, "text_encoder", self.text_hash, start)
            self.null_text = self.encode_text([""]).to(accelerator.device)
            with out_of_memory_in_one_line(f"clips (`shape` {config.shape})", "smaller clips make them fit"):
                self.cache = self._cached_latents() if config.num_clips else None
        torch.manual_seed(config.seed)
        self.model: Any = self._make_model(start)
        if group is not None:
            self.model.enable_context_parallel(group)
        self.annealed = annealed_pattern(config)
        self.share = 1.0  # of the key tiles that the model sees while it is annealed
        ratios = self.vae.temporal_compression_ratio, self.vae.spatial_compression_ratio
        volume = torch.tensor(latent_shape(*parse_shape(config.shape), *ratios)).prod()
        num_tokens = int(volume) // int(torch.tensor(self.model.patch_size).prod())
        self.shift = config.shift if config.shift is not None else shift_for_tokens(num_tokens)
        self.scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=self.shift)
        self.sampler: dict[str, Any] = {}  # the pipeline's settings of the sampler, where they are not its defaults
        self.score_name = f"loss on {config.validation_clips} validation clips"
        self.validation_prompts: list[str] = []
        self.validation = self._validation_batch() if accelerator.is_main_process else None

    def _make_tokenizer(self) -> LatentTokenizer:
        return load_own_tokenizer(self.config.tokenizer)

    def _make_clips(self, split: Split) -> CaptionedClips:
        return CaptionedClips(self.config, split, self.vae.device)

    def _make_text_encoder(self, start: Record | None) -> tuple[Any, Any, EncodeText]:
        return make_text_encoder(self.config, self.clips, start)

    def _make_model(self, start: Record | None) -> VideoTransformer:
        is_ids = not self.null_text.values.is_floating_point()
        text = (
            {"text_vocab_size": len(self.text_tokenizer)} if is_ids else {"text_dim": self.null_text.values.shape[-1]}
        )
        # A run that goes on has its weights in the checkpoint.
        first = self.config if start is None else replace(self.config, init_from=None)
        return start_model(first, in_channels=self.vae.latent_channels, **text)

    def _cache_settings(self) -> dict[str, Any]:
        """What kept latents depend on."""
        values = to_dict(self.config)
        settings = {name: values[name] for name in _CLIP_SETTINGS}
        for source in self.clips.requests:
            settings |= {} if source.settings is None else to_dict(source.settings)
        return settings | {
            "tokenizer": self.vae_hash,
            "text": self.text_hash or vocabulary_hash(self.text_tokenizer),
            "text_max_length": self.config.text_max_length,
            "mixed_precision": self.precision,
            "clips": self.clips.fingerprint(),
        }

    def _cached_latents(self) -> LatentsCache:
        return cached_latents(
            self.config.run_cache_dir,
            self._cache_settings(),
            self.config.num_clips,
            self.clips,
            self._encode,
            self.encode_text,
            self.vae.device,
            at_once=clips_at_once(parse_shape(self.config.shape), self.vae.device),
            max_length=self.config.text_max_length,
        )

    def depends_on(self) -> dict[str, Any]:
        """Which tokenizer and text encoder, by hash, and the statistics that latents are normalised with."""
        config: Any = self.vae.config
        statistics = {name: config[name] for name in STATISTICS}
        return {"tokenizer": self.vae_hash, "text_encoder": self.text_hash} | statistics

    def data_contents(self) -> Contents:
        return self.contents

    def save_data_report(self, path: Path) -> None:
        self.clips.save_report(path)

    def save_vocabulary(self, folder: Path) -> None:
        if self.text_model is None:
            self.text_tokenizer.save_pretrained(folder)

    @torch.no_grad()
    def _encode(self, video: Tensor) -> Tensor:
        with self.autocast(), check_values(readable(video)):
            return self.vae.encode(video.to(self.vae.device)).latents.float()

    def batch(self, step: int) -> Batch:
        """Latents (kept ones) or video (fresh ones), and text."""
        numbers = self._clip_numbers(step)
        if self.cache is None:
            video, captions = self.clips(numbers)
            text = self.encode_text(captions)
            return {"video": video, "text": text.values, "mask": text.mask}
        latents, text = self.cache(numbers)
        return {"latents": latents, "text": text.values, "mask": text.mask}

    def _clip_numbers(self, step: int) -> list[int]:
        """The clips of a step: new ones, or kept ones in the order of their epoch."""
        first = (step * self.world_size + self.rank) * self.config.batch_size
        positions = range(first, first + self.config.batch_size)
        return (
            list(positions) if self.cache is None else shuffled(self.config.seed, positions, len(self.cache)).tolist()
        )

    def num_clips(self, batch: Batch) -> int:
        return batch["text"].shape[0]

    def start_step(self, step: int) -> None:
        if self.annealed is not None and self.annealed.share is not None and self.config.anneal_every is not None:
            self.share = annealed_share(step, self.annealed.share, every=self.config.anneal_every)
            self.model.set_attention(replace(self.annealed, share=self.share))

    def numbers(self) -> dict[str, float]:
        return {} if self.annealed is None else {"attention_share": self.share}

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> StepLoss:
        """The velocity's squared error, at a random time of each clip (flow matching, arXiv 2209.03003)."""
        config = self.config
        clean = self.clean_latents(batch)
        conditioning = sample_first_step_conditioning(
            clean, config.image_probability, max_noise=config.image_noise, generator=generator
        )
        t = sample_timesteps(
            len(clean), generator, self.shift, uniform_fraction=config.uniform_fraction, device=clean.device
        )
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        dropped = torch.rand(len(clean), generator=generator, device=clean.device) < config.text_drop
        text = TextFeatures(batch["text"], batch["mask"]).drop(dropped, self.null_text)
        weight = loss_weight(t, config.loss_weighting)
        return StepLoss(self._flow_loss(model, clean, noise, t, conditioning, text, weight), {})

    def clean_latents(self, batch: Batch) -> Tensor:
        latents = batch["latents"] if "latents" in batch else self._encode(batch["video"])
        return self.vae.normalize(latents.float())

    def _flow_loss(
        self,
        model: Any,
        clean: Tensor,
        noise: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        text: TextFeatures,
        weight: Tensor | None = None,
    ) -> Tensor:
        inputs = flow_inputs(clean, noise, t, conditioning, self.model.patch_size)
        prediction = model(inputs.hidden_states, inputs.timestep, text.values, text.mask).sample
        return flow_loss(prediction, inputs.target, inputs.wanted, weight)

    def _validation_batch(self) -> Batch | None:
        clips = self._make_clips("validation")
        if not clips.sources or not self.config.validation_clips:
            return None
        video, captions = clips(range(self.config.validation_clips))
        text = self.encode_text(captions)
        self.validation_prompts = captions
        latents = torch.cat([self._encode(part).cpu() for part in video.split(32)])
        return {"latents": latents, "text": text.values, "mask": text.mask}

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss on validation clips, text-to-video and image-to-video, with the same noise and times each time."""
        if self.validation is None:
            return {}
        self._attend_as_saved(model)
        device = self.vae.device
        batch = {name: value.to(device) for name, value in self.validation.items()}
        clean = self.clean_latents(batch)
        generator = step_generator(self.config.seed, 0, 0, "validation", device)
        t = sample_timesteps(len(clean), generator, self.shift, "uniform", device=device)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        losses: dict[str, list[Tensor]] = {"loss_text": [], "loss_image": []}
        for rows in torch.arange(len(clean), device=device).split(32):
            text = TextFeatures(batch["text"][rows], batch["mask"][rows])
            for name, probability in (("loss_text", 0.0), ("loss_image", 1.0)):
                given = sample_first_step_conditioning(clean[rows], probability, generator=generator)
                with self.autocast():
                    loss = self._flow_loss(model, clean[rows], noise[rows], t[rows], given, text)
                losses[name].append(loss * len(rows))
        means = {name: float(torch.stack(values).sum()) / len(clean) for name, values in losses.items()}
        return {"score": -sum(means.values()) / 2} | means

    def _attend_as_saved(self, model: Any) -> None:
        """Scores and samples are made in one process, and with the saved model's pattern while it is annealed."""
        model.disable_context_parallel()
        if self.annealed is not None:
            model.set_attention(self.annealed)

    def pipeline(self, model: Any) -> KinemaPipeline:
        """The pipeline with these weights."""
        self._attend_as_saved(model)
        return KinemaPipeline(
            transformer=model,
            vae=self.vae,
            tokenizer=self.text_tokenizer,
            text_encoder=self.text_model,
            scheduler=self.scheduler,
            sample_size=parse_shape(self.config.shape),
            sample_fps=self.clips.fps,
            **self.sampler,
        )

    @torch.no_grad()
    def sample(self, model: nn.Module) -> Samples | None:
        """Clips of prompts."""
        config = self.config
        prompts = list(config.sample_prompts) or self.validation_prompts[: config.num_samples]
        if not prompts:
            return None
        pipeline = self.pipeline(model)
        pipeline.set_progress_bar_config(disable=True)
        frames, height, width = parse_shape(config.shape)
        output: Any = pipeline(
            prompts,
            num_frames=frames,
            height=height,
            width=width,
            num_inference_steps=config.sample_steps,
            guidance_scale=config.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(config.seed),
            output_type="pt",
        )
        rows = [to_uint8(clip.transpose(0, 1) * 2 - 1).cpu() for clip in output.frames]
        return Samples(rows, prompts)

    def export(self, model: nn.Module, folder: Path) -> None:
        """Saves the whole pipeline."""
        self.pipeline(model).save_pretrained(folder)


def shuffled(seed: int, positions: range, size: int) -> Int[Tensor, " b"]:
    """Which of the kept clips stand at these positions of the training, all epochs in one row."""
    parts: list[Tensor] = []
    for epoch in range(positions.start // size, (positions.stop - 1) // size + 1):
        first, last = max(positions.start, epoch * size), min(positions.stop, (epoch + 1) * size)
        parts.append(epoch_order(seed, epoch, size)[first - epoch * size : last - epoch * size])
    return torch.cat(parts)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, size: int) -> Tensor:
    """The order of the kept clips in one pass over them."""
    return torch.randperm(size, generator=step_generator(seed, 0, epoch, "order"))


def annealed_pattern(config: DiffusionTrainingConfig) -> TileTopK | None:
    """The pattern whose share falls while the model trains.

    Raises:
        KinemaError: `anneal_every` is given, and `attention` is no tile-top-k with a share.
    """
    if config.anneal_every is None:
        return None
    pattern = parse_pattern(config.attention) if config.attention else None
    if not isinstance(pattern, TileTopK) or pattern.share is None:
        raise KinemaError(
            f"`anneal_every` (={config.anneal_every}) must go with an `attention` like tile-top-k:share=0.1, not"
            f" {config.attention}"
        )
    last = annealed_share(config.num_steps - 1, pattern.share, every=config.anneal_every)
    if last > pattern.share:
        logger.warning(
            "`anneal_every` (=%d) is too large for `num_steps` (=%d): the last step sees a share of %g, the saved"
            " model %g",
            *(config.anneal_every, config.num_steps, last, pattern.share),
        )
    return pattern


def start_model(config: DiffusionTrainingConfig, **arguments: int) -> VideoTransformer:
    """What training starts from: the preset untrained, or the transformer of the pipeline in `init_from`.

    What tokens see is the setting's; a coarse branch that the loaded transformer lacks begins closed.

    Raises:
        KinemaError: `init_from` holds no pipeline, or one whose transformer is not of the preset.
    """
    own = {"attention": config.attention, "coarse_tile": config.coarse_tile}
    own = {name: value for name, value in own.items() if value is not None}
    fresh = VideoTransformer.from_preset(config.preset, text_max_length=config.text_max_length, **own, **arguments)
    if config.init_from is None:
        return fresh
    loaded: Any = load_pipeline(config.init_from, "init_from").transformer
    for name in (name for name in fresh.config if not name.startswith("_") and name not in own):
        given, wanted = loaded.config[name], fresh.config[name]
        if json.dumps(given) != json.dumps(wanted):  # lists and tuples are the same here
            raise KinemaError(
                f"`init_from` (={config.init_from}) must have `{name}` {wanted} of {config.preset}, not {given}"
            )
    missing, unexpected = fresh.load_state_dict(loaded.state_dict(), strict=False)
    if unexpected or any(".coarse_gate." not in name for name in missing):
        raise KinemaError(f"`init_from` (={config.init_from}) must have the weights of {config.preset}")
    return fresh


def keep_statistics(vae: LatentTokenizer, start: Record | None) -> None:
    """A run that goes on normalises latents as it began, also where the tokenizer's folder has other figures now."""
    statistics = None if start is None else start.statistics
    if start is None or statistics is None:
        return
    config: Any = vae.config
    if [list(config[name] or ()) for name in STATISTICS] != [list(values) for values in statistics]:
        logger.warning("the tokenizer has other statistics of latents now; the run keeps those of %s", start.path)
        vae.set_latent_statistics(*map(torch.tensor, statistics))


def train(config: DiffusionTrainingConfig) -> Path:
    """Trains a transformer of the preset and returns the folder of the pipeline.

    Raises:
        KinemaError: the configuration, the data or the run's folder does not allow it.
    """
    select_preset(DIFFUSION_PRESETS, config.preset)
    accelerator = make_accelerator(config)
    with open_run(config, accelerator) as run:
        task = DiffusionTask(run.config, accelerator, run.start)
        return run_loop(task, replace(run, config=task.config), accelerator)


def main(argv: list[str] | None = None, program: str = "train_diffusion") -> None:
    """Entry point: PRESET and settings from the command line.

    Raises:
        KinemaError: what the command line asks for is not allowed.
    """
    run_program(train, DIFFUSION_PRESETS, argv, program)
