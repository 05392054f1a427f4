"""One training at a time in a folder; the lock ends with the process that holds it."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kinema.errors import KinemaError
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.training import run_lock
from kinema.training.config import TokenizerTrainingConfig
from kinema.training.run_lock import HOLDER, LOCK, locked_run
from kinema.training.tokenizer import train

HOLD = """
import sys
from pathlib import Path
from kinema.training.run_lock import locked_run
with locked_run(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(run_dir: Path) -> subprocess.Popen[str]:
    """Another process that has the folder until its standard input ends."""
    command = [sys.executable, "-c", HOLD, str(run_dir)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str], number: int | None = None) -> None:
    if number is not None:
        process.send_signal(number)
    process.communicate(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, None], ids=["killed", "terminated", "ended"])
def test_the_lock_ends_with_its_process(tmp_path, number):
    run = tmp_path / "run"
    process = hold(run)
    (run / "config.json").write_text("{}")
    try:
        message = rf"`output` \(=.*run\) must be free, and process {process.pid} on .* trains there"
        with pytest.raises(KinemaError, match=message), locked_run(run):
            pass
        assert (run / HOLDER).is_file()  # who is refused takes nothing away
    finally:
        end(process, number)
    with locked_run(run):
        assert (run / HOLDER).read_text().startswith(f"{os.getpid()} on ")
    assert not (run / HOLDER).exists()


def test_twice_in_one_process(tmp_path):
    with locked_run(tmp_path):
        with pytest.raises(KinemaError, match="must be free"), locked_run(tmp_path):
            pass
        (tmp_path / "config.json").write_text("{}")
    with locked_run(tmp_path):
        pass


@pytest.mark.parametrize("holder", [None, b"", b"\xff\xfe"])
def test_a_holder_that_is_not_known(tmp_path, holder):
    with locked_run(tmp_path):
        (tmp_path / HOLDER).unlink() if holder is None else (tmp_path / HOLDER).write_bytes(holder)
        with pytest.raises(KinemaError, match="must be free") as error, locked_run(tmp_path):
            pass
        assert len(str(error.value).splitlines()) == 1
        assert "process  trains" not in str(error.value)


def test_a_folder_in_which_nothing_was_done_is_gone(tmp_path):
    with pytest.raises(KinemaError, match="a mistake"), locked_run(tmp_path / "new"):
        raise KinemaError("a mistake")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with pytest.raises(KinemaError, match="a mistake"), locked_run(tmp_path / "old"):
        raise KinemaError("a mistake")
    assert list((tmp_path / "old").iterdir()) == []


def test_folders_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/run"):
        with (
            pytest.raises(KinemaError, match=r"`output` .* must be a folder that can be made"),
            locked_run(tmp_path / place),
        ):
            pass
    (tmp_path / "run" / LOCK).mkdir(parents=True)
    with (
        pytest.raises(KinemaError, match=r"`output` .* must be a folder that can be written"),
        locked_run(tmp_path / "run"),
    ):
        pass


def test_file_systems_without_locks(tmp_path, monkeypatch, caplog):
    def acquire(self):
        raise NotImplementedError("no locks")

    monkeypatch.setattr(run_lock.FileLock, "acquire", acquire)
    with locked_run(tmp_path / "run"):
        pass
    assert "has no locks" in caplog.text


def test_the_second_training_is_refused_and_changes_nothing(tmp_path):
    config = TokenizerTrainingConfig(
        preset="kl-4x8x8-c16", data=("toybox",), output=tmp_path / "run", shapes=("5x16x16",), batch_size=1,
        validation_shape="5x16x16", validation_clips=1, num_steps=1, cpu=True, num_workers=0,
    )  # fmt: skip
    train(config, CausalVideoTokenizer(**TINY))
    process = hold(tmp_path / "run")
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    more = dataclasses.replace(config, num_steps=2, resume=True)
    try:
        for second in (config, more):
            with pytest.raises(KinemaError, match=rf"must be free, and process {process.pid} on"):
                train(second, CausalVideoTokenizer(**TINY))
    finally:
        end(process, signal.SIGKILL)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == files
    train(more, CausalVideoTokenizer(**TINY))
    assert (tmp_path / "run/checkpoints/step-00000002").is_dir()
