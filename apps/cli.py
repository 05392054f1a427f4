"""The command `kinema`: finds the command, reads its arguments, and reports mistakes in one line.

Nothing here imports torch: `kinema --help` and `kinema COMMAND --help` answer at once.
"""

import argparse
import importlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import kinema
from kinema.errors import KinemaError
from kinema.loading import one_line
from kinema.machine import share_cores
from kinema.stopping import raised_signals

COMMANDS = {
    "generate": "kinema.apps.commands.generate",
    "reconstruct": "kinema.apps.commands.reconstruct",
    "train": "kinema.apps.commands.train",
    "tokenizer": "kinema.apps.commands.tokenizer",
    "toybox": "kinema.apps.commands.toybox",
    "attention": "kinema.apps.commands.attention",
    "eval": "kinema.apps.commands.evaluate",
    "weights": "kinema.apps.commands.weights",
    "app": "kinema.apps.commands.app",
    "info": "kinema.apps.commands.info",
}
"""Name of a command -> its module, in the order of the help text."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are `KinemaError`s, so that every mistake is reported in the same way."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse, which takes the value in `--value-range -1,1` for an option, unless it is joined to the flag."""
        words: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            if words and re.fullmatch(r"--[a-z-]+", words[-1]) and re.fullmatch(r"-[0-9.]+(,-?[0-9.]+)+", word):
                words[-1] += f"={word}"
            else:
                words.append(word)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        raise KinemaError(f"{message} (see `{self.prog} --help`)")


def build_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(prog="kinema", description="Video tokenizers and video diffusion.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"kinema {kinema.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, module_name in COMMANDS.items():
        module = importlib.import_module(module_name)
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__, allow_abbrev=False)
        module.add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments after `kinema`; None takes the process's own.

    Returns:
        The exit status, as of `report`.
    """
    share_cores()
    _prepare_streams()
    return report(lambda: _run(argv))


def _prepare_streams() -> None:
    """Output that is closed goes nowhere; where it takes no more than ASCII, the rest is escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(argv: Sequence[str] | None) -> None:
    with raised_signals():  # SIGTERM, too, leaves no temporary file
        try:
            _run_command(argv)
        finally:
            sys.stdout.flush()  # a full disk is an error here, not a message of the interpreter at its end


def _run_command(argv: Sequence[str] | None) -> None:
    arguments = build_parser().parse_args(argv)
    # A trainer keeps a log, on the terminal too.
    with nullcontext() if arguments.command == "train" else _log_as_lines():
        arguments.run(arguments)


def report(work: Callable[[], None]) -> int:
    """Do some work, and name what was wrong with its input in one line on stderr.

    Returns:
        The exit status: 0; 2 after a mistake of the user; 130 after Ctrl-C, or 128 and the number of another
        signal that stopped the work; 141, and nothing said, where the reader of the output is gone (`| head`).
    """
    try:
        work()
    except SystemExit as stop:  # --help, --version, and parsers within a command
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for what the interpreter writes at its end)
        return 141  # 128 and the number of SIGPIPE
    except (KinemaError, OSError) as error:
        sys.stderr.write(f"kinema: error: {one_line(error, longest=2000)}\n")
        return 2
    except KeyboardInterrupt as stop:
        sys.stderr.write("kinema: interrupted\n")
        return getattr(stop, "status", 130)
    return 0


@contextmanager
def _log_as_lines() -> Iterator[None]:
    """Show kinema's own warnings as one line each, and those of other packages not at all."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("kinema: %(levelname)s: %(message)s"))
    logger = logging.getLogger("kinema")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = _show_warning
            yield
    finally:
        logger.removeHandler(handler)


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    if category.__module__.startswith("kinema."):
        sys.stderr.write(f"kinema: warning: {' '.join(str(message).split())}\n")


if __name__ == "__main__":
    sys.exit(main())
