"""Runs one case in a process of its own and judges how it ended."""

import os
import random
import resource
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fuzz.kinds import KINDS
from fuzz.mutations import MARKER

TIME_LIMIT = 60.0
"""Seconds that a case may take."""

MEMORY_LIMIT = 4 * 2**30
"""Bytes that a case may have in memory at once."""

_EVENTS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "pty.spawn")
"""Audit events that no damaged file may cause."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        index: the case's number; with the seed it says all of it.
        kind: name of its kind.
        arguments: of the command line.
        status: exit status, negative for a signal.
        seconds: how long it took.
        memory: most bytes in memory at once.
        problems: what must not be; none for a case that is survived.
    """

    index: int
    kind: str
    arguments: list[str]
    status: int
    seconds: float
    memory: int
    problems: list[str]


def kind_of(index: int) -> str:
    """The kind of a case: each hundred cases have all kinds by their shares, mixed."""
    shares = [name for name, (_, share) in KINDS.items() for _ in range(share)]
    return shares[index * 37 % len(shares)]


def run_case(bases: Path, folder: Path, seed: int, index: int) -> Outcome:
    """Makes the files of a case, runs it, and keeps its folder where something is wrong."""
    case, kind = folder / f"case-{index:05d}", kind_of(index)
    shutil.rmtree(case, ignore_errors=True)
    case.mkdir(parents=True)
    arguments = KINDS[kind][0](bases, case, random.Random(f"{seed}-{index}"))
    # A NUL cannot be in an argument, and a lone surrogate stands for a byte that is no UTF-8.
    arguments = [os.fsdecode(argument.encode("utf-8", "surrogatepass")) for argument in arguments]
    start = time.monotonic()
    status, memory, in_time = _wait(_fork(arguments, case), start + TIME_LIMIT)
    problems = _problems(case, status)
    if not in_time:
        problems.append(f"more than {TIME_LIMIT:g} s")
    if memory > MEMORY_LIMIT:
        problems.append(f"{memory / 2**30:.1f} GB in memory")
    if not problems:
        shutil.rmtree(case, ignore_errors=True)
    return Outcome(index, kind, arguments, status, time.monotonic() - start, memory, problems)


def _fork(arguments: list[str], case: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        _enter(case)
        from kinema.apps.cli import main

        status = main(arguments)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        _leave(status)


def _enter(case: Path) -> None:
    """The process of a case: its own group, folder and files for what it writes; a watch over what it does."""
    os.setsid()
    os.chdir(case)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
    for descriptor, name in ((1, "stdout.txt"), (2, "stderr.txt")):
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if event.startswith(_EVENTS):
            os.write(2, f"FUZZ EVENT {event} {str(details)[:200]}\n".encode("utf-8", "replace"))

    sys.addaudithook(watch)


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _wait(pid: int, end: float) -> tuple[int, int, bool]:
    """Exit status, most memory in bytes, and whether it ended in time."""
    in_time = True
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG if in_time else 0)
        if found:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, in_time
        if time.monotonic() > end or _memory_now(pid) > MEMORY_LIMIT:
            in_time = time.monotonic() <= end
            os.killpg(pid, signal.SIGKILL)
            if in_time:
                _, status, usage = os.wait4(pid, 0)
                return os.waitstatus_to_exitcode(status), max(usage.ru_maxrss * 1024, MEMORY_LIMIT + 1), True
        time.sleep(0.01)


def _memory_now(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):  # it has just ended, or this system has no such file
        return 0
    return pages * resource.getpagesize()


def _problems(case: Path, status: int) -> list[str]:
    problems = []
    said = (case / "stderr.txt").read_text("utf-8", "replace") if (case / "stderr.txt").exists() else ""
    if status not in (0, 2):
        problems.append(f"exit status {status}")
    if "Traceback (most recent call last)" in said:
        problems.append("a traceback")
    if "FUZZ EVENT" in said:
        problems.append("ran a program or opened a connection")
    if any(case.rglob(MARKER)):
        problems.append("executed what a file contains")
    last = said.rstrip("\n").rsplit("\n", 1)[-1]
    if status == 2 and not last.startswith("kinema: error: "):
        problems.append("an error that is not said in the last line")
    if status == 2 and said.count("kinema: error: ") != 1:
        problems.append("not exactly one error line")
    if any(case.rglob("*.tmp*")) or any(path.name.startswith(".tmp") for path in case.rglob("*")):
        problems.append("a temporary file is left")
    return problems
