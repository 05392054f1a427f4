"""Handling of requests to stop: Ctrl-C, SIGTERM, and SIGHUP when a terminal closes."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))


class Stopped(KeyboardInterrupt):
    """A signal requested the program to end.

    Attributes:
        status: the conventional exit status, 128 plus the signal number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class StopRequest:
    """A pending request to stop, set by a signal handler."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self) -> bool:
        """Whether a stop was requested."""
        return self.number is not None

    def finish(self) -> None:
        """Raise `Stopped` if a stop was requested; call this after saving."""
        if self.number is not None:
            raise Stopped(self.number)


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Context manager in which the first signal sets the request, so that a run can save; a second raises `Stopped`."""
    request = StopRequest()

    def note(number: int, _: FrameType | None) -> None:
        if request():
            raise Stopped(number)
        request.number = number
        logger.info("stopping after this step (signal %d)", number)

    with _handled_by(note):
        yield request


_raised: list[StopRequest] = []
"""Requests of active `raised_signals` contexts, innermost last."""


@contextmanager
def raised_signals() -> Iterator[None]:
    """Context manager in which a signal raises `Stopped`, so that cleanup code runs.

    Libraries may convert `Stopped` to another error ("unable to load weights"), which is converted back here, or
    swallow it, see `stop_if_asked`.
    """
    request = StopRequest()

    def stop(number: int, _: FrameType | None) -> None:
        request.number = number
        raise Stopped(number)

    _raised.append(request)
    try:
        with _handled_by(stop):
            yield
    except Exception:
        request.finish()
        raise
    finally:
        _raised.remove(request)


def stop_if_asked() -> None:
    """Raise `Stopped` again if a library swallowed it after a signal."""
    for request in _raised:
        request.finish()


@contextmanager
def delayed_signals() -> Iterator[None]:
    """Context manager that delays signals to its end: for imports, which an exception can leave half done."""
    request = StopRequest()

    def note(number: int, _: FrameType | None) -> None:
        request.number = number

    with _handled_by(note):
        yield
    request.finish()


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Context manager that sets a signal handler, except for ignored signals, as under `nohup`.

    Only the main thread can set handlers; in other threads this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
