"""The training loop of every model in kinema."""

import json
import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Generic

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from tqdm import tqdm

from kinema.errors import KinemaError
from kinema.loading import one_line
from kinema.memory import out_of_memory_in_one_line
from kinema.stopping import stop_signals
from kinema.training.checkpoint import TrainingState, load_checkpoint, step_of
from kinema.training.clock import Clock, progress, time_left
from kinema.training.compilation import compile_blocks, set_checkpointing
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
from kinema.training.sharding import shard
from kinema.training.skipped import SkippedSteps
from kinema.training.task import Batch, Discriminator, Task

logger = logging.getLogger(__name__)

_LONGEST_WAIT = timedelta(days=7)
"""How long other processes wait while the first one evaluates or saves. Steps keep the process group's time-out."""

_EVALUATION_REMEDIES = "fewer `validation_clips` or smaller clips make it fit"


def train(task: Task[Batch], run: Run[Any], accelerator: Accelerator) -> Path:
    """Train until `num_steps` or `max_minutes`; `config.resume` continues a stopped run.

    Writes `config.json`, `logs/` (TensorBoard), `samples/` and `checkpoints/` to the run's folder, and finally
    `model/`: the averaged weights of the best evaluation, or the last ones if evaluations give no score.

    Returns:
        The folder `model/`.

    Raises:
        KinemaError: the checkpoint belongs to another model or other data.
        Stopped: a signal stopped the run, after its checkpoint and `model/` were written.
    """
    trainer = Trainer(task, run, accelerator)
    with stop_signals() as stop_asked:
        trainer.run(stop_asked)
    trainer.export(run.config.run_dir / "model")
    accelerator.end_training()
    stop_asked.finish()
    return run.config.run_dir / "model"


@dataclass(frozen=True)
class Due:
    """What to do before the next step."""

    evaluate: bool
    sample: bool
    save: bool
    stop: bool

    @property
    def anything(self) -> bool:
        """Whether to evaluate, sample or save."""
        return self.evaluate or self.sample or self.save


