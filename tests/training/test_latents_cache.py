"""Latents are computed once, reused, and computed again when something they depend on changes."""

import pytest
import torch

from kinema import CausalVideoTokenizer
from kinema.generation.text import WordTextEncoder, build_word_tokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.training import latents_cache
from kinema.training.diffusion import epoch_order, shuffled
from kinema.training.latents_cache import (
    LatentsCache,
    Shard,
    cached_latents,
    clips_at_once,
    folder_hash,
    model_hash,
    place_of,
)


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
    encode_text = WordTextEncoder(build_word_tokenizer(["clip", "one"]))

    def build(world, settings, num_clips=10):
        return cached_latents(tmp_path, settings, num_clips, world, lambda video: video * 2, encode_text, at_once=3)

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


def shards_of(*sizes: int) -> list[Shard]:
    made, first = [], 0
    for size in sizes:
        rows = torch.arange(first, first + size)
        lengths = rows % 3 + 1
        width = int(lengths.max()) + 2  # padded further than need be
        mask = torch.arange(width) < lengths[:, None]
        latents = rows.half().view(-1, 1, 1, 1, 1).expand(-1, 2, 1, 1, 1)
        made.append(Shard(latents, (rows[:, None] + 10) * mask, mask, [f"caption {row}" for row in rows.tolist()]))
        first += size
    return made


def test_rows_of_several_shards_come_with_text_of_the_longest():
    cache = LatentsCache(shards_of(4, 3))
    latents, text = cache(torch.tensor([6, 0, 4]))  # texts of 1, 1 and 2 words
    assert latents[:, 0, 0, 0, 0].tolist() == [6, 0, 4]
    assert text.values.tolist() == [[16, 0], [10, 0], [14, 14]]
    assert text.mask.tolist() == [[True, False], [True, False], [True, True]]
    assert cache.captions[5] == "caption 5"


def test_on_a_device_texts_have_few_lengths(monkeypatch):
    monkeypatch.setattr(latents_cache, "place_of", lambda size, device: torch.device("meta"))
    cache = LatentsCache(shards_of(4, 3), "meta")
    latents, text = cache([6, 0, 4])
    assert latents.shape == (3, 2, 1, 1, 1)
    assert text.values.shape == text.mask.shape == (3, 16)
    _, text = LatentsCache(shards_of(4, 3), "meta", max_length=5)([6, 0, 4])
    assert text.values.shape == text.mask.shape == (3, 5)


def test_shards_are_let_go():
    shards = shards_of(4, 3)
    LatentsCache(shards)
    assert shards == []


def test_fewer_large_clips_are_encoded_together():
    assert clips_at_once((33, 128, 128), torch.device("cpu")) == 32
    assert clips_at_once((1, 16, 16), torch.device("cuda")) == 128
    assert clips_at_once((49, 480, 832), torch.device("cuda")) == 3
    assert clips_at_once((301, 1080, 1920), torch.device("cpu")) == 1


@pytest.mark.parametrize(("gigabytes", "place"), [(19, "cuda"), (21, "cpu")])
def test_a_quarter_of_a_device_may_be_taken(monkeypatch, gigabytes, place):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * 2**30, 80 * 2**30))
    assert place_of(gigabytes * 2**30, torch.device("cuda")).type == place
    assert place_of(1, torch.device("cpu")).type == "cpu"
    assert place_of(1, torch.device("mps")).type == "cpu"


@pytest.mark.parametrize("positions", [range(3, 7), range(8, 16), range(5, 26), range(15, 17)])
def test_epochs_follow_each_other_in_orders_of_their_own(positions):
    expected = [int(epoch_order(3, position // 8, 8)[position % 8]) for position in positions]
    assert shuffled(3, positions, 8).tolist() == expected
