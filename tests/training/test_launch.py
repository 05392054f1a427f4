"""Both scripts under `accelerate launch` and torchrun, and what they say of wrong input."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=600)


def launch(num_processes: int, script: str, *arguments: str) -> None:
    # `accelerate launch --cpu` starts one process, whatever it is asked for; torchrun starts as many.
    if num_processes == 1:
        options = ["accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
        options += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
    else:
        options = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    result = run("-m", *options, f"training/{script}", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"in {num_processes} process" in result.stderr


SMALL = ["--batch-size", "2", "--num-steps", "3", "--warmup-steps", "1", "--log-every", "1", "--cpu"]


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_both_scripts_train(tmp_path, num_processes):
    tokenizer, pipeline = tmp_path / "tokenizer", tmp_path / "pipeline"
    options = ["--data", "toybox", "--shapes", "5x16x16", "--validation-clips", "1", *SMALL]
    launch(num_processes, "train_tokenizer.py", "kl-4x8x8-c16", *options, "--output", str(tokenizer))
    assert (tokenizer / "model/diffusion_pytorch_model.safetensors").is_file()
    assert (tokenizer / "checkpoints/step-00000003/state.json").is_file()
    options = ["--data", "toybox", "--shape", "5x16x16", "--num-clips", "8", "--validation-clips", "2", *SMALL]
    options += ["--tokenizer", str(tokenizer / "model"), "--num-samples", "1", "--sample-steps", "1"]
    launch(num_processes, "train_diffusion.py", "tiny", *options, "--output", str(pipeline))
    assert (pipeline / "model/model_index.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "`preset` (=nope)"),
        (["kl-4x8x8-c16", "--data", "missing-folder", "--output", "OUT"], "`data` (=missing-folder)"),
        (["kl-4x8x8-c16", "--batch-size", "0"], "`batch_size` (=0)"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(tmp_path, arguments, said):
    arguments = [str(tmp_path / "run") if a == "OUT" else a for a in arguments]
    result = run("training/train_tokenizer.py", *arguments)
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
