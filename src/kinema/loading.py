"""Helpers for loading models: one-line error messages, and silencing of diffusers."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL, LogRecord, getLogger

from kinema.files import displayed
from kinema.stopping import stop_if_asked


def one_line(error: BaseException, longest: int = 300) -> str:
    """Return the message of an error as one line of limited length, or its type if it has no message.

    Control characters, which file names and messages may contain, are escaped: a terminal would interpret them.
    """
    text = displayed(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= longest else text[: longest - 3] + "..."


def quiet_casting() -> None:
    """Suppress the diffusers warning about an empty list of float32 modules, issued whenever a model is cast."""
    getLogger("diffusers.models.modeling_utils").addFilter(_lists_modules)


def _lists_modules(record: LogRecord) -> bool:
    return "should be kept in float32: []" not in record.getMessage()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Context manager that silences diffusers' log, which repeats raised errors, and hides bars off terminals."""
    from diffusers.utils import logging

    verbosity, hide_bars = logging.get_verbosity(), logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    logging.set_verbosity(CRITICAL)
    if hide_bars:
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # diffusers passes this obsolete option to the hub client.
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if hide_bars:
            logging.enable_progress_bar()
        stop_if_asked()  # safetensors and torch sometimes swallow an interruption
