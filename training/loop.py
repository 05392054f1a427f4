"""The training loop of every model in kinema, and what it asks of one."""

import json
import logging
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import ProjectConfiguration
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm import tqdm

from kinema.errors import KinemaError
from kinema.loading import one_line
from kinema.machine import computes_bf16
from kinema.memory import out_of_memory_in_one_line
from kinema.stopping import stop_signals
from kinema.training.checkpoint import Checkpoints, TrainingState, load_checkpoint, step_of
from kinema.training.compilation import compile_blocks, save_memory
from kinema.training.config import TrainingConfig, save_config, to_dict
from kinema.training.ema import EMA
from kinema.training.folders import write_folder
from kinema.training.meter import Meter
from kinema.training.optimization import Learner, adamw, make_optimizer
from kinema.training.prefetch import Prefetcher, to_device
from kinema.training.record import (
    VOCABULARY,
    check_model,
    log_changes,
    model_config,
    read_record,
    write_record,
)
from kinema.training.run import Run
from kinema.training.samples import save_samples
from kinema.training.schedule import learning_rate_factor
from kinema.training.seeds import derived_seed, step_generator
from kinema.training.skipped import SkippedSteps
from kinema.training.task import Batch, Companion, Task

logger = logging.getLogger(__name__)


def train(task: Task[Batch], run: Run[Any], accelerator: Accelerator) -> Path:
    """Trains until `num_steps` or `max_minutes`; a run that was stopped goes on with `config.resume`.

    The run's folder gets `config.json`, `logs/` (TensorBoard), `samples/`, `checkpoints/`, and at the end `model/` with
    the averaged weights: those of the best evaluation, or the last where evaluations give no score.

    Returns:
        The folder `model/`.

    Raises:
        KinemaError: the checkpoint is not of this model, or the data is other data.
        Stopped: a signal asked for it; the checkpoint and `model/` are written.
    """
    config: TrainingConfig = run.config
    checkpoints, device, rank = run.checkpoints, accelerator.device, accelerator.process_index
    checkpoints.score_name = task.score_name
    if run.start is None:
        task.prepare()
    optimizer = make_optimizer(task.model, config)
    # The average comes first: a prepared model's `forward` is another one.
    ema = EMA(task.model.to(device), config.ema_decay)
    save_memory(task.model, config)
    compile_blocks(task.model, config.compile, device)
    learner = Learner(task.model, optimizer, config.learning_rate, config.max_grad_norm, accelerator)
    companion = start_companion(task.companion, config, accelerator)
    trained = (learner.plain, ema, learner.optimizer)
    beside = None if companion is None else (companion.plain, companion.optimizer)
    state = TrainingState(score_name=task.score_name)
    if run.start is not None:
        check_model(task.model, run.start)
        state = load_checkpoint(run.start.path, *trained, beside)
    accelerator.wait_for_everyone()  # the checkpoint fits, in all processes
    if accelerator.is_main_process:
        if run.start is not None:
            log_changes(config, run.start)
            checkpoints.set_aside_damaged()
        save_config(config, config.run_dir / "config.json")
        task.save_data_report(config.run_dir / "data_report.json")
    if state.score_name != task.score_name:
        logger.info("the score was %s and is %s: earlier ones do not count", state.score_name, task.score_name)
        state.best_score, state.score_name = None, task.score_name
    if accelerator.is_main_process:
        size = sum(p.numel() for p in learner.plain.parameters())
        where = f"{device} in {accelerator.num_processes} process(es)"
        logger.info("%s: %.2f M weights on %s, from step %d", config.preset, size / 1e6, where, state.step)
    accelerator.init_trackers("logs")

    learner.model.train()
    meter, clock = Meter(), Clock(accelerator, config, state)
    skipped = SkippedSteps(state, config)
    first_step, intervals = state.step, (config.eval_every, config.sample_every, config.save_every)
    pin = device.type == "cuda"
    with (
        Prefetcher(task.batch, state.step, config.num_steps, config.num_workers, pin=pin) as batches,
        stop_signals() as stop_asked,
        tqdm(total=config.num_steps, initial=state.step, disable=not show_bar(accelerator)) as bar,
    ):
        while True:
            # What is due after a number of steps: evaluate, show, save, stop.
            ended, stopped = clock.look(stop_asked())
            done = ended or stopped
            due = [ended or (state.step > first_step and state.step % every == 0) for every in intervals]
            # On a requested stop, only save a checkpoint, so that a resumed run equals an uninterrupted one.
            due[2] |= done
            if any(due):
                skipped.finish()
            improved = False
            if due[0] and accelerator.is_main_process:
                state.metrics = task.evaluate(ema.model)
                state.score = state.metrics.get("score")
                improved = is_better(state.score, state.best_score)
                state.best_score = state.score if improved else state.best_score
                accelerator.log({f"eval/{k}": v for k, v in state.metrics.items()}, step=state.step)
                if state.metrics:
                    logger.info("step %d evaluation: %s", state.step, format_numbers(state.metrics))
            if due[1] and accelerator.is_main_process:
                samples = task.sample(ema.model)
                if samples is not None:
                    writer = accelerator.get_tracker("tensorboard", unwrap=True)
                    save_samples(samples, config.run_dir / "samples", state.step, writer)
            if (due[2] or improved) and accelerator.is_main_process:
                # A checkpoint whose weights were not trained with the new settings keeps those that it has.
                settings = run.start.config if run.start and state.step == first_step else to_dict(config)
                checkpoints.save(*trained, state, beside, partial(write_more, task, settings))
            state.score = None  # it belongs to the weights of this step alone
            if any(due):
                accelerator.wait_for_everyone()
            if done:
                break

            # One step.
            meter.start()
            batch = to_device(batches.next(), device)
            meter.got_batch()
            factor = learning_rate_factor(
                state.step,
                progress(state, config),
                warmup_steps=config.warmup_steps,
                schedule=config.schedule,
                decay_fraction=config.decay_fraction,
            )
            torch.manual_seed(derived_seed(config.seed, rank, state.step, "model"))
            generator = step_generator(config.seed, rank, state.step, "loss", device)
            task.start_step(state.step)
            companion_taken = None
            with out_of_memory_in_one_line(f"`batch_size` (={config.batch_size})", task.remedies(config)):
                terms, taken = learner.step(partial(task.loss, batch=batch, generator=generator), factor)
                ema.update(learner.plain, taken)
                meter.add(terms, taken)
                if companion is not None and task.companion_trains():
                    terms, companion_taken = companion.step(task.companion_loss, factor, allowed=taken)
                    meter.add(terms, companion_taken)
            state.step += 1
            clock.advance()
            skipped.add(state.step, taken, companion_taken)
            meter.end(task.num_clips(batch) * accelerator.num_processes)

            bar.update()
            if state.step % config.log_every == 0:
                skipped.finish()
                numbers = meter.means() | task.numbers() | {"learning_rate": config.learning_rate * factor}
                numbers |= {"skipped_steps": state.skipped_steps} if state.skipped_steps else {}
                accelerator.log({f"train/{k}": v for k, v in numbers.items()}, step=state.step)
                bar.set_postfix_str(
                    f"loss {numbers.get('loss', math.nan):.4f}, {numbers['clips_per_second']:.1f} clips/s"
                )
                if accelerator.is_main_process and bar.disable:
                    left = time_left(state, config, numbers["seconds_per_step"])
                    logger.info("step %d/%d, %s, %s", state.step, config.num_steps, format_numbers(numbers), left)

    model_dir = config.run_dir / "model"
    if accelerator.is_main_process:
        export(task, config, checkpoints, ema, model_dir)
    accelerator.end_training()
    stop_asked.finish()
    return model_dir


