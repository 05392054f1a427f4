"""Programs of kinema in processes that can be killed, started from one that has imported everything already.

Each is a fork of a server without threads, so that it starts in milliseconds.
"""

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

_PRELOADED = [
    "kinema.training.tokenizer",
    "kinema.training.diffusion",
    "child",
    "tensorboard",
    "torch.utils.tensorboard",
]


def run_cli(arguments: list[str], output: str, *prepared: str) -> None:
    """`kinema ARGUMENTS`, with what it writes to the terminal going to a file.

    Args:
        arguments: of the command line.
        output: the file, which is added to.
        prepared: names of functions in `child` to call before.
    """
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    for name in prepared:
        globals()[name]()
    from kinema.apps.cli import main

    sys.exit(main(arguments))


def small_files_only() -> None:
    """Files end at 40 kB, as on a full disk."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))


def ignore_hangups() -> None:
    """As `nohup` does."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def tiny_tokenizers() -> None:
    """Every preset of a tokenizer to train gives a tiny one."""
    from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
    from kinema.tokenizers.causal_vae.presets import TINY
    from kinema.training import tokenizer

    tokenizer.make_tokenizer = lambda _: CausalVideoTokenizer(**TINY)


def start(arguments: list[str], output: Path, *prepared: str) -> BaseProcess:
    """Starts `kinema ARGUMENTS`; see `run_cli`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=run_cli, args=(arguments, str(output), *prepared))
    process.start()
    return process


def finish(process: BaseProcess, timeout: float = 300) -> int:
    """Waits for the end; its exit status, negative for a signal."""
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise TimeoutError("the program did not end")
    assert process.exitcode is not None
    return process.exitcode


def signal_after(process: BaseProcess, number: int, seconds: float) -> bool:
    """Sends a signal after some time; whether the process was still there."""
    process.join(seconds)
    if not process.is_alive():
        return False
    assert process.pid is not None
    os.kill(process.pid, number)
    return True


def wait_for(path: Path, timeout: float = 120) -> None:
    """Until there is a file."""
    end = time.monotonic() + timeout
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{path} did not come")
        time.sleep(0.005)
