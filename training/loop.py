"""The training loop of every model in kinema, and what it asks of one."""

import json
import logging
import math
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import ProjectConfiguration
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from kinema.errors import KinemaError
from kinema.machine import computes_bf16
from kinema.training.checkpoint import Checkpoints, TrainingState, write_folder
from kinema.training.config import TrainingConfig, save_config, to_dict
from kinema.training.ema import EMA
from kinema.training.muon import Muon
from kinema.training.samples import Samples, save_samples
from kinema.training.schedule import learning_rate_factor
from kinema.training.seeds import derived_seed, step_generator

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch")


class Task(ABC, Generic[Batch]):
    """What is trained: a model, its data and its loss."""

    model: nn.Module

    def prepare(self) -> None:
        """Sets up the model's first weights; not called when a training is resumed."""

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """The data of a step, on the CPU: a pure function, called from several threads."""

    @abstractmethod
    def num_clips(self, batch: Batch) -> int:
        """Clips in a batch."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and terms to log."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Numbers to log; `score`, if there, says which weights are best (higher is better)."""

    @abstractmethod
    def sample(self, model: nn.Module) -> Samples | None:
        """Clips that show what the model does now."""

    @abstractmethod
    def export(self, model: nn.Module, folder: Path) -> None:
        """Writes what users load."""


def train(task: Task[Batch], config: TrainingConfig, accelerator: Accelerator) -> Path:
    """Trains until `num_steps` or `max_minutes`; a run that was stopped goes on with `config.resume`.

    The run's folder gets `config.json`, `train.log`, `logs/` (TensorBoard), `samples/`, `checkpoints/`, and at the
    end `model/` with the averaged weights: those of the best evaluation, or the last where evaluations give no score.

    Returns:
        The folder `model/`.

    Raises:
        KinemaError: the run's folder holds a training and `resume` is not set.
    """
    run_dir, device, rank = config.run_dir, accelerator.device, accelerator.process_index
    checkpoints = Checkpoints(run_dir / "checkpoints", config.keep_last)
    if checkpoints.all() and not config.resume:
        raise KinemaError(f"`output` (={run_dir}) must be a new folder, or `--resume` be given: it holds a training")
    if accelerator.is_main_process:
        run_dir.mkdir(parents=True, exist_ok=True)
        log_changes(config, run_dir / "config.json")
        save_config(config, run_dir / "config.json")
    accelerator.wait_for_everyone()

    if not checkpoints.all():
        task.prepare()
    optimizer = make_optimizer(task.model, config, device)
    # The average comes first: a prepared model's `forward` is another one.
    ema = EMA(task.model.to(device), config.ema_decay)
    model, optimizer = accelerator.prepare(task.model, optimizer)
    plain_model, plain_optimizer = accelerator.unwrap_model(model), optimizer.optimizer
    state = checkpoints.load_last(plain_model, ema, plain_optimizer) or TrainingState()
    if accelerator.is_main_process:
        size = sum(p.numel() for p in plain_model.parameters())
        where = f"{device} in {accelerator.num_processes} process(es)"
        logger.info("%s: %.2f M weights on %s, from step %d", config.preset, size / 1e6, where, state.step)
    accelerator.init_trackers("logs")

    model.train()
    meter, clock, before = Meter(), time.monotonic(), state.elapsed
    first_step, intervals = state.step, (config.eval_every, config.sample_every, config.save_every)
    with (
        Prefetcher(task.batch, state.step, config.num_steps, config.num_workers) as batches,
        stop_signals() as stop_asked,
        tqdm(total=config.num_steps, initial=state.step, disable=not show_bar(accelerator)) as bar,
    ):
        while True:
            # What is due after a number of steps: evaluate, show, save, stop.
            finished = state.step >= config.num_steps
            out_of_time = config.max_minutes is not None and state.elapsed >= 60 * config.max_minutes
            done = any_process(accelerator, finished or out_of_time or stop_asked())
            due = [done or (state.step > first_step and state.step % every == 0) for every in intervals]
            improved = False
            if due[0] and accelerator.is_main_process:
                state.metrics = task.evaluate(ema.model)
                state.score = state.metrics.get("score")
                improved = is_better(state.score, state.best_score)
                state.best_score = state.score if improved else state.best_score
                accelerator.log({f"eval/{k}": v for k, v in state.metrics.items()}, step=state.step)
                logger.info("step %d evaluation: %s", state.step, format_numbers(state.metrics))
            if due[1] and accelerator.is_main_process:
                samples = task.sample(ema.model)
                if samples is not None:
                    writer = accelerator.get_tracker("tensorboard", unwrap=True)
                    save_samples(samples, run_dir / "samples", state.step, writer)
            if (due[2] or improved) and accelerator.is_main_process:
                checkpoints.save(plain_model, ema, plain_optimizer, state)
            state.score = None  # it belongs to the weights of this step alone
            accelerator.wait_for_everyone()
            if done:
                break

            # One step.
            meter.start()
            batch = to_device(batches.next(), device)
            factor = learning_rate_factor(
                state.step,
                progress(state, config),
                warmup_steps=config.warmup_steps,
                schedule=config.schedule,
                decay_fraction=config.decay_fraction,
            )
            for group in plain_optimizer.param_groups:
                group["lr"] = config.learning_rate * factor
            torch.manual_seed(derived_seed(config.seed, rank, state.step, "model"))
            with accelerator.autocast():
                generator = step_generator(config.seed, rank, state.step, "loss", device)
                loss, terms = task.loss(model, batch, generator)
            accelerator.backward(loss)
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            if bool(torch.isfinite(torch.as_tensor(grad_norm))):
                optimizer.step()
                ema.update(plain_model)
            else:
                logger.warning("step %d left out: its gradient is not finite", state.step)
            optimizer.zero_grad(set_to_none=True)
            state.step += 1
            state.elapsed = before + time.monotonic() - clock
            meter.add(terms | {"loss": loss.detach(), "grad_norm": torch.as_tensor(grad_norm)})
            meter.num_clips += task.num_clips(batch) * accelerator.num_processes

            bar.update()
            if state.step % config.log_every == 0:
                numbers = meter.means() | {"learning_rate": config.learning_rate * factor}
                accelerator.log({f"train/{k}": v for k, v in numbers.items()}, step=state.step)
                bar.set_postfix_str(f"loss {numbers['loss']:.4f}, {numbers['clips_per_second']:.1f} clips/s")
                if accelerator.is_main_process and bar.disable:
                    left = time_left(state, config, numbers["seconds_per_step"])
                    logger.info("step %d/%d, %s, %s", state.step, config.num_steps, format_numbers(numbers), left)

    model_dir = run_dir / "model"
    if accelerator.is_main_process:
        best = checkpoints.best()
        if best is not None:
            ema.model.load_state_dict(load_file(best / "ema.safetensors"))
        write_folder(model_dir, lambda folder: task.export(ema.model, folder))
        save_config(config, model_dir / "training_config.json")
        logger.info("step %d: %s written", state.step, model_dir)
    accelerator.end_training()
    return model_dir


