"""The interface between the training loop and what it trains."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from kinema.training.config import TrainingConfig
from kinema.training.record import Contents
from kinema.training.samples import Samples

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Discriminator:
    """A network trained in turns with the model, on a loss of its own.

    Attributes:
        module: the network.
        learning_rate: peak learning rate; it follows the model's schedule.
        betas: of its AdamW.
    """

    module: nn.Module
    learning_rate: float
    betas: tuple[float, float] = (0.5, 0.9)


class StepLoss(NamedTuple):
    """The result of a loss function.

    Attributes:
        total: the loss to minimise, a scalar.
        terms: scalars to log.
        outputs: what the discriminator's loss needs of this forward pass, detached; None if there is no discriminator.
    """

    total: Tensor
    terms: dict[str, Tensor]
    outputs: Any = None


class Task(ABC, Generic[Batch]):
    """A model to train, its data and its loss."""

    model: nn.Module
    discriminator: Discriminator | None = None
    processes_per_batch: int = 1
    """Number of processes that share each batch (context parallelism); they draw the same random numbers."""
    splits_weights: bool = False
    """Whether to shard the weights over all processes (FSDP2), see `sharding`."""
    score_name: str = "score"
    """What the score of `evaluate` measures; scores of different names are not compared."""

    def depends_on(self) -> dict[str, Any]:
        """JSON-serialisable description of what else the weights depend on (a tokenizer, say); saved in checkpoints."""
        return {}

    def data_contents(self) -> Contents:
        """What the data consists of, see `CaptionedSource.contents`; saved in checkpoints."""
        return {}

    def save_data_report(self, path: Path) -> None:
        """Write a JSON report of the files and captions that are used or skipped."""

    def save_vocabulary(self, folder: Path) -> None:
        """Write the vocabulary of the model, if it has one, into a checkpoint."""

    def prepare(self) -> None:
        """Initialise the weights; not called when a run is resumed."""

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """Return the batch of a step. Must be a pure function: it is called from several threads."""

    @abstractmethod
    def num_clips(self, batch: Batch) -> int:
        """Return the number of clips in a batch."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> StepLoss:
        """Compute the loss of a batch."""

    def remedies(self, config: TrainingConfig) -> str:
        """Suggest what would make a step fit in memory, as the end of an error message."""
        checkpointing = "" if config.gradient_checkpointing else ", `gradient_checkpointing`"
        half = ", `mixed_precision` auto" if config.mixed_precision == "no" else ""
        return f"a smaller `batch_size`{checkpointing}{half} or smaller clips make it fit"

    def start_step(self, step: int) -> None:
        """Called before each step, with its number."""

    def discriminator_loss(self, discriminator: nn.Module, outputs: Any) -> StepLoss:
        """Compute the discriminator's loss from the `outputs` of this step's `loss`."""
        raise NotImplementedError(f"{type(self).__name__} has a discriminator and must define its loss")

    def trains_discriminator(self) -> bool:
        """Whether this step updates the discriminator."""
        return self.discriminator is not None

    def numbers(self) -> dict[str, float]:
        """Further numbers to log, gathered since the last call; called in all processes."""
        return {}

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return validation metrics; `score`, if present, selects the best weights (higher is better)."""

    @abstractmethod
    def sample(self, model: nn.Module) -> Samples | None:
        """Return sample clips of the current model."""

    @abstractmethod
    def export(self, model: nn.Module, folder: Path) -> None:
        """Save the trained model as users load it."""
