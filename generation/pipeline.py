"""The text-to-video and image-to-video pipeline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from einops import repeat
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kinema.errors import KinemaError
from kinema.generation.conditioning import Conditioning
from kinema.generation.flow import TIMESTEP_SCALE
from kinema.generation.frames import OUTPUT_TYPES, Image, convert_video, images_for_prompts
from kinema.generation.guidance import check_clip_settings, sampler_settings, set_noise_levels
from kinema.generation.loading import check_parts, check_pipeline_folder
from kinema.generation.prompts import PromptWarning, prompt_list, warn_of_prompts
from kinema.generation.text import TextEncoder, TextFeatures, TransformersTextEncoder, WordTextEncoder
from kinema.generation.transformer.model import VideoTransformer
from kinema.loading import one_line, quiet_loading
from kinema.tokenizers.base import LatentTokenizer
from kinema.tokenizers.checks import check_weights, parameters_limited
from kinema.tokenizers.interface import latent_shape, pad_to_grid
from kinema.tokenizers.registry import TOKENIZERS

__all__ = ["KinemaPipeline", "KinemaPipelineOutput", "PromptWarning"]

_COMPONENTS = ("transformer", "vae", "tokenizer", "text_encoder", "scheduler")
_DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token", "variant")
Generators = torch.Generator | list[torch.Generator] | None
StepCallback = Callable[..., dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks


@dataclass
class KinemaPipelineOutput(BaseOutput):
    """Output of the pipeline.

    Attributes:
        frames: the clips; see `output_type` of `KinemaPipeline.__call__`.
    """

    frames: Tensor | np.ndarray | list[list[PIL.Image.Image]]


class KinemaPipeline(DiffusionPipeline):
    """Pipeline for text-to-video, and for image-to-video with the image as first frame.

    Args:
        transformer: predicts the velocity of the flow.
        vae: encodes pixels to latents and decodes them.
        tokenizer: a word tokenizer (`kinema.generation.text.build_word_tokenizer`), or that of the text encoder.
        scheduler: a flow-matching scheduler of diffusers.
        text_encoder: a frozen text encoder of transformers; None: the transformer takes word ids.
        sample_size: default number of frames, height and width, as in training.
        sample_fps: frames per second of the clips.
        sample_steps: default number of sampling steps.
        sample_guidance_scale: default guidance scale.
        sample_guidance_interval: default interval of noise levels at which guidance is applied.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder"]  # noqa: RUF012 (diffusers' protocol)
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]  # noqa: RUF012

    def __init__(
        self,
        transformer: VideoTransformer,
        vae: LatentTokenizer,
        tokenizer: PreTrainedTokenizerBase,
        scheduler: FlowMatchEulerDiscreteScheduler,
        text_encoder: PreTrainedModel | None = None,
        sample_size: tuple[int, int, int] | list[int] = (17, 64, 64),
        sample_fps: float = 8.0,
        sample_steps: int = 30,
        sample_guidance_scale: float = 6.0,
        sample_guidance_interval: tuple[float, float] | list[float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if not vae.has_grid:
            raise KinemaError(f"`vae` (a {type(vae).__name__}) must have latents on a grid")
        self.register_modules(
            transformer=transformer, vae=vae, tokenizer=tokenizer, scheduler=scheduler, text_encoder=text_encoder
        )
        self.register_to_config(
            sample_size=tuple(sample_size), sample_fps=sample_fps, sample_steps=sample_steps,
            sample_guidance_scale=sample_guidance_scale, sample_guidance_interval=tuple(sample_guidance_interval),
        )  # fmt: skip
        sampler_settings(self.config)  # validates them
        check_clip_settings(self.config["sample_size"], sample_fps)
        self._interrupt = False
        self.set_progress_bar_config(disable=None)  # None: on a terminal only

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any) -> "KinemaPipeline":
        """Load a pipeline from a folder or the Hugging Face Hub.

        Args:
            pretrained_model_name_or_path: a folder made by `save_pretrained`, or a repository name.
            **kwargs: arguments of `diffusers.DiffusionPipeline.from_pretrained`.

        Raises:
            KinemaError: a file is missing or invalid, or the index names a module of another package.
        """
        folder = Path(pretrained_model_name_or_path)
        try:
            if not folder.exists() and _is_repository_name(str(pretrained_model_name_or_path)):
                options = {name: kwargs[name] for name in _DOWNLOAD_OPTIONS if name in kwargs}
                folder = Path(cls.download(str(pretrained_model_name_or_path), use_safetensors=True, **options))
            passed = tuple(name for name in _COMPONENTS if name in kwargs)
            needed = tuple(name for name in _COMPONENTS if name not in passed)
            check_pipeline_folder(folder, needed, optional=("text_encoder",))
            for module in TOKENIZERS.values():  # diffusers finds component classes only in imported modules
                import_module(module)
            with quiet_loading(), parameters_limited(folder, "model"):
                pipeline = super().from_pretrained(folder, **{"use_safetensors": True, **kwargs})
            for name in {"transformer", "vae"} - set(passed):
                check_weights(getattr(pipeline, name), folder / name)
            parts = (pipeline.transformer, pipeline.vae, pipeline.tokenizer, pipeline.text_encoder, pipeline.scheduler)
            check_parts(*parts, folder)
        except KinemaError as error:
            if str(folder) in str(error):
                raise
            raise KinemaError(f"model folder `{folder}`: {error}") from error
        except Exception as error:  # diffusers, transformers and safetensors raise many exception types
            raise KinemaError(
                f"model folder `{pretrained_model_name_or_path}` cannot be loaded: {one_line(error)}"
            ) from error
        return pipeline

    @property
    def guidance_scale(self) -> float:
        return self._settings.guidance_scale

    @property
    def interrupt(self) -> bool:
        """Whether to stop after the current step; callbacks set `_interrupt`."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | TextFeatures,
        image: Image | Sequence[Image] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | TextFeatures | None = None,
        num_videos_per_prompt: int = 1,
        generator: Generators = None,
        latents: Float[Tensor, "b z t h w"] | None = None,
        output_type: str = "pt",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        guidance_interval: Sequence[float] | None = None,
    ) -> KinemaPipelineOutput | tuple[Any]:
        """Generate a clip for each prompt.

        Args:
            prompt: one or several prompts, or precomputed text features.
            image: the first frame: one for all prompts or one per prompt. A PIL image, an array (h, w, c) or a tensor
                (c, h, w), see `kinema.generation.frames.image_tensor`; several as a list or along a leading axis. The
                clip starts with the tokenizer's reconstruction of it.
            num_frames: number of frames; any number, clips are cropped from whole latent steps. None: `sample_size`.
            height: height of the frames; None: `sample_size`.
            width: width of the frames; None: `sample_size`.
            num_inference_steps: number of sampling steps. None: `sample_steps`.
            guidance_scale: scale of classifier-free guidance, see `SamplerSettings`. At 1 or below, the negative
                prompt is not used. None: `sample_guidance_scale`.
            negative_prompt: prompt to guide away from; None: the empty prompt.
            num_videos_per_prompt: number of clips per prompt; they are consecutive in the output.
            generator: source of the noise; a list with one generator per clip makes clips independent of the batch.
            latents: initial noise to use instead, (b, z, t', h', w').
            output_type: "pt": tensor (b, t, 3, h, w) in [0, 1]; "np": array (b, t, h, w, 3) in [0, 1]; "pil": a list
                of PIL images for each clip; "latent": normalised latents.
            return_dict: whether to return a `KinemaPipelineOutput` instead of a tuple.
            callback_on_step_end: called as (pipeline, step, timestep, tensors); returns tensors to replace.
            callback_on_step_end_tensor_inputs: names of the tensors passed to the callback.
            guidance_interval: interval (lowest, highest] of noise levels at which guidance is applied, see
                `SamplerSettings`. None: `sample_guidance_interval`.

        Returns:
            A `KinemaPipelineOutput` with `.frames`, or a tuple (frames,).

        Raises:
            KinemaError: an argument is out of range.

        Warns:
            PromptWarning: a prompt has unknown words or is truncated.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        settings = sampler_settings(self.config, num_inference_steps, guidance_scale, guidance_interval)
        self._check(num_videos_per_prompt, output_type, callback_on_step_end_tensor_inputs)
        size = self._frame_size(num_frames, height, width)
        self._settings, self._interrupt = settings, False

        text, negative = self._encode_prompts(prompt, negative_prompt, num_videos_per_prompt)
        first_frames = images_for_prompts(image, len(text) // num_videos_per_prompt, *size[1:])
        noise = self._prepare_noise(len(text), size, generator, latents)
        conditioning = self._prepare_conditioning(first_frames, num_videos_per_prompt, noise)
        clean = self._denoise(
            noise, conditioning, text, negative, callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        frames = clean if output_type == "latent" else convert_video(self._decode(clean, size), output_type)

        self.maybe_free_model_hooks()
        return KinemaPipelineOutput(frames=frames) if return_dict else (frames,)

    def _denoise(
        self,
        latents: Float[Tensor, "b z t h w"],
        conditioning: Conditioning,
        text: TextFeatures,
        negative: TextFeatures,
        callback: StepCallback | None,
        callback_tensors: Sequence[str],
    ) -> Float[Tensor, "b z t h w"]:
        """Integrate the velocity from noise to clean latents, keeping given latents fixed."""
        # For all steps at once, to synchronise with the device only once.
        levels = set_noise_levels(self.scheduler, self._settings.num_inference_steps, latents.device)
        is_guided = [self._settings.guides(noise_level) for noise_level in levels]
        self._num_timesteps = len(self.scheduler.timesteps)
        latents = conditioning.impose(latents)
        with self.progress_bar(total=self._num_timesteps) as progress_bar:  # pyright: ignore
            for step, timestep in enumerate(self.scheduler.timesteps):
                if self.interrupt:
                    break
                velocity = self._predict_velocity(
                    latents, timestep, step, conditioning, text, negative if is_guided[step] else None
                )
                latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
                latents = conditioning.impose(latents)
                if callback is not None:
                    tensors = {
                        "latents": latents, "prompt_embeds": text.values, "negative_prompt_embeds": negative.values,
                    }  # fmt: skip
                    changed = callback(self, step, timestep, {name: tensors[name] for name in callback_tensors})
                    latents = changed.get("latents", latents)
                    text = TextFeatures(changed.get("prompt_embeds", text.values), text.mask)
                    negative = TextFeatures(changed.get("negative_prompt_embeds", negative.values), negative.mask)
                progress_bar.update()
        return latents

    def _predict_velocity(
        self,
        latents: Float[Tensor, "b z t h w"],
        timestep: Float[Tensor, ""],
        step: int,
        conditioning: Conditioning,
        text: TextFeatures,
        negative: TextFeatures | None,
    ) -> Float[Tensor, "b z t h w"]:
        """Predict the velocity, with guidance if a negative prompt is given."""
        t = (timestep / TIMESTEP_SCALE).expand(len(latents))
        inputs = {
            "hidden_states": latents.to(self.transformer.dtype),
            "timestep": conditioning.grouped_timesteps(t, self.transformer.patch_size),
            "return_dict": False,
            "step": step,
            "num_steps": self._num_timesteps,
        }
        with self.transformer.cache_context("cond"):
            velocity = self.transformer(**inputs, encoder_hidden_states=text.values, encoder_attention_mask=text.mask)[
                0
            ].float()
        if negative is not None:
            with self.transformer.cache_context("uncond"):
                negative_velocity = self.transformer(
                    **inputs, encoder_hidden_states=negative.values, encoder_attention_mask=negative.mask
                )[0].float()
            velocity = negative_velocity + self.guidance_scale * (velocity - negative_velocity)
        return velocity

    def _encode_prompts(
        self,
        prompt: str | Sequence[str] | TextFeatures,
        negative_prompt: str | Sequence[str] | TextFeatures | None,
        num_videos: int,
    ) -> tuple[TextFeatures, TextFeatures]:
        text = self.encode_text(prompt)
        negative = self.encode_text("" if negative_prompt is None else negative_prompt, name="negative_prompt")
        if len(text) == 0:
            raise KinemaError("`prompt` (=[]) must have at least one prompt")
        if len(negative) not in (1, len(text)):
            raise KinemaError(
                f"`negative_prompt` (a list of {len(negative)}) must be one or as many as prompts (={len(text)})"
            )
        rows = torch.arange(len(text)).repeat_interleave(num_videos)
        return text.select(rows), negative.select(rows if len(negative) > 1 else torch.zeros_like(rows))

    def encode_text(self, prompt: str | Sequence[str] | TextFeatures, *, name: str = "prompt") -> TextFeatures:
        """Encode prompts as text features for the transformer.

        Args:
            prompt: one or several prompts; text features are returned unchanged, on the execution device.
            name: name of the argument in errors and warnings; no warning is given for an empty `negative_prompt`.

        Raises:
            KinemaError: there is no prompt, or one is not a string.

        Warns:
            PromptWarning: a prompt has no effect, has unknown words, or is truncated.
        """
        device = self._execution_device
        if isinstance(prompt, TextFeatures):
            return prompt.to(device)
        prompts = prompt_list(prompt, name)
        max_length = self.transformer.config["text_max_length"]
        is_word_model = self.text_encoder is None
        to_check = [each for each in prompts if each or name != "negative_prompt"]
        warn_of_prompts(self.tokenizer, to_check, max_length, is_word_tokenizer=is_word_model, name=name)
        if is_word_model:
            encoder: TextEncoder = WordTextEncoder(self.tokenizer, max_length)
        else:
            encoder = TransformersTextEncoder(self.tokenizer, self.text_encoder, max_length)
        text = encoder(prompts).to(device)
        is_ids = not text.values.is_floating_point()
        return text if is_ids else TextFeatures(text.values.to(self.transformer.dtype), text.mask)

    def _frame_size(self, num_frames: int | None, height: int | None, width: int | None) -> tuple[int, int, int]:
        """Return the output size, checked against the minimum of the tokenizer."""
        minimums = (1, self.vae.spatial_compression_ratio, self.vae.spatial_compression_ratio)
        size = []
        for name, requested, default, minimum in zip(
            ("num_frames", "height", "width"), (num_frames, height, width), self.config["sample_size"], minimums,
            strict=True,
        ):  # fmt: skip
            value = default if requested is None else requested
            if value < minimum:
                raise KinemaError(f"`{name}` (={value}) must be at least {minimum}")
            size.append(value)
        return size[0], size[1], size[2]

    def _latent_size(self, size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the latent grid for a clip size, rounded up to whole latent steps and patches."""
        ratios = self.vae.temporal_compression_ratio, self.vae.spatial_compression_ratio
        t, h, w = (
            -(-latent // patch) * patch
            for latent, patch in zip(latent_shape(*size, *ratios), self.transformer.patch_size, strict=True)
        )
        return t, h, w

    def _prepare_noise(
        self,
        num_clips: int,
        size: tuple[int, int, int],
        generator: Generators,
        latents: Float[Tensor, "b z t h w"] | None,
    ) -> Float[Tensor, "b z t h w"]:
        shape = (num_clips, self.transformer.config["in_channels"], *self._latent_size(size))
        if isinstance(generator, list) and len(generator) != num_clips:
            raise KinemaError(
                f"`generator` (a list of {len(generator)}) must have one generator per clip (={num_clips})"
            )
        if latents is None:
            return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        if tuple(latents.shape) != shape:
            raise KinemaError(f"`latents` (of shape {tuple(latents.shape)}) must have the shape {shape}")
        return latents.to(self._execution_device, torch.float32)

    def _prepare_conditioning(
        self, first_frames: Float[Tensor, "p 3 1 H W"] | None, num_videos: int, noise: Float[Tensor, "b z t h w"]
    ) -> Conditioning:
        """Encode first frames as given latents; the first latent step depends on the first frame only."""
        if first_frames is None:
            return Conditioning.nothing(noise)
        # Pad to whole patches of the transformer.
        whole_patches = self.vae.spatial_compression_ratio * self.transformer.patch_size[1]
        padded = pad_to_grid(first_frames, self.vae.temporal_compression_ratio, whole_patches)
        latents = self.vae.encode(padded.to(noise.device, self.vae.dtype)).latents.float()
        given = repeat(self.vae.normalize(latents), "p z t h w -> (p v) z t h w", v=num_videos)
        return Conditioning.first_steps(given, num_steps=noise.shape[2])

    def _decode(self, clean: Float[Tensor, "b z t h w"], size: tuple[int, int, int]) -> Float[Tensor, "b 3 T H W"]:
        video = self.vae.decode(self.vae.denormalize(clean)).sample
        return video[:, :, : size[0], : size[1], : size[2]]

    def _check(self, num_videos: int, output_type: str, callback_tensors: Sequence[str]) -> None:
        if num_videos < 1:
            raise KinemaError(f"`num_videos_per_prompt` (={num_videos}) must be at least 1")
        if output_type not in OUTPUT_TYPES:
            raise KinemaError(f"`output_type` (={output_type!r}) must be one of {', '.join(OUTPUT_TYPES)}")
        unknown = [name for name in callback_tensors if name not in self._callback_tensor_inputs]
        if unknown:
            allowed = ", ".join(self._callback_tensor_inputs)
            raise KinemaError(f"`callback_on_step_end_tensor_inputs` (has {unknown[0]!r}) must be among {allowed}")


def _is_repository_name(name: str) -> bool:
    """Whether a name has the form of a Hugging Face Hub repository, owner/repository."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")
