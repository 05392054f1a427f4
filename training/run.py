"""A run's folder while a training uses it: the lock, the log, the checkpoint from which it goes on.

RUN/config.json   settings of the last start         RUN/checkpoints/   see `checkpoint`
RUN/train.log     the log                            RUN/samples/       clips that show the progress
RUN/logs/         TensorBoard                        RUN/cache/         decoded clips and latents
RUN/model/        the result                         RUN/train.lock     see `run_lock`
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from kinema.errors import KinemaError
from kinema.loading import one_line
from kinema.training.checkpoint import Checkpoints, read_state
from kinema.training.config import TrainingConfig
from kinema.training.folders import recover_folders, remove_leftovers
from kinema.training.latents_cache import remove_stale
from kinema.training.record import Record, continue_settings, read_record
from kinema.training.run_lock import locked_run

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=TrainingConfig)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Run(Generic[Config]):
    """A run that a training uses.

    Attributes:
        config: the settings, with those that the run gives.
        checkpoints: of the run.
        start: what the checkpoint says from which the training goes on; None for a new training.
    """

    config: Config
    checkpoints: Checkpoints
    start: Record | None


@contextmanager
def open_run(config: Config, accelerator: Accelerator) -> Iterator[Run[Config]]:
    """The run of a training. Nothing that an earlier one left is changed, but for what a killed process left half done.

    The first process alone holds the lock and decides which checkpoint is used.

    Raises:
        KinemaError: another training uses the folder; it holds a training and `resume` is not set; all its checkpoints
            are damaged; a setting differs that must stay.
    """
    run_dir, is_main = config.run_dir, accelerator.is_main_process
    checkpoints = Checkpoints(run_dir / "checkpoints", config.keep_last)
    with ExitStack() as stack:
        if is_main:
            stack.enter_context(_logged_to(logging.StreamHandler()))
        first_process(accelerator, lambda: stack.enter_context(locked_run(run_dir)) and None)
        if is_main:
            stack.enter_context(_logged_to(_LogFile(run_dir / "train.log")))
        path = first_process(accelerator, lambda: _choose_checkpoint(config, checkpoints))
        start = None if path is None else read_record(Path(path))
        if start is not None:
            config = _check_start(config, start)
        yield Run(config, checkpoints, start)


def first_process(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """What the first process makes of some work, in all processes; what text can hold, so that it can be sent.

    Raises:
        KinemaError: the work raised it, in all processes.
    """
    if accelerator.num_processes == 1:
        return work()
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except (KinemaError, OSError) as error:
            outcome[1] = one_line(error, 2000)
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise KinemaError(outcome[1])
    return outcome[0]


def _choose_checkpoint(config: TrainingConfig, checkpoints: Checkpoints) -> str | None:
    """The newest whole checkpoint, after tidying up what a killed process left."""
    run_dir = config.run_dir
    recover_folders(run_dir)
    remove_leftovers(run_dir, "model")
    checkpoints.clean_up()
    for folder, pattern in ((run_dir, ".kinema-*.json"), (run_dir / "samples", ".kinema-*")):
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)
    # Other runs may be writing to a cache that is shared.
    remove_stale(config.run_cache_dir, 0.0 if config.cache_dir is None else 3600.0)
    if checkpoints.all() and not config.resume:
        raise KinemaError(f"`output` (={run_dir}) must be a new folder, or `--resume` be given: it holds a training")
    path = checkpoints.newest()
    return None if path is None else str(path)


def _check_start(config: Config, start: Record) -> Config:
    """The settings with which the run goes on, see `continue_settings`.

    Raises:
        KinemaError: a setting differs that must stay, or `num_steps` has been passed.
    """
    config = continue_settings(config, start)
    step = read_state(start.path).step
    if config.num_steps < step:
        raise KinemaError(
            f"`num_steps` (={config.num_steps}) must be at least {step}, the step that the run in `output`"
            f" (={config.run_dir}) has reached"
        )
    return config


class _LogFile(logging.FileHandler):
    """A log file that does not stop a training: what cannot be written, on a full disk, is left out."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=True)

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def _logged_to(handler: logging.Handler) -> Iterator[None]:
    """Within, kinema's log goes there, too."""
    root = logging.getLogger("kinema")
    level = root.level
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        with suppress(OSError):
            handler.close()
