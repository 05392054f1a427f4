"""What a run keeps when it goes on, what it refuses, and what it says."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from kinema.errors import KinemaError
from kinema.generation.pipeline import KinemaPipeline
from kinema.generation.text import build_word_tokenizer
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.training import diffusion, tokenizer
from kinema.training.checkpoint import read_state
from kinema.training.config import DiffusionTrainingConfig, TokenizerTrainingConfig
from kinema.training.manifest import write_manifest
from kinema.training.record import data_changes


def captions(folder: Path, **texts: str) -> None:
    rows = [json.dumps({"file": f"{name}.mp4", "caption": text}) for name, text in texts.items()]
    (folder / "captions.jsonl").write_text("\n".join(rows) + "\n")


@pytest.fixture
def data(tmp_path, make_video):
    for name in ("a", "b"):
        make_video(tmp_path / f"data/{name}.mp4", num_frames=6, height=16, width=16)
    captions(tmp_path / "data", a="a red car", b="a car turns")
    return tmp_path / "data"


COMMON: dict[str, Any] = dict(
    num_steps=2, warmup_steps=1, eval_every=100, sample_every=100, save_every=2, log_every=1, cpu=True, num_workers=0
)


@pytest.fixture
def config(tmp_path, data, tiny_tokenizer_folder):
    """Of a diffusion training."""
    shutil.copytree(tiny_tokenizer_folder, tmp_path / "tokenizer")
    return DiffusionTrainingConfig(
        preset="tiny", data=(str(data),), tokenizer=tmp_path / "tokenizer", output=tmp_path / "run", shape="5x16x16",
        num_clips=2, batch_size=1, validation_clips=0, **COMMON,
    )  # fmt: skip


@pytest.fixture
def tokenizer_config(tmp_path, data):
    return TokenizerTrainingConfig(
        preset="kl-4x8x8-c16", data=(str(data),), output=tmp_path / "run", shapes=("5x16x16",), batch_size=1,
        validation_shape="5x16x16", **COMMON,
    )  # fmt: skip


def train_tiny(config: TokenizerTrainingConfig, **changes: Any) -> Path:
    torch.manual_seed(0)
    return tokenizer.train(config, CausalVideoTokenizer(**(TINY | changes)))


def go_on(config: Any, **changes: Any) -> Any:
    return dataclasses.replace(config, **({"resume": True, "num_steps": 4} | changes))


def contents(run: Path) -> dict[str, str]:
    """A hash of every file of a run but its log."""
    files = [p for p in run.rglob("*") if p.is_file() and p.name not in ("train.log", "train.lock")]
    return {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def words(run: Path) -> dict[str, int]:
    return AutoTokenizer.from_pretrained(run / "model/tokenizer").get_vocab()


def log(config: Any) -> str:
    return (config.run_dir / "train.log").read_text()


# --- vocabulary ---


@pytest.mark.parametrize(
    ("a", "b", "named"),
    [
        ("a blue car", "a car turns", "blue"),  # as many words as before
        ("a red car", "a car turns left", "left"),  # one more
        ("a zebra", "aardvarks turn", "aardvarks, turn, zebra"),
        ("ein rotes Auto", "मेरी गाड़ी", "auto, ein, rotes, गाड़ी, मेरी"),
    ],
)
def test_new_words_are_refused_by_name(config, data, a, b, named):
    diffusion.train(config)
    before, known = contents(config.run_dir), words(config.run_dir)
    captions(data, a=a, b=b)
    with pytest.raises(KinemaError, match=rf"`data` .*has {named}, which"):
        diffusion.train(go_on(config))
    assert contents(config.run_dir) == before
    assert words(config.run_dir) == known


@pytest.mark.parametrize(
    ("a", "b"), [("a car", "a car turns"), ("CAR, red!", "a turns"), ("turns a car red", "red"), ("car", "")]
)
def test_words_keep_their_numbers(config, data, a, b):
    diffusion.train(config)
    known = words(config.run_dir)
    captions(data, a=a, b=b)
    diffusion.train(go_on(config))
    assert words(config.run_dir) == known
    said = next(line for line in log(config).splitlines() if "the data has changed" in line)
    assert "captions changed" in said
    assert f"a.mp4: 'a red car' is now '{a}'" in said
    vocabulary = AutoTokenizer.from_pretrained(config.run_dir / "checkpoints/step-00000004/vocabulary")
    assert vocabulary.get_vocab() == known


def test_kept_latents_have_the_words_of_the_run(config, data):
    """Not those of a vocabulary made anew: ids in the cache are the run's."""
    diffusion.train(config)
    known = words(config.run_dir)
    captions(data, a="a car", b="a car turns")
    task = None

    class Kept(diffusion.DiffusionTask):
        def __init__(self, *arguments):
            nonlocal task
            super().__init__(*arguments)
            task = self

    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(diffusion, "DiffusionTask", Kept)
        diffusion.train(go_on(config))
    assert task is not None
    assert task.cache is not None
    for index, caption in enumerate(task.cache.captions):
        ids = task.cache([index])[1].values[0].tolist()
        assert ids == [known["[START]"], *(known[word] for word in caption.split())]


