"""Latents are computed once, reused, and computed again when something they depend on changes."""

import pytest
import torch

from kinema import CausalVideoTokenizer
from kinema.generation.text import WordTextEncoder, build_word_tokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.training import latents_cache
from kinema.training.latents_cache import cached_latents, folder_hash, model_hash


class World:
    """Counts the clips that it makes."""

    def __init__(self):
        self.made: list[int] = []

    def __call__(self, indices):
        self.made += indices
        video = torch.tensor([float(i) for i in indices]).view(-1, 1, 1, 1, 1).expand(-1, 3, 1, 2, 2)
        return video, ["clip" + " one" * (i % 3) for i in indices]


@pytest.fixture
def build(tmp_path, monkeypatch):
    monkeypatch.setattr(latents_cache, "SHARD_SIZE", 4)
    monkeypatch.setattr(latents_cache, "_BATCH", 3)
    encode_text = WordTextEncoder(build_word_tokenizer(["clip", "one"]))

    def build(world, settings, num_clips=10):
        return cached_latents(tmp_path, settings, num_clips, world, lambda video: video * 2, encode_text)

    return build


def test_latents_and_text_by_number(build):
    cache = build(World(), {"a": 1})
    assert len(cache) == 10
    latents, text = cache([9, 0, 5])
    assert latents.dtype == torch.float32
    assert latents[:, 0, 0, 0, 0].tolist() == [18.0, 0.0, 10.0]
    assert text.mask.sum(1).tolist() == [2, 2, 4]  # start, "clip", and as many "one"
    assert cache.captions[5] == "clip one one"


def test_computed_once(build):
    build(World(), {"a": 1})
    second = World()
    cache = build(second, {"a": 1})
    assert second.made == []
    assert cache([3])[0].flatten()[0] == 6


@pytest.mark.parametrize(("settings", "num_clips"), [({"a": 2}, 10), ({"a": 1, "b": 0}, 10), ({"a": 1}, 11)])
def test_computed_again_when_something_changes(build, settings, num_clips):
    build(World(), {"a": 1})
    second = World()
    build(second, settings, num_clips)
    assert second.made == list(range(num_clips))


def test_an_interrupted_computation_goes_on(build):
    class Interrupted(World):
        def __call__(self, indices):
            if 6 in indices:
                raise KeyboardInterrupt
            return super().__call__(indices)

    with pytest.raises(KeyboardInterrupt):
        build(Interrupted(), {"a": 1})
    second = World()
    cache = build(second, {"a": 1})
    assert second.made == list(range(4, 10))  # the first shard was whole
    assert cache(range(10))[0][:, 0, 0, 0, 0].tolist() == [2.0 * i for i in range(10)]


def test_hash_of_a_model_follows_weights_and_settings(tmp_path):
    torch.manual_seed(0)
    model = CausalVideoTokenizer(**TINY)
    first = model_hash(model)
    model.save_pretrained(tmp_path)
    assert model_hash(CausalVideoTokenizer.from_pretrained(tmp_path)) == first
    model.set_latent_statistics(torch.zeros(4), torch.full((4,), 2.0))
    second = model_hash(model)
    assert second != first
    with torch.no_grad():
        model.decoder.linear_path.weight.flatten()[0] += 1e-3
    assert model_hash(model) not in (first, second)
    assert model_hash(torch.nn.Linear(2, 2)) != model_hash(torch.nn.Linear(2, 2))


def test_hash_follows_weights_and_config(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    first = folder_hash(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    assert folder_hash(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"abd")
    assert folder_hash(tmp_path) != first