class Trainer(Generic[Batch]):
    """Sets up a run, trains, evaluates and saves between steps, and exports the result.

    Args:
        task: model, data and loss.
        run: folder and settings.
        accelerator: devices and processes.

    Raises:
        KinemaError: the checkpoint belongs to another model or other data.
    """

    def __init__(self, task: Task[Batch], run: Run[Any], accelerator: Accelerator) -> None:
        self.task, self.accelerator = task, accelerator
        self.config: TrainingConfig = run.config
        self.checkpoints, self.start = run.checkpoints, run.start
        self.device, self.is_main = accelerator.device, accelerator.is_main_process
        self.data_rank = accelerator.process_index // task.processes_per_batch
        self.clips_factor = accelerator.num_processes // task.processes_per_batch
        self.checkpoints.score_name = task.score_name
        self._patient: Any = None
        if accelerator.num_processes > 1:
            self._patient = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)

        if self.start is None:
            task.prepare()
        self._make_learners()
        self.state = self._first_state()
        self.first_step = self.state.step
        self.meter, self.clock = Meter(), Clock(accelerator, self.config, self.state)
        self.skipped = SkippedSteps(self.state, self.config)

    def _make_learners(self) -> None:
        """Set up model, EMA, optimizer and discriminator."""
        task, config, accelerator = self.task, self.config, self.accelerator
        splits = task.splits_weights and accelerator.num_processes > 1
        model = task.model if splits else task.model.to(self.device)  # sharding moves its own part
        self.ema = EMA(model, config.ema_decay)  # copied before accelerate wraps `forward`
        set_checkpointing(model, config)
        compile_blocks(model, config.compile, self.device)
        if splits:
            mesh = init_device_mesh(self.device.type, (accelerator.num_processes,))
            self.ema.shard(mesh, keep_whole=self.is_main)
            shard(model, mesh)
        optimizer = make_optimizer(model, config)
        self.learner = Learner(
            model, optimizer, config.learning_rate, config.max_grad_norm, accelerator, prepares_model=not splits
        )
        self.discriminator = start_discriminator(task.discriminator, config, accelerator)
        self._trained = (self.learner.unwrapped_model, self.ema, self.learner.optimizer)
        self._adversary = None
        if self.discriminator is not None:
            self._adversary = self.discriminator.unwrapped_model, self.discriminator.optimizer

    def _first_state(self) -> TrainingState:
        """Load the checkpoint, if any, and prepare the run's folder."""
        task, config, start = self.task, self.config, self.start
        state = TrainingState(score_name=task.score_name)
        if start is not None:
            check_model(task.model, start)
            state = load_checkpoint(start.path, *self._trained, self._adversary)
        self._wait()  # nothing is written until the checkpoint has loaded in all processes
        if self.is_main:
            if start is not None:
                log_changes(config, start)
                self.checkpoints.set_aside_damaged()
            save_config(config, config.run_dir / "config.json")
            task.save_data_report(config.run_dir / "data_report.json")
            size = sum(p.numel() for p in self.learner.unwrapped_model.parameters())
            where = f"{self.device} in {self.accelerator.num_processes} process(es)"
            logger.info("%s: %.2f M weights on %s, from step %d", config.preset, size / 1e6, where, state.step)
        if state.score_name != task.score_name:
            logger.info("the score was %s and is %s: earlier ones do not count", state.score_name, task.score_name)
            state.best_score, state.score_name = None, task.score_name
        self.accelerator.init_trackers("logs")
        return state

    def run(self, stop_asked: Any) -> None:
        """Train to the end.

        Args:
            stop_asked: returns whether a signal has asked the run to stop.
        """
        config, state = self.config, self.state
        self.learner.model.train()
        pin = self.device.type == "cuda"
        with (
            Prefetcher(self.task.batch, state.step, config.num_steps, config.num_workers, pin=pin) as batches,
            tqdm(total=config.num_steps, initial=state.step, disable=not show_bar(self.accelerator)) as bar,
        ):
            while True:
                due = self._due(stop_asked())
                if due.anything:
                    with self.meter.catching_up():
                        self.skipped.finish()
                    self._look(due)
                if due.stop:
                    break
                self._step(batches)
                bar.update()
                if state.step % config.log_every == 0:
                    self._log(bar)

    def _due(self, stop_asked: bool) -> Due:
        config, step = self.config, self.state.step
        ended, stopped = self.clock.look(stop_asked)

        def every(interval: int) -> bool:
            return ended or (step > self.first_step and step % interval == 0)

        # On a requested stop, only save a checkpoint, so that a resumed run equals an uninterrupted one.
        stop = ended or stopped
        return Due(every(config.eval_every), every(config.sample_every), every(config.save_every) or stop, stop)

    def _look(self, due: Due) -> None:
        """Evaluate, sample and save in the first process, while the others wait."""
        config, state = self.config, self.state
        improved = False
        if due.evaluate or due.sample:
            with self._whole_average() as model, out_of_memory_in_one_line("the averaged model", _EVALUATION_REMEDIES):
                if model is not None and due.evaluate:
                    improved = self._evaluate(model)
                if model is not None and due.sample:
                    self._sample(model)
        if self._any(due.save or improved):
            # Before the first step, the weights were trained with the settings of the checkpoint they came from.
            unchanged = self.start is not None and state.step == self.first_step
            settings = self.start.config if self.start is not None and unchanged else to_dict(config)
            more = partial(write_more, self.task, settings)
            self.checkpoints.save(*self._trained, state, self._adversary, more, writes=self.is_main)
        state.score = None  # only checkpoints of evaluated weights have a score
        self._wait()

    @contextmanager
    def _whole_average(self) -> Iterator[Any]:
        """Yield the averaged model in the first process, None in the others."""
        with self.ema.whole() as model:
            yield model if self.is_main else None

    def _evaluate(self, model: Any) -> bool:
        """Evaluate the averaged model; return whether it is the best so far."""
        state = self.state
        state.metrics = self.task.evaluate(model)
        state.score = state.metrics.get("score")
        improved = is_better(state.score, state.best_score)
        state.best_score = state.score if improved else state.best_score
        self.accelerator.log({f"eval/{k}": v for k, v in state.metrics.items()}, step=state.step)
        if state.metrics:
            logger.info("step %d evaluation: %s", state.step, format_numbers(state.metrics))
        return improved

    def _sample(self, model: Any) -> None:
        samples = self.task.sample(model)
        if samples is not None:
            writer = self.accelerator.get_tracker("tensorboard", unwrap=True)
            save_samples(samples, self.config.run_dir / "samples", self.state.step, writer)

    def _step(self, batches: Prefetcher[Batch]) -> None:
        """Take one step of model and discriminator."""
        task, config, state = self.task, self.config, self.state
        self.meter.start()
        batch = to_device(batches.next(), self.device)
        self.meter.got_batch()
        factor = self._learning_rate_factor()
        torch.manual_seed(derived_seed(config.seed, self.data_rank, state.step, "model"))
        generator = step_generator(config.seed, self.data_rank, state.step, "loss", self.device)
        task.start_step(state.step)
        discriminator_taken = None
        with out_of_memory_in_one_line(f"`batch_size` (={config.batch_size})", task.remedies(config)):
            result = self.learner.step(partial(task.loss, batch=batch, generator=generator), factor)
            self.ema.update(self.learner.unwrapped_model, result.taken)
            self.meter.add(result.terms, result.taken)
            if self.discriminator is not None and task.trains_discriminator():
                loss = partial(task.discriminator_loss, outputs=result.outputs)
                terms, discriminator_taken, _ = self.discriminator.step(loss, factor, allowed=result.taken)
                self.meter.add(terms, discriminator_taken)
        state.step += 1
        self.clock.advance()
        self.skipped.add(state.step, result.taken, discriminator_taken)
        self.meter.end(task.num_clips(batch) * self.clips_factor)

    def _learning_rate_factor(self) -> float:
        config = self.config
        return learning_rate_factor(
            self.state.step,
            progress(self.state, config),
            warmup_steps=config.warmup_steps,
            schedule=config.schedule,
            decay_fraction=config.decay_fraction,
        )

    def _log(self, bar: Any) -> None:
        """Log the means since the last call to TensorBoard, and to the progress bar or the log."""
        config, state = self.config, self.state
        with self.meter.catching_up():
            self.skipped.finish()
        rate = self.learner.optimizer.param_groups[0]["lr"]
        numbers = self.meter.means() | self.task.numbers() | {"learning_rate": rate}
        numbers |= {"skipped_steps": state.skipped_steps} if state.skipped_steps else {}
        self.accelerator.log({f"train/{k}": v for k, v in numbers.items()}, step=state.step)
        bar.set_postfix_str(f"loss {numbers.get('loss', math.nan):.4f}, {numbers['clips_per_second']:.1f} clips/s")
        if self.is_main and bar.disable:
            left = time_left(state, config, numbers["seconds_per_step"])
            logger.info("step %d/%d, %s, %s", state.step, config.num_steps, format_numbers(numbers), left)

    def export(self, model_dir: Path) -> None:
        """Write `model/`: the best or last averaged weights, with the settings they were trained with.

        Raises:
            KinemaError: the folder cannot be written.
        """
        with self._whole_average() as model:
            if model is not None:
                export(self.task, self.config, self._best_weights(model), model, model_dir)

    def _best_weights(self, model: Any) -> Path:
        """Load the best weights, if any were scored, into the model; return the checkpoint that it then equals."""
        path = self.checkpoints.best_intact()
        if path is None:
            return self.checkpoints.all()[-1]  # just saved
        model.load_state_dict(load_file(path / "ema.safetensors"))
        return path

    def _any(self, flag: bool) -> bool:
        """Whether a flag is set in any process; waits for all of them."""
        if self._patient is None:
            return flag
        value = torch.tensor(float(flag))
        dist.all_reduce(value, group=self._patient)
        return bool(value > 0)

    def _wait(self) -> None:
        """Wait for all processes."""
        if self._patient is not None:
            dist.barrier(self._patient)