def test_a_damaged_vocabulary_is_a_damaged_checkpoint(config):
    config = dataclasses.replace(config, save_every=1)
    diffusion.train(config)
    (config.run_dir / "checkpoints/step-00000002/vocabulary/tokenizer.json").write_text("{}")
    diffusion.train(go_on(config))
    assert "vocabulary/tokenizer.json has 2 bytes" in log(config)


# --- statistics, tokenizer, text encoder ---


def test_statistics_of_latents_stay(config):
    """Also when they were measured anew in the tokenizer's folder."""
    diffusion.train(config)
    before = KinemaPipeline.from_pretrained(config.run_dir / "model").vae.config
    place = config.tokenizer / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"latents_std": [9.0] * 4}))
    diffusion.train(go_on(config))
    after = KinemaPipeline.from_pretrained(config.run_dir / "model").vae.config
    assert after["latents_std"] == before["latents_std"] != [9.0] * 4
    assert after["latents_mean"] == before["latents_mean"]
    assert "other statistics of latents now" in log(config)


def test_another_tokenizer_is_refused(config):
    diffusion.train(config)
    before = contents(config.run_dir)
    file = config.tokenizer / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    save_file(tensors | {first: tensors[first] + 1e-3}, file, {"format": "pt"})
    with pytest.raises(KinemaError, match=r"`tokenizer` .* must have the weights and settings that .* had at first"):
        diffusion.train(go_on(config))
    assert contents(config.run_dir) == before


