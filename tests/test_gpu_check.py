"""The check of a GPU, on the CPU: every stage runs, what is there is not run again, what fails is told."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def gpu_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the program."""
    return subprocess.run(
        [sys.executable, "benchmarks/gpu_check.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_every_stage_runs_on_a_cpu(tmp_path):
    first = gpu_check("--device", "cpu", "--output", str(tmp_path))
    assert first.returncode == 0, first.stdout + first.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["stages"]) == ["attention", "kernels", "tokenizers", "training", "sparse", "generation", "fvd"]
    assert all(found["ok"] for found in results["stages"].values())
    assert results["stages"]["attention"]["checked"] > 50
    # A second call has nothing to do; a stage that failed is run again.
    results["stages"]["fvd"]["ok"] = False
    results["stages"]["attention"]["checked"] = 1
    (tmp_path / "results.json").write_text(json.dumps(results))
    second = gpu_check("--device", "cpu", "--output", str(tmp_path))
    assert second.returncode == 0
    assert second.stderr.split() == ["fvd", "..."]
    assert "| attention | yes |" in second.stdout
    assert "checked 1 |" in second.stdout


def test_a_stage_that_fails_or_takes_too_long_is_told(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    check = importlib.import_module("gpu_check")
    failed = check.run_limited("kernels", "nowhere", "small", 120.0)
    assert not failed["ok"]
    assert "nowhere" in failed["error"]
    slow = check.run_limited("kernels", "cpu", "small", 0.01)
    assert slow["error"] == "no result within 0 s"
    assert check.describe("kernels", failed) == failed["error"]


def test_a_gpu_that_is_not_there_is_one_line():
    found = gpu_check("--device", "cuda:99")
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].startswith("gpu_check.py: error: `--device` (=cuda:99) must be one of the")


def test_stages_need_no_av_gradio_or_xformers():
    code = (
        "import sys\n"
        "for name in ('av', 'gradio', 'xformers', 'tyro'): sys.modules[name] = None\n"
        "import gpu_stages, training_throughput\n"
        "import kinema.training.tokenizer, kinema.training.diffusion, kinema.generation.pipeline\n"
        "import kinema.eval.toybox.evaluation, kinema.eval.networks.i3d, kinema.tokenizers.causal_vae.model\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, env=os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")}
    )