def log_changes(config: TrainingConfig, path: Path) -> None:
    """Says which settings differ from those that the run had so far."""
    if path.is_file():
        before, now = json.loads(path.read_text()), to_dict(config)
        changes = [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]
        logger.info("settings changed: %s", "; ".join(changes) or "none")


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """The accelerator of a run: its devices and processes come from `accelerate launch`."""
    device = PartialState(cpu=config.cpu).device
    assert device is not None
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
    """What `mixed_precision` means on a device: bf16 or no."""
    if setting == "auto":
        return "bf16" if computes_bf16(device) else "no"
    if setting == "bf16" and not computes_bf16(device):
        # 80 times slower than float32 on a processor with AVX2 alone.
        logger.warning("`mixed_precision` (=bf16) is emulated on this %s, and slow: 'no' is faster here", device.type)
    return setting


def make_optimizer(model: nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW for all, or Muon for the matrices and kernels of repeated blocks and AdamW for the rest.

    What is one number a channel (biases, gains) does not decay.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0}]
    inner = [name for name, p in named if p.ndim >= 2 and config.optimizer == "muon" and _is_inner(name)]
    for muon in (True, False):
        chosen = [p for name, p in named if p.ndim >= 2 and (name in inner) == muon]
        groups.append({"params": chosen, "weight_decay": config.weight_decay, "muon": muon})
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "muon":
        return Muon(groups, lr=config.learning_rate, betas=config.betas)
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)


def _is_inner(name: str) -> bool:
    """Whether a weight belongs to a repeated block: Muon is not for embeddings, heads and tables."""
    return ("blocks." in name or "stages." in name) and not name.endswith("table")


def progress(state: TrainingState, config: TrainingConfig) -> float:
    """Part of the training done, in [0, 1], as the schedule counts it."""
    if config.schedule_on == "minutes":
        assert config.max_minutes is not None
        return min(1.0, state.elapsed / (60 * config.max_minutes))
    return min(1.0, state.step / config.num_steps)


class Prefetcher(Generic[Batch]):
    """Batches in order, made ahead by threads (`make` is pure, so nothing depends on how they run)."""

    def __init__(self, make: Callable[[int], Batch], start: int, stop: int, num_workers: int) -> None:
        self.make, self.position, self.stop = make, start, stop
        self.ahead = 2 * num_workers
        self.pool = ThreadPoolExecutor(num_workers, "batch") if num_workers else None
        self.futures: dict[int, Any] = {}

    def next(self) -> Batch:
        """The next batch."""
        step, self.position = self.position, self.position + 1
        if self.pool is None:
            return self.make(step)
        for s in range(step, min(step + self.ahead + 1, max(self.stop, step + 1))):
            if s not in self.futures:
                self.futures[s] = self.pool.submit(self.make, s)
        return self.futures.pop(step).result()

    def __enter__(self) -> "Prefetcher[Batch]":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)


class Meter:
    """Means since the last line of the log, and the time that steps take."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Starts anew."""
        self.sums: dict[str, Tensor] = {}
        self.steps, self.seconds, self.num_clips = 0, 0.0, 0

    def start(self) -> None:
        """A step begins."""
        self.began = time.monotonic()

    def add(self, terms: dict[str, Tensor]) -> None:
        """A step ends; its time counts."""
        for name, value in terms.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1
        self.seconds += time.monotonic() - self.began

    def means(self) -> dict[str, float]:
        """Means of the terms, clips a second and seconds a step; then starts anew."""
        numbers = {name: float(value) / self.steps for name, value in self.sums.items()}
        numbers["clips_per_second"] = self.num_clips / max(self.seconds, 1e-9)
        numbers["seconds_per_step"] = self.seconds / self.steps
        self.reset()
        return numbers


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Within, an interrupt or a request to end is noted, so that the run can save and stop; a second one ends it."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def note(number: int, _: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        logger.info("stopping after this step (signal %d)", number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if accelerator.num_processes == 1:
        return flag
    total = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum")
    return bool(total > 0)  # type: ignore[operator]


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch (tensors in dictionaries, lists and tuples) on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


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