def write_more(task: Task[Any], settings: dict[str, Any], folder: Path) -> None:
    """Writes what the weights depend on into a checkpoint."""
    write_record(folder, settings, model_config(task.model), task.depends_on(), task.data_contents())
    task.save_vocabulary(folder / VOCABULARY)


def export(task: Task[Any], config: TrainingConfig, checkpoints: Checkpoints, ema: EMA, model_dir: Path) -> None:
    """Writes `model/`: the weights of the best evaluation, or the last, with the settings they were trained with."""
    path = checkpoints.best_intact()
    if path is not None:
        ema.model.load_state_dict(load_file(path / "ema.safetensors"))
    else:
        path = checkpoints.all()[-1]  # just written, of the weights as they are
    settings = read_record(path).config or to_dict(config)

    def write(folder: Path) -> None:
        task.export(ema.model, folder)
        (folder / "training_config.json").write_text(json.dumps(settings, indent=2) + "\n")

    try:
        write_folder(model_dir, write)
    except (OSError, SafetensorError) as error:
        raise KinemaError(
            f"`output` (={config.run_dir}) must take the model, and does not: {one_line(error)}; `--resume` writes it"
            " once there is room"
        ) from error
    logger.info("%s written: the weights of step %d", model_dir, step_of(path))


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """The accelerator of a run: its devices and processes come from `accelerate launch`."""
    device = PartialState(cpu=config.cpu).device
    assert device is not None
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = config.tf32
    return Accelerator(
        cpu=config.cpu,
        mixed_precision=autocast_type(config.mixed_precision, device),
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(config.run_dir)),
    )


