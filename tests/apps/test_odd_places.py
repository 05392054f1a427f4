"""The program where things are not as usual: closed or full streams, no HOME, signals, a full disk."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from child import finish, signal_after, start
from kinema.apps.cli import main
from kinema.generation.pipeline import KinemaPipeline
from kinema.generation.text import build_word_tokenizer
from kinema.generation.transformer.model import VideoTransformer
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from videos import gray_ramp, make_video

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and devices of POSIX")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer(["a", "red", "car", "é"])
    transformer = VideoTransformer.from_preset("tiny", text_vocab_size=len(tokenizer)).eval()
    vae, scheduler = CausalVideoTokenizer(**TINY).eval(), FlowMatchEulerDiscreteScheduler()
    folder = tmp_path_factory.mktemp("model")
    KinemaPipeline(transformer, vae, tokenizer, scheduler, sample_size=(1, 16, 16)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than a tokenizer can take through in the time of a test."""
    return make_video(tmp_path_factory.mktemp("video") / "long.mp4", gray_ramp(600, 128, 128))


def program(shell: str, *arguments: str, **settings: object) -> subprocess.CompletedProcess[bytes]:
    """`kinema ARGUMENTS`, as a shell runs it with redirections; standard output and error are read here otherwise."""
    command = ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-m", "kinema", *arguments]
    return subprocess.run(command, capture_output=True, timeout=120, check=False, **settings)  # pyright: ignore


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_error(closed: str):
    result = program(closed, "weights", "list")
    assert result.returncode == 0
    assert result.stderr == b""
    assert (b"i3d" in result.stdout) == (">&-" not in closed.split())


def test_mistakes_are_mistakes_also_where_nobody_hears_of_them():
    assert program("2>&-", "weights", "list", "nonsense").returncode == 2


def test_a_full_device_is_one_line():
    result = program(">/dev/full", "weights", "list")
    assert result.returncode == 2
    assert result.stderr == b"kinema: error: [Errno 28] No space left on device\n"


def test_a_reader_that_has_gone_ends_the_program_in_silence():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "kinema", "weights", "list"]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=120, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (141, b"")


ENVIRONMENTS: dict[str, dict[str, str]] = {
    "none": {},
    "no such home": {"HOME": "/nonexistent/home", "LANG": "C", "LC_ALL": "C"},
    "ascii": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb"},
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_no_home_and_no_locale(model: Path, tmp_path: Path, name: str):
    environment = ENVIRONMENTS[name] | {"HF_HUB_OFFLINE": "1"}
    # As bytes: a shell passes what is typed, whatever Python takes its encoding for.
    words = ["generate", "a é car, zzz", "--model", str(model), "--num-steps", "1", "-o", os.fsdecode("ü.mp4".encode())]
    result = program("</dev/null", *words, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [path.name.encode() for path in tmp_path.iterdir()] == ["ü.mp4".encode()]
    assert result.stderr.startswith(b"kinema: warning: words that the model does not know: 'zzz' ")
    assert result.stderr.count(b"\n") == 1
    assert b"1 frames of 16x16" in result.stdout


def is_begun(folder: Path) -> bool:
    return any(folder.iterdir())


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_file_is_written_leaves_nothing(model: Path, long_video: Path, tmp_path: Path, number: int):
    (tmp_path / "out").mkdir()
    argv = ["reconstruct", str(long_video), str(tmp_path / "out/out.mp4"), "--tokenizer", str(model / "vae")]
    process = start(argv, tmp_path / "said.txt")
    wait_until(lambda: is_begun(tmp_path / "out"))
    assert signal_after(process, number, 0.2)
    assert finish(process) == 128 + number
    assert (tmp_path / "said.txt").read_text() == "kinema: interrupted\n"
    assert not is_begun(tmp_path / "out")


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.3, 0.6, 1.0])
def test_a_signal_at_any_moment_is_one_line(model: Path, long_video: Path, tmp_path: Path, seconds: float):
    (tmp_path / "out").mkdir()
    argv = ["reconstruct", str(long_video), str(tmp_path / "out/out.mp4"), "--tokenizer", str(model / "vae")]
    process = start(argv, tmp_path / "said.txt")
    wait_until((tmp_path / "said.txt").exists)
    assert signal_after(process, signal.SIGINT, seconds)
    assert finish(process) == 130
    assert (tmp_path / "said.txt").read_text() == "kinema: interrupted\n"
    assert not is_begun(tmp_path / "out")


@pytest.mark.parametrize("kind", ["reconstruct", "generate", "toybox"])
def test_a_full_disk_is_one_line_and_leaves_nothing(model: Path, long_video: Path, tmp_path: Path, kind: str):
    out = tmp_path / "out"
    out.mkdir()
    size = ["--num-frames", "9", "--height", "256", "--width", "256", "--num-steps", "1", "--lossless"]
    argv = {
        "reconstruct": ["reconstruct", str(long_video), str(out / "a.mp4"), "--tokenizer", str(model / "vae"),
                        "--lossless"],
        "generate": ["generate", "a red car", "--model", str(model), "-o", str(out / "a.mp4"), *size],
        "toybox": ["toybox", "render", str(out / "clips"), "--height", "256", "--width", "256", "--lossless"],
    }[kind]  # fmt: skip
    process = start(argv, tmp_path / "said.txt", "small_files_only")
    assert finish(process) == 2
    said = (tmp_path / "said.txt").read_text()
    assert said.count("kinema: error: ") == 1
    assert said.splitlines()[-1].startswith("kinema: error: ")
    assert "too large" in said
    assert not [path for path in out.rglob("*") if path.is_file()]


@pytest.mark.parametrize("library", ["keeps it", "turns it into an error"])
def test_a_signal_that_a_library_keeps_to_itself_ends_the_program(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], library: str
):
    def load(*_: object, **__: object) -> object:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            if library == "turns it into an error":
                raise ValueError("unable to load weights") from error
        return {}

    monkeypatch.setattr(CausalVideoTokenizer, "from_pretrained", load)
    path = make_video(tmp_path / "a.mp4", gray_ramp(2))
    assert main(["reconstruct", str(path), str(tmp_path / "out.mp4"), "--tokenizer", str(model / "vae")]) == 143
    assert capsys.readouterr().err == "kinema: interrupted\n"
    assert not (tmp_path / "out.mp4").exists()
