"""Compiled blocks, activation checkpointing, and what happens without a compiler."""

import dataclasses
import logging
from typing import Any

import pytest
import torch

from kinema.machine import missing_compiler
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.tokenizers.holistic.model import HolisticVideoTokenizer
from kinema.tokenizers.holistic.presets import TINY as TINY_HOLISTIC
from kinema.tokenizers.transformer.model import TransformerVideoTokenizer
from kinema.tokenizers.transformer.presets import TINY as TINY_TRANSFORMER
from kinema.training import compilation
from kinema.training.compilation import compile_blocks
from kinema.training.config import DiffusionTrainingConfig
from kinema.training.diffusion import load_pipeline, train

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path, tiny_tokenizer_folder):
    return DiffusionTrainingConfig(
        preset="tiny", data=("toybox",), tokenizer=tiny_tokenizer_folder, output=tmp_path / "run", shape="5x16x16",
        num_clips=8, batch_size=4, num_steps=3, warmup_steps=2, validation_clips=0, log_every=20, num_samples=0,
        cache_dir=tmp_path / "cache", mixed_precision="no", cpu=True,
    )  # fmt: skip


def trained(config, tmp_path, name, **settings):
    folder = train(dataclasses.replace(config, output=tmp_path / name, **settings))
    return load_pipeline(folder, "x").transformer.state_dict()


def test_activation_checkpointing_changes_no_bit(config, tmp_path):
    plain = trained(config, tmp_path, "plain")
    saving = trained(config, tmp_path, "saving", gradient_checkpointing=True)
    assert not [name for name in plain if not torch.equal(plain[name], saving[name])]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (CausalVideoTokenizer, TINY),
        (TransformerVideoTokenizer, TINY_TRANSFORMER),
        (HolisticVideoTokenizer, TINY_HOLISTIC),
    ],
    ids=["causal", "transformer", "holistic"],
)
def test_a_tokenizer_computes_activations_again(kind, settings):
    model = kind(**settings)
    with torch.no_grad():
        for parameter in model.parameters():  # heads start at zero
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.train()
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    gradients = []
    for again in (False, True):
        if again:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        torch.manual_seed(1)  # the holistic tokenizer draws how many tokens it keeps
        reconstruction, _ = model(video, sample_posterior=False)
        reconstruction.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.slow
@pytest.mark.skipif(missing_compiler(torch.device("cpu")) is not None, reason="needs a C++ compiler")
def test_compiled_blocks_learn_the_same(config, tmp_path):
    plain = trained(config, tmp_path, "plain")
    compiled = trained(config, tmp_path, "compiled", compile="on")
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=2e-3, rtol=2e-2, msg=name)


def test_without_a_compiler_blocks_run_as_they_are(config, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(compilation, "missing_compiler", lambda _: "no C++ compiler is found")
    plain = trained(config, tmp_path, "plain")
    with caplog.at_level(logging.WARNING):
        uncompiled = trained(config, tmp_path, "uncompiled", compile="on")
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        "`compile` (=on): blocks run uncompiled, no C++ compiler is found"
    ]
    assert not [name for name in plain if not torch.equal(plain[name], uncompiled[name])]


def test_a_compiler_that_fails(monkeypatch, caplog):
    def failing(*_, **__):
        raise RuntimeError("cc1plus: error")

    monkeypatch.setattr(compilation, "missing_compiler", lambda _: None)
    monkeypatch.setattr(torch, "compile", failing)
    model = CausalVideoTokenizer(**TINY)
    assert not compile_blocks(model, "on", CPU)
    assert "a first compilation failed: cc1plus: error" in caplog.text


def test_a_block_that_cannot_be_compiled_is_told_once(monkeypatch, caplog):
    def failing(*_, **__):
        raise RuntimeError("no kernel for this block")

    monkeypatch.setattr(compilation, "missing_compiler", lambda _: None)
    monkeypatch.setattr(compilation, "_failure", lambda _: None)
    model: Any = torch.nn.Module()
    model.compile_repeated_blocks = lambda dynamic: None
    block = torch.compile(lambda x: x * 2, backend=failing, dynamic=False)
    try:
        assert compile_blocks(model, "on", CPU)
        for size in (2, 3):
            assert torch.equal(block(torch.ones(size)), torch.full((size,), 2.0))
    finally:
        torch._dynamo.reset()
        torch._dynamo.config.suppress_errors = False
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1
    assert said[0].startswith("`compile`: some blocks run uncompiled, ")
    assert "no kernel for this block" in said[0]
    assert "\n" not in said[0]


@pytest.mark.parametrize("setting", ["off", "auto"])
def test_a_cpu_compiles_only_when_told(setting):
    assert not compile_blocks(CausalVideoTokenizer(**TINY), setting, CPU)


def test_casting_a_tokenizer_is_silent(caplog):
    model: Any = CausalVideoTokenizer(**TINY)
    model.to(torch.bfloat16)
    assert "float32" not in caplog.text