def is_better(score: float | None, best: float | None) -> bool:
    """Whether a score (higher is better) is the best so far; one that is no finite number never is."""
    return score is not None and math.isfinite(score) and (best is None or score > best)


def autocast_type(setting: str, device: torch.device) -> str:
    """What `mixed_precision` means on a device: bf16 or no.

    Raises:
        KinemaError: bf16 is asked for, and the device does not compute in it.
    """
    if setting == "auto":
        return "bf16" if computes_bf16(device) else "no"
    if setting == "bf16" and not computes_bf16(device):
        # Emulation is up to 80 times slower, and oneDNN's gives wrong gradients of convolutions (docs/decisions.md).
        raise KinemaError(f"`mixed_precision` (=bf16) must be auto or no: this {device.type} has no bfloat16")
    return setting


def start_companion(companion: Companion | None, config: TrainingConfig, accelerator: Accelerator) -> Learner | None:
    """The task's companion, ready to train."""
    if companion is None:
        return None
    module = companion.module.to(accelerator.device).train()
    optimizer = adamw(module.parameters(), companion.learning_rate, companion.betas)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    return Learner(
        module, optimizer, companion.learning_rate, config.max_grad_norm, accelerator, prefix=f"{companion.name}_"
    )


class Clock:
    """The time that a training has taken, and when it ends.

    In several processes, the time of the first one counts for all: learning rates that follow it are the same
    everywhere. They agree on it every few steps, so that the other steps need no word between processes.

    Args:
        accelerator: the processes.
        config: has the limits.
        state: gets the time.
    """

    _AGREE_EVERY = 8

    def __init__(self, accelerator: Accelerator, config: TrainingConfig, state: TrainingState) -> None:
        self._accelerator, self._config, self._state = accelerator, config, state
        self._began, self._before = time.monotonic(), state.elapsed
        self._stopped = False

    def look(self, stop_asked: bool) -> tuple[bool, bool]:
        """Whether the training has ended, and whether it is to stop before that; alike in all processes.

        Args:
            stop_asked: whether this process was asked to stop.
        """
        config, state = self._config, self._state
        if self._accelerator.num_processes == 1:
            self._stopped = stop_asked
        elif state.step % self._AGREE_EVERY == 0 or state.step >= config.num_steps:
            own = [float(stop_asked), self._now() if self._accelerator.is_main_process else 0.0]
            told: Any = self._accelerator.reduce(
                torch.tensor(own, device=self._accelerator.device, dtype=torch.float64), "sum"
            )
            stops, state.elapsed = told.tolist()
            self._stopped = stops > 0
        out_of_time = config.max_minutes is not None and state.elapsed >= 60 * config.max_minutes
        return state.step >= config.num_steps or out_of_time, self._stopped

    def advance(self) -> None:
        """A step was taken."""
        if self._accelerator.num_processes == 1:
            self._state.elapsed = self._now()

    def _now(self) -> float:
        return self._before + time.monotonic() - self._began


def progress(state: TrainingState, config: TrainingConfig) -> float:
    """Part of the training done, in [0, 1], as the schedule counts it."""
    if config.schedule_on == "minutes":
        assert config.max_minutes is not None
        return min(1.0, state.elapsed / (60 * config.max_minutes))
    return min(1.0, state.step / config.num_steps)


def show_bar(accelerator: Accelerator) -> bool:
    """Progress bars are for terminals."""
    return accelerator.is_main_process and sys.stderr.isatty()


def time_left(state: TrainingState, config: TrainingConfig, seconds_per_step: float) -> str:
    """Time until the end of the run, as text."""
    seconds = (config.num_steps - state.step) * seconds_per_step
    if config.max_minutes is not None:
        seconds = min(seconds, 60 * config.max_minutes - state.elapsed)
    minutes = max(0, round(seconds / 60))
    return f"{minutes // 60}:{minutes % 60:02d} h left"


def format_numbers(numbers: dict[str, float]) -> str:
    """Numbers as text for a line of the log."""
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
