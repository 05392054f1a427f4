"""The sound files that are damaged: small videos, pictures, tensors, models, a training, tables of captions."""

import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import save_file

from kinema.apps import cli
from kinema.generation.pipeline import KinemaPipeline
from kinema.generation.text import build_word_tokenizer
from kinema.generation.transformer.model import VideoTransformer
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from videos import gray_ramp, make_sounding_video, make_video

WORDS = ["a", "red", "blue", "car", "drives", "left", "right", "to", "the"]


def make_bases(folder: Path) -> None:
    """Fills a folder as of `_make_bases`, in a process of its own: a training leaves threads and a state behind.

    Raises:
        RuntimeError: the process failed; its messages are on stderr.
    """
    if (folder / "complete").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    process = multiprocessing.get_context("spawn").Process(target=_make_bases, args=(folder,))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError("the sound files could not be made")
    (folder / "complete").touch()


def _make_bases(folder: Path) -> None:
    """Fills a folder: `videos`, `pictures`, `tensors`, `tokenizer`, `pipeline`, `captioned`, `run`, `prompts.txt`."""
    for name in ("videos", "pictures", "tensors", "captioned"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _videos(folder / "videos")
    _pictures(folder / "pictures")
    _tensors(folder / "tensors")
    _models(folder)
    _captioned(folder / "captioned")
    (folder / "prompts.txt").write_text("a red car drives to the left\nblue car\nthe car drives right\n")
    os.dup2(os.open(folder / "train.txt", os.O_WRONLY | os.O_CREAT), 2)
    status = cli.main(train_arguments(folder, folder / "captioned", folder / "run", 2))
    if status:
        raise RuntimeError(f"the training that is to be damaged ended with {status}")


def train_arguments(bases: Path, data: Path, run: Path, num_steps: int) -> list[str]:
    """A tiny training of a generator on a folder of captioned clips."""
    settings = {
        "tokenizer": bases / "tokenizer", "data": data, "validation": "clip_2", "output": run, "num_steps": num_steps,
        "batch_size": 1, "shape": "1x16x16", "num_workers": 0, "num_clips": 2, "warmup_steps": 1, "save_every": 1,
        "validation_clips": 1, "num_samples": 1, "sample_steps": 1, "sample_every": 1000, "eval_every": 1000,
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["train", "diffusion", "tiny", "--cpu", *words]


def _videos(folder: Path) -> None:
    frames: list[Any] = gray_ramp(6)
    make_video(folder / "h264.mp4", frames)
    make_video(folder / "vp9.webm", frames, codec="libvpx-vp9")
    make_video(folder / "mpeg4.avi", frames, codec="mpeg4", clock=24)
    make_video(folder / "times.mkv", frames, [0, 0.1, 0.15, 0.4, 0.41, 0.9], rate=10)
    make_video(folder / "fragments.mp4", frames, container_options={"movflags": "frag_keyframe+empty_moov"})
    make_video(
        folder / "hevc10.mp4",
        frames,
        codec="libx265",
        pixel_format="yuv420p10le",
        options={"x265-params": "log-level=none"},
    )
    make_video(folder / "stream.ts", frames, codec="mpeg2video", clock=24)
    make_sounding_video(folder / "sound.mp4", 6, seconds=0.25)
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(folder / "frames.gif", save_all=True, append_images=pictures[1:], duration=100)


def _pictures(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 4), np.uint8)
    Image.fromarray(pixels).save(folder / "rgba.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[..., :3]).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(pixels[..., :3]).save(folder / "lossy.webp")
    Image.fromarray(pixels[..., :3]).quantize(16).save(folder / "palette.gif")
    Image.fromarray(pixels).convert("CMYK").save(folder / "ink.tiff")
    Image.fromarray(pixels[..., :3]).save(folder / "plain.bmp")


def _tensors(folder: Path) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    np.save(folder / "bytes.npy", clip)
    np.save(folder / "floats.npy", clip.astype(np.float32) / 255)
    save_file({"video": torch.from_numpy(clip)}, folder / "clip.safetensors")


def _models(folder: Path) -> None:
    torch.manual_seed(0)
    vae = CausalVideoTokenizer(**TINY)
    vae.set_latent_statistics(torch.zeros(4), torch.ones(4))
    vae.save_pretrained(folder / "tokenizer")
    tokenizer = build_word_tokenizer(WORDS)
    transformer = VideoTransformer.from_preset("tiny", text_vocab_size=len(tokenizer))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    pipeline = KinemaPipeline(
        transformer.eval(), vae.eval(), tokenizer, scheduler, None, sample_size=(5, 16, 16), sample_fps=8.0
    )
    pipeline.save_pretrained(folder / "pipeline")


def _captioned(folder: Path) -> None:
    captions = {f"clip_{index}.mp4": f"a {color} car drives" for index, color in enumerate(("red", "blue", "red"))}
    for name in captions:
        make_video(folder / name, gray_ramp(2, 16, 16))
    rows = list(captions.items())
    (folder / "captions.csv").write_text("file,caption\n" + "".join(f"{file},{text}\n" for file, text in rows))
    lines = [json.dumps({"file": file, "caption": text}) for file, text in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "metadata.tsv").write_text("file\tcaption\n" + "".join(f"{file}\t{text}\n" for file, text in rows))
    (folder / "clip_0.txt").write_text("a red car drives to the left\n")