def test_another_text_encoder_is_refused(config, tmp_path):
    for name in ("one", "two"):
        vocabulary = build_word_tokenizer(["a", "car", "red", "turns"])
        vocabulary.save_pretrained(tmp_path / name)
        torch.manual_seed(len(name) + (name == "two"))
        settings = T5Config(vocab_size=len(vocabulary), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        T5EncoderModel(settings).save_pretrained(tmp_path / name)
    config = dataclasses.replace(config, text_encoder=tmp_path / "one")
    diffusion.train(config)
    with pytest.raises(KinemaError, match=r"`text_encoder` .*two\) must have the weights and settings that .*one had"):
        diffusion.train(go_on(config, text_encoder=tmp_path / "two"))
    diffusion.train(go_on(config, text_encoder=None))  # it is the run's own
    assert KinemaPipeline.from_pretrained(config.run_dir / "model").text_encoder is not None


def test_a_vocabulary_does_not_become_a_text_encoder(config, tmp_path):
    diffusion.train(config)
    vocabulary = build_word_tokenizer(["a"])
    vocabulary.save_pretrained(tmp_path / "encoder")
    settings = T5Config(vocab_size=len(vocabulary), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5EncoderModel(settings).save_pretrained(tmp_path / "encoder")
    with pytest.raises(KinemaError, match=r"`text_encoder` \(=.*encoder\) must stay None"):
        diffusion.train(go_on(config, text_encoder=tmp_path / "encoder"))


# --- data ---


def test_data_and_tokenizer_come_from_the_run_when_left_out(config):
    diffusion.train(config)
    diffusion.train(go_on(config, data=(), tokenizer=None))
    assert json.loads((config.run_dir / "config.json").read_text())["data"] == list(config.data)
    assert "settings changed: num_steps 2 -> 4\n" in log(config)


def test_data_may_move_but_not_be_another(config, data, tmp_path):
    diffusion.train(config)
    shutil.copytree(data, tmp_path / "moved")
    diffusion.train(go_on(config, data=(str(tmp_path / "moved"),)))
    assert "the data has changed" not in log(config)
    captions(data, a="a red car", b="a car")
    before = contents(config.run_dir)
    with pytest.raises(KinemaError, match=r"`data` \(=.*data\) must hold what .*moved held, .*b.mp4: 'a car turns' "):
        diffusion.train(go_on(config, num_steps=6))
    assert contents(config.run_dir) == before


def test_more_and_fewer_files_are_said(tokenizer_config, data, make_video):
    train_tiny(tokenizer_config)
    make_video(data / "c.mp4", num_frames=7, height=16, width=16)
    (data / "b.mp4").unlink()
    (data / "a.mp4").unlink()
    make_video(data / "a.mp4", num_frames=9, height=24, width=16)
    captions(data, a="captions do not matter here")
    train_tiny(go_on(tokenizer_config))
    said = next(line for line in log(tokenizer_config).splitlines() if "the data has changed" in line)
    assert said.endswith("1 files changed (a.mp4); 1 new files (c.mp4); 1 files gone (b.mp4)")


def test_many_changes_are_counted_and_some_named():
    now = {f"{k}.mp4": [1, "a"] for k in range(5)}
    assert data_changes({}, now) == "5 new files (0.mp4, 1.mp4, 2.mp4, ...)"
    assert data_changes(now, now) == ""


# --- settings ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"preset": "kl-4x16x16-c8"}, r"`preset` \(=kl-4x16x16-c8\) must stay kl-4x8x8-c16"),
        ({"shapes": ("9x16x16",)}, r"`shapes` \(=9x16x16\) must stay 5x16x16"),
        ({"seed": 1}, r"`seed` \(=1\) must stay 0"),
        ({"frame_rates": (8.0,)}, r"`frame_rates` \(=8.0\) must stay \(\)"),
        ({"optimizer": "adamw"}, r"`optimizer` \(=adamw\) must stay muon"),
        ({"freeze_encoder": True}, r"`freeze_encoder` \(=True\) must stay False"),
        ({"validation": ("b",)}, r"`validation` \(=b\) must stay \(\)"),
        ({"max_stride": 1, "seed": 2}, r"`seed` \(=2\) must stay 0, `max_stride` \(=1\) must stay 2"),
    ],
)
def test_settings_that_must_stay(tokenizer_config, changes, said):
    train_tiny(tokenizer_config)
    before = contents(tokenizer_config.run_dir)
    with pytest.raises(KinemaError, match=said):
        train_tiny(go_on(tokenizer_config, **changes))
    assert contents(tokenizer_config.run_dir) == before


@pytest.mark.parametrize("changes", [{"shape": "9x16x16"}, {"fps": 30.0}, {"attention": "spatial"}])
def test_settings_of_diffusion_that_must_stay(config, changes):
    diffusion.train(config)
    before = contents(config.run_dir)
    with pytest.raises(KinemaError, match=rf"`{next(iter(changes))}` .* must stay"):
        diffusion.train(go_on(config, **changes))
    assert contents(config.run_dir) == before


