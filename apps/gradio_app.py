"""A small page: prompt, or picture and prompt, to clip."""

import itertools
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from kinema.apps.any_pipeline import frames_per_second
from kinema.apps.commands.generate import generate_clip
from kinema.errors import KinemaError
from kinema.generation.guidance import sampler_settings
from kinema.images import read_image
from kinema.video import write_video

EXAMPLES = (
    "a red car drives to the right in a snowy field",
    "a rocket flies up in the night sky",
    "a penguin bounces on the snow",
    "a sunflower grows in a meadow",
    "a blue whale shrinks over the sea",
)


def vocabulary_hint(words: Sequence[str] | None) -> str:
    """What to tell people about the words the model knows; `words` is None for a model that takes free text."""
    if words is None:
        return "This model takes free text."
    return f"This model knows {len(words)} words; what else you write is skipped: " + ", ".join(sorted(words))


def _words(pipeline: Any) -> list[str] | None:
    if getattr(pipeline, "text_encoder", None) is not None or getattr(pipeline, "tokenizer", None) is None:
        return None
    from kinema.generation.text import known_words

    return known_words(pipeline.tokenizer)


class ClipMaker:
    """What the button does: the page's fields to a video file, in a folder that goes when this object does.

    Args:
        pipeline: A `KinemaPipeline`.
    """

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self._folder = Path(tempfile.mkdtemp(prefix="kinema-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._numbers = itertools.count()

    def __call__(
        self,
        prompt: str,
        image: str | None = None,
        seed: float | None = None,
        num_steps: float | None = None,
        guidance_scale: float | None = None,
        num_frames: float | None = None,
    ) -> str:
        """The path of a new clip; a number is None where its field was emptied. Programs that leave one out get the
        value of its field.

        Args:
            prompt: What it shows.
            image: File of the first frame, or None.
            seed: Of the noise.
            num_steps: Sampling steps.
            guidance_scale: How strictly the prompt is followed.
            num_frames: Length.

        Raises:
            gr.Error: A field has a value that is not allowed; the page shows the message.
        """
        try:
            if not prompt or not prompt.strip():
                raise KinemaError(f"`prompt` (={prompt!r}) must have a word")
            if seed is None or not 0 <= seed < 2**63:
                raise KinemaError(f"`seed` (={seed}) must be >= 0 and below 2**63")
            if num_steps is None or guidance_scale is None or num_frames is None:
                raise KinemaError("`settings` (one of them empty) must be numbers")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                frames = generate_clip(
                    self.pipeline,
                    prompt,
                    image=None if image is None else read_image(image, name="image"),
                    seed=int(seed),
                    num_inference_steps=int(num_steps),
                    guidance_scale=float(guidance_scale),
                    num_frames=int(num_frames),
                )
        except KinemaError as error:
            raise gr.Error(str(error), print_exception=False) from error
        for warning in caught:
            if warning.category.__module__.startswith("kinema."):  # of words that the model does not know, and the like
                gr.Warning(str(warning.message))
        path = self._folder / f"{next(self._numbers):04d}.mp4"
        write_video(path, frames, frames_per_second(self.pipeline))
        return str(path)


def picture_field(label: str) -> gr.Image:
    """A field whose value is the file that was uploaded, as it is, for kinema's own reader of pictures.

    gradio would open the file and convert what it shows: transparent pixels to what lies under them, 16 bits to white.
    It would also open any file of this machine that a program names in place of an upload.
    """
    field = gr.Image(label=label, type="filepath", image_mode=None)

    def uploaded_file(payload: Any) -> str | None:
        if payload is None:
            return None
        named = (payload.path or "").replace("\0", "")  # no file has a NUL in its name, and asking for one is an error
        path = Path(os.path.realpath(named))
        if Path(os.path.realpath(field.GRADIO_CACHE)) not in path.parents:
            raise gr.Error("`image` must be a file that was uploaded to this page", print_exception=False)
        return str(path)

    field.preprocess = uploaded_file
    return field


def build_app(pipeline: Any) -> gr.Blocks:
    """The page, not yet served.

    Args:
        pipeline: A `KinemaPipeline`.
    """
    defaults = sampler_settings(pipeline.config)
    make_clip = ClipMaker(pipeline)
    with gr.Blocks(title="kinema", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# kinema\nA clip from a prompt, or from a picture and a prompt.")
        with gr.Row():
            with gr.Column():
                prompt = gr.Textbox(label="Prompt", value=EXAMPLES[0])
                image = picture_field("First frame (optional)")
                with gr.Accordion("Settings", open=False):
                    seed = gr.Number(label="Seed", value=0, precision=0, minimum=0)
                    steps = gr.Slider(1, 100, value=defaults.num_inference_steps, step=1, label="Steps")
                    scale = gr.Slider(0, 15, value=defaults.guidance_scale, step=0.5, label="Guidance scale")
                    length = gr.Slider(1, 65, value=pipeline.config["sample_size"][0], step=4, label="Frames")
                button = gr.Button("Make the clip", variant="primary")
            clip = gr.Video(label="Clip", autoplay=True, loop=True, interactive=False)
        gr.Examples([[text] for text in EXAMPLES], inputs=[prompt])
        with gr.Accordion("Words", open=False):
            gr.Markdown(vocabulary_hint(_words(pipeline)))
        fields = [prompt, image, seed, steps, scale, length]
        button.click(make_clip, inputs=fields, outputs=clip, api_name="generate")
        prompt.submit(make_clip, inputs=fields, outputs=clip, api_visibility="private")
    return page


def launch(pipeline: Any, *, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve the page until interrupted.

    Args:
        pipeline: A `KinemaPipeline`.
        host: Address to listen on.
        port: Port to listen on.
    """
    build_app(pipeline).launch(server_name=host, server_port=port, quiet=False)