def write_more(task: Task[Any], settings: dict[str, Any], folder: Path) -> None:
    """Write what the weights depend on into a checkpoint."""
    write_record(folder, settings, model_config(task.model), task.depends_on(), task.data_contents())
    task.save_vocabulary(folder / VOCABULARY)


def export(task: Task[Any], config: TrainingConfig, checkpoint: Path, model: Any, model_dir: Path) -> None:
    """Write the folder `model/` with the settings of a checkpoint.

    Raises:
        KinemaError: the folder cannot be written.
    """
    settings = read_record(checkpoint).config or to_dict(config)

    def write(folder: Path) -> None:
        task.export(model, folder)
        (folder / "training_config.json").write_text(json.dumps(settings, indent=2) + "\n")

    try:
        write_folder(model_dir, write)
    except (OSError, SafetensorError) as error:
        raise KinemaError(
            f"`output` (={config.run_dir}) must take the model, and does not: {one_line(error)}; `--resume` writes it"
            " once there is room"
        ) from error
    logger.info("%s written: the weights of step %d", model_dir, step_of(checkpoint))


def is_better(score: float | None, best: float | None) -> bool:
    """Whether a finite score (higher is better) is the best so far."""
    return score is not None and math.isfinite(score) and (best is None or score > best)


def start_discriminator(
    discriminator: Discriminator | None, config: TrainingConfig, accelerator: Accelerator
) -> Learner | None:
    """Return the learner of a task's discriminator, if it has one."""
    if discriminator is None:
        return None
    module, rate = discriminator.module.to(accelerator.device).train(), discriminator.learning_rate
    optimizer = adamw(module.parameters(), rate, discriminator.betas)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    return Learner(module, optimizer, rate, config.max_grad_norm, accelerator, prefix="discriminator_")


def show_bar(accelerator: Accelerator) -> bool:
    """Whether to show a progress bar: only on a terminal."""
    return accelerator.is_main_process and sys.stderr.isatty()


def format_numbers(numbers: dict[str, float]) -> str:
    """Format numbers for the log."""
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