def test_the_model_must_stay(tokenizer_config):
    train_tiny(tokenizer_config)
    before = contents(tokenizer_config.run_dir)
    with pytest.raises(KinemaError, match=r"`bottleneck` \(=\{'name': 'fsq', .* must stay \{'name': 'kl'"):
        train_tiny(go_on(tokenizer_config), bottleneck={"name": "fsq", "levels": (8, 8)})
    assert contents(tokenizer_config.run_dir) == before


def test_settings_that_may_change_are_logged(tokenizer_config):
    train_tiny(tokenizer_config)
    train_tiny(go_on(tokenizer_config, learning_rate=5e-4, batch_size=2, save_every=1))
    changed = "batch_size 1 -> 2; num_steps 2 -> 4; learning_rate 0.001 -> 0.0005; save_every 2 -> 1"
    assert f"settings changed: {changed}" in log(tokenizer_config)
    record = json.loads((tokenizer_config.run_dir / "config.json").read_text())
    assert (record["num_steps"], record["learning_rate"]) == (4, 5e-4)


def test_num_steps_must_not_be_passed(tokenizer_config):
    train_tiny(tokenizer_config)
    before = contents(tokenizer_config.run_dir)
    with pytest.raises(KinemaError, match=r"`num_steps` \(=1\) must be at least 2, the step that .* has reached"):
        train_tiny(go_on(tokenizer_config, num_steps=1))
    assert contents(tokenizer_config.run_dir) == before


def test_a_finished_run_writes_its_model_again(tokenizer_config):
    train_tiny(tokenizer_config)
    shutil.move(tokenizer_config.run_dir / "model", tokenizer_config.run_dir / "before")
    train_tiny(go_on(tokenizer_config, num_steps=2, learning_rate=1.0))
    before, again = contents(tokenizer_config.run_dir / "before"), contents(tokenizer_config.run_dir / "model")
    assert before == again  # the settings, too: no step was taken with the new rate


def test_the_model_comes_with_the_settings_of_its_weights(config):
    """The best weights are of a step before the settings changed."""
    config = dataclasses.replace(config, validation_clips=2, data=("toybox",), eval_every=2)
    diffusion.train(config)
    path = config.run_dir / "checkpoints/step-00000002/state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"score": 99.0, "best_score": 99.0}))
    write_manifest(path.parent)
    folder = diffusion.train(go_on(config, learning_rate=1e-9))
    assert "model written: the weights of step 2" in log(config)
    saved = json.loads((folder / "training_config.json").read_text())
    assert (saved["num_steps"], saved["learning_rate"]) == (2, config.learning_rate)


