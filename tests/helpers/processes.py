"""Programs that run in several processes, which talk through gloo."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launch(program: str, processes: int, *arguments: str, folder: Path) -> None:
    """Runs a program's text in so many processes.

    Args:
        program: Python source.
        processes: how many.
        *arguments: of the program.
        folder: where its file is written.
    """
    file = folder / "program.py"
    file.write_text(program)
    launch_file(file, processes, *arguments)


def launch_file(file: Path | str, processes: int, *arguments: str) -> None:
    """Runs a program in so many processes."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), str(file)]
    result = subprocess.run(
        [sys.executable, *command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr
