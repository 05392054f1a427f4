"""What is released: half precision, no paths, the card that was there."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from kinema.errors import KinemaError
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.training.release import release


@pytest.fixture
def run(tiny_tokenizer_folder, tmp_path):
    folder = tmp_path / "runs" / "model"
    shutil.copytree(tiny_tokenizer_folder, folder)
    config = {"data": ["/home/me/clips", "toybox"], "output": "/home/me/runs/x", "seed": 3, "init_from": None}
    (folder / "training_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.filterwarnings("ignore:There are modules in")
def test_release_is_half_precision_without_paths(run, tmp_path):
    target = tmp_path / "weights" / "tiny"
    target.mkdir(parents=True)
    (target / "README.md").write_text("the card")
    (target / "config.json").write_text("{}")
    (target / "stale.json").write_text("{}")
    size = release(run, target)
    assert size == sum(file.stat().st_size for file in target.rglob("*"))
    assert {file.name for file in target.iterdir()} == {
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "training_config.json",
    }
    assert (target / "README.md").read_text() == "the card"
    config = json.loads((target / "training_config.json").read_text())
    assert config == {"data": ["clips", "toybox"], "output": "x", "seed": 3, "init_from": None}
    assert str(tmp_path) not in "".join(file.read_text() for file in target.glob("*.json"))
    weights = load_file(target / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    released, original = (CausalVideoTokenizer.from_pretrained(folder) for folder in (target, run))
    assert released.config["latents_std"] == original.config["latents_std"]
    for one, other in zip(released.parameters(), original.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


def test_release_of_something_else_is_refused(tmp_path):
    with pytest.raises(KinemaError, match=r"training_config\.json"):
        release(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_release_replaces_no_other_folder(run, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(KinemaError, match=r"`target` \(=.*thesis\) must be a folder of a model"):
        release(run, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