BROKEN = {
    "empty": b"",
    "cut": b'{"preset": "kl',
    "list": b"[1]",
    "null": b"null",
    "bytes": b"\xff\xfe\0",
    "missing": None,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_record_is_written_anew(tokenizer_config, kind):
    train_tiny(tokenizer_config)
    path = tokenizer_config.run_dir / "config.json"
    path.unlink() if BROKEN[kind] is None else path.write_bytes(BROKEN[kind])
    train_tiny(go_on(tokenizer_config))
    assert json.loads(path.read_text())["num_steps"] == 4


# --- damaged and earlier checkpoints ---


def weights(run: Path, step: int) -> dict[str, bytes]:
    folder = run / f"checkpoints/step-{step:08d}"
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def test_a_run_goes_on_before_the_damage_and_ends_the_same(tokenizer_config, tmp_path):
    whole = dataclasses.replace(tokenizer_config, output=tmp_path / "whole", num_steps=6)
    train_tiny(whole)
    config = dataclasses.replace(tokenizer_config, save_every=1)
    train_tiny(go_on(config, resume=False))
    damaged = config.run_dir / "checkpoints/step-00000004/ema.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    train_tiny(go_on(config, num_steps=6))
    assert weights(config.run_dir, 6) == weights(whole.run_dir, 6)
    assert "step-00000004 (ema.safetensors has another checksum" in log(config)
    assert "from step 3" in log(config)
    kept = config.run_dir / "checkpoints/damaged-step-00000004/ema.safetensors"
    assert kept.read_bytes() == bytes(data)


def test_when_nothing_fits_nothing_is_moved(tokenizer_config):
    config = dataclasses.replace(tokenizer_config, save_every=1)
    train_tiny(config)
    (config.run_dir / "checkpoints/step-00000002/state.json").write_bytes(b"")
    before = contents(config.run_dir)
    with pytest.raises(KinemaError, match="`seed`"):
        train_tiny(go_on(config, seed=3))
    assert contents(config.run_dir) == before


def make_old(run: Path) -> None:
    """As earlier versions wrote checkpoints."""
    for path in (run / "checkpoints").iterdir():
        for name in ("manifest.json", "run.json", "data.json"):
            (path / name).unlink()
        shutil.rmtree(path / "vocabulary", ignore_errors=True)
        values = json.loads((path / "state.json").read_text())
        values.pop("format")
        (path / "state.json").write_text(json.dumps(values))


@pytest.mark.parametrize("record", ["whole", "empty"])
@pytest.mark.parametrize("has_result", [True, False])
def test_runs_of_earlier_versions_go_on(config, data, record, has_result):
    """With the settings of `config.json`, and the words of the result if there is one."""
    diffusion.train(config)
    known = words(config.run_dir)
    make_old(config.run_dir)
    if record == "empty":
        (config.run_dir / "config.json").write_bytes(b"")
    else:
        with pytest.raises(KinemaError, match=r"`shape` .* must stay"):
            diffusion.train(go_on(config, shape="9x16x16"))
    if has_result:
        captions(data, a="a car", b="a car turns")  # without red, words would have other numbers
    else:
        shutil.rmtree(config.run_dir / "model")
    diffusion.train(go_on(config))
    assert words(config.run_dir) == known
    assert read_state(config.run_dir / "checkpoints/step-00000004").step == 4
    assert ("has no vocabulary" in log(config)) != has_result
    assert ("config.json cannot be read" in log(config)) == (record == "empty")


def test_a_refused_start_leaves_the_report_of_the_data(config, data):
    diffusion.train(config)
    before = contents(config.run_dir)
    assert "data_report.json" in before
    (data / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(KinemaError, match="`shape`"):
        diffusion.train(go_on(config, shape="9x16x16"))
    captions(data, a="a zebra", b="a car turns")
    with pytest.raises(KinemaError, match="zebra"):
        diffusion.train(go_on(config))
    assert contents(config.run_dir) == before
    captions(data, a="a car", b="a car turns")
    diffusion.train(go_on(config))
    assert "broken.mp4" in (config.run_dir / "data_report.json").read_text()


@pytest.mark.parametrize("given", [None, 12.0])
def test_the_rate_of_clips_comes_from_the_run(config, data, make_video, given):
    """Also where the files have another rate now, from which it would be found anew."""
    diffusion.train(dataclasses.replace(config, fps=given))
    rate = json.loads((config.run_dir / "checkpoints/step-00000002/run.json").read_text())["config"]["fps"]
    for name in ("a", "b"):
        (data / f"{name}.mp4").unlink()
        make_video(data / f"{name}.mp4", num_frames=12, height=16, width=16, fps=30)
    folder = diffusion.train(go_on(config))
    assert json.loads((config.run_dir / "config.json").read_text())["fps"] == rate
    assert KinemaPipeline.from_pretrained(folder).config["sample_fps"] == rate == (given or 8)
    with pytest.raises(KinemaError, match=rf"`fps` \(=30.0\) must stay {rate}"):
        diffusion.train(go_on(config, num_steps=6, fps=30.0))
