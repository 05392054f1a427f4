"""What the training loop asks of that which it trains."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from kinema.training.config import TrainingConfig
from kinema.training.record import Contents
from kinema.training.samples import Samples

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A network that trains beside the model, down a loss of its own: a discriminator.

    Attributes:
        name: what the log calls it.
        module: the network.
        learning_rate: the highest; it follows the model's schedule.
        betas: of its AdamW.
    """

    name: str
    module: nn.Module
    learning_rate: float
    betas: tuple[float, float] = (0.5, 0.9)


class Task(ABC, Generic[Batch]):
    """What is trained: a model, its data and its loss."""

    model: nn.Module
    companion: Companion | None = None
    processes_per_batch: int = 1
    """Processes that take the same batch and the same random numbers: those that share its clips."""
    splits_weights: bool = False
    """Whether weights are split over the processes, see `sharding`."""
    score_name: str = "score"
    """What `evaluate`'s score is a score of; scores of another name are not compared with it."""

    def depends_on(self) -> dict[str, Any]:
        """What the weights depend on beside settings, model and data, as JSON can hold it; checkpoints have it."""
        return {}

    def data_contents(self) -> Contents:
        """What the data consists of, see `CaptionedSource.contents`; saved in checkpoints."""
        return {}

    def save_data_report(self, path: Path) -> None:
        """Writes which files and captions are used and which are not, as JSON, if the task reads any."""

    def save_vocabulary(self, folder: Path) -> None:
        """Writes the vocabulary that the weights belong to, if there is one, into a checkpoint."""

    def prepare(self) -> None:
        """Sets up the model's first weights; not called when a training is resumed."""

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """The data of a step: a pure function, called from several threads."""

    @abstractmethod
    def num_clips(self, batch: Batch) -> int:
        """Clips in a batch."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and terms to log."""

    def remedies(self, config: TrainingConfig) -> str:
        """What makes a step fit in memory that did not, as the end of a message."""
        checkpointing = "" if config.gradient_checkpointing else ", `gradient_checkpointing`"
        half = ", `mixed_precision` auto" if config.mixed_precision == "no" else ""
        return f"a smaller `batch_size`{checkpointing}{half} or smaller clips make it fit"

    def start_step(self, step: int) -> None:
        """A step begins: for what depends on its number."""

    def companion_loss(self, companion: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        """The companion's loss on what the model's loss of this step has seen and made, and terms to log."""
        raise NotImplementedError(f"{type(self).__name__} has a companion, and must say what its loss is")

    def companion_trains(self) -> bool:
        """Whether the companion takes a step in this one."""
        return self.companion is not None

    def numbers(self) -> dict[str, float]:
        """What else to log, gathered since it was last asked for; called in all processes."""
        return {}

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Numbers to log; `score`, if there, says which weights are best (higher is better)."""

    @abstractmethod
    def sample(self, model: nn.Module) -> Samples | None:
        """Clips that show what the model does now."""

    @abstractmethod
    def export(self, model: nn.Module, folder: Path) -> None:
        """Writes what users load."""
