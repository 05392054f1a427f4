"""Kinds of cases: which sound files are damaged, and the command that meets them."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from fuzz.bases import train_arguments
from fuzz.mutations import NUMBERS, WORDS, mutate, pickled

Kind = Callable[[Path, Path, random.Random], list[str]]
"""Gets the sound files, the case's own folder, which it fills, and the dice; gives the arguments of `kinema`."""

_SAMPLE = ["--num-steps", "1", "--device", "cpu", "--output", "out.mp4"]


def _damaged(source: Path, target: Path, rng: random.Random) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(mutate(source.read_bytes(), source.suffix, rng))
    return target


def _damage_one(folder: Path, rng: random.Random, pattern: str = "*") -> Path:
    """Damages some file of a folder in place; once in a while it is missing or a folder."""
    path = rng.choice(sorted(path for path in folder.rglob(pattern) if path.is_file()))
    way = rng.random()
    if way < 0.94:
        return _damaged(path, path, rng)
    path.unlink()
    if way < 0.97:
        path.mkdir()
    return path


def video(bases: Path, case: Path, rng: random.Random) -> list[str]:
    source = rng.choice(sorted((bases / "videos").iterdir()))
    path = _damaged(source, case / f"in{source.suffix}", rng)
    return ["reconstruct", str(path), "out.mp4", "--tokenizer", str(bases / "tokenizer"), "--device", "cpu"]


def clips(bases: Path, case: Path, rng: random.Random) -> list[str]:
    for name in ("real", "fake"):
        (case / name).mkdir()
        for index in range(2):
            source = rng.choice(sorted((*(bases / "tensors").iterdir(), *(bases / "videos").iterdir())))
            target = case / name / f"{index}{source.suffix}"
            shutil.copy(source, target)
            if name == "fake" or rng.random() < 0.3:
                _damaged(source, target, rng)
    extra = rng.choice(([], ["--value-range", "0,1"], ["--fps", "8"], ["--layout", "thwc"]))
    sizes = ["--num-frames", "2", "--resolution", "16"]
    metrics = ["--metrics", "psnr", "ssim"]
    return ["eval", "compare", "real", "fake", *metrics, *sizes, "--max-unreadable", "1", *extra, "--json", "out.json"]


def picture(bases: Path, case: Path, rng: random.Random) -> list[str]:
    source = rng.choice(sorted((bases / "pictures").iterdir()))
    path = _damaged(source, case / f"in{source.suffix}", rng)
    return ["generate", "a red car", "--image", str(path), "--model", str(bases / "pipeline"), *_SAMPLE]


def tokenizer(bases: Path, case: Path, rng: random.Random) -> list[str]:
    shutil.copytree(bases / "tokenizer", case / "tokenizer")
    _damage_one(case / "tokenizer", rng, rng.choice(("*", "*.json")))
    return ["reconstruct", str(bases / "videos/h264.mp4"), "out.mp4", "--tokenizer", "tokenizer", "--device", "cpu"]


def pipeline(bases: Path, case: Path, rng: random.Random) -> list[str]:
    shutil.copytree(bases / "pipeline", case / "pipeline")
    _damage_one(case / "pipeline", rng, rng.choice(("*", "*.json")))
    return ["generate", "a red car", "--model", "pipeline", *_SAMPLE]


def weights(bases: Path, case: Path, rng: random.Random) -> list[str]:
    """Weights of a measuring network, as people download them: also pickles."""
    for name in ("real", "fake"):
        (case / name).mkdir()
        for index in range(2):
            shutil.copy(bases / "tensors/bytes.npy", case / name / f"{index}.npy")
    source = rng.choice(sorted((bases / "tokenizer").glob("*.safetensors")))
    path = case / rng.choice(("i3d.pt", "i3d.pth", "i3d.safetensors"))
    path.write_bytes(rng.choice((pickled(), mutate(source.read_bytes(), ".safetensors", rng))))
    return ["eval", "fvd", "real", "fake", "--num-frames", "2", "--weights", str(path), "--device", "cpu"]


def captions(bases: Path, case: Path, rng: random.Random) -> list[str]:
    shutil.copytree(bases / "captioned", case / "data")
    tables = sorted(path for path in (case / "data").iterdir() if path.suffix != ".mp4")
    keep = rng.choice(tables)
    for path in tables:
        if path != keep:
            path.unlink()
    _damaged(keep, keep, rng)
    return train_arguments(bases, Path("data"), Path("run"), 1)


def prompts(bases: Path, case: Path, rng: random.Random) -> list[str]:
    path = _damaged(bases / "prompts.txt", case / "prompts.txt", rng)
    if path.stat().st_size > 2000:  # a clip a line: not thousands of them
        path.write_bytes(path.read_bytes()[:2000])
    start = ["generate", "--model", str(bases / "pipeline"), "--num-frames", "1", "--num-steps", "1", "--device", "cpu"]
    if rng.random() < 0.5:
        return [*start, "--prompts", str(path), "--out-dir", "out"]
    words = [rng.choice((*WORDS, "red", "car", "blue")).replace("\0", "") for _ in range(rng.randrange(6))]
    return [*start, "--output", "out.mp4", "--", " ".join(words)]


def arguments(bases: Path, case: Path, rng: random.Random) -> list[str]:
    """Sound files and odd values of flags."""
    del case

    # Not what is allowed and takes its time, such as a clip 32,768 pixels wide.
    numbers = [number for number in NUMBERS if not 300 < number < 2**31 - 1]

    def number() -> str:
        return str(rng.choice((*numbers, *WORDS[:8], "1,2", "9x9", "--"))).replace("\0", "")

    if rng.random() < 0.5:
        flags = ["--num-frames", "--height", "--width", "--num-steps", "--guidance-scale", "--seed", "--fps"]
        start = ["generate", "a red car", "--model", str(bases / "pipeline"), "--output", "out.mp4", "--num-steps", "1"]
        start += ["--num-frames", "1", "--height", "16", "--width", "16"]
    else:
        flags = ["--window-frames", "--device", "--tokenizer", "--json"]
        start = ["reconstruct", str(bases / "videos/h264.mp4"), "out.mp4", "--tokenizer", str(bases / "tokenizer")]
    return [*start, *(word for flag in rng.sample(flags, rng.randrange(1, 3)) for word in (flag, number()))]


def run(bases: Path, case: Path, rng: random.Random) -> list[str]:
    """A training that goes on from damaged checkpoints."""
    shutil.copytree(bases / "run", case / "run")
    for _ in range(rng.choice((1, 2, 4))):
        _damage_one(case / "run", rng, rng.choice(("*", "*.json")))
    return [*train_arguments(bases, bases / "captioned", Path("run"), 3), "--resume"]


KINDS: dict[str, tuple[Kind, int]] = {
    "video": (video, 25),
    "clips": (clips, 10),
    "picture": (picture, 10),
    "tokenizer": (tokenizer, 12),
    "pipeline": (pipeline, 15),
    "weights": (weights, 3),
    "captions": (captions, 9),
    "prompts": (prompts, 6),
    "arguments": (arguments, 5),
    "run": (run, 5),
}
"""Name -> kind, and its share of 100 cases."""
