"""Requests to stop: Ctrl-C, SIGTERM, and SIGHUP of a terminal that closes."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end.

    Attributes:
        status: the exit status by convention, 128 and the number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class StopRequest:
    """Whether a signal has asked the training to stop."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self) -> bool:
        """Whether it has."""
        return self.number is not None

    def finish(self) -> None:
        """Raises `Stopped` if it has: what had to be done before is done."""
        if self.number is not None:
            raise Stopped(self.number)


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Within, the first signal is noted, so that the run can save and stop; a second one raises `Stopped`."""
    request = StopRequest()

    def note(number: int, _: FrameType | None) -> None:
        if request():
            raise Stopped(number)
        request.number = number
        logger.info("stopping after this step (signal %d)", number)

    with _handled_by(note):
        yield request


_raised: list[StopRequest] = []
"""Signals of `raised_signals`, the innermost last."""


@contextmanager
def raised_signals() -> Iterator[None]:
    """Within, a signal raises `Stopped`, so that what is half done is put in order.

    Libraries may turn that into an error of their own ("unable to load weights"), which becomes `Stopped` again here,
    or pass over it, see `stop_if_asked`.
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
    """Raises `Stopped` where a signal did so before, and a library kept it to itself."""
    for request in _raised:
        request.finish()


@contextmanager
def delayed_signals() -> Iterator[None]:
    """Within, signals wait until the end: for imports, which an exception can leave in a strange state."""
    request = StopRequest()

    def note(number: int, _: FrameType | None) -> None:
        request.number = number

    with _handled_by(note):
        yield
    request.finish()


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within, the signals have a handler, but for those that the program was told to ignore, as by `nohup`.

    Only the main thread can do this; in others nothing changes.
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
