"""The adversarial loss: hinge, adaptive weight, LeCAM, and the discriminator with what it remembers.

A decoder trained on pixel errors alone averages over what it cannot know, which blurs; a discriminator that learns to
tell reconstructions from clips pays for detail that is plausible.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.functional import relu

from kinema.training.losses.discriminator import PatchDiscriminator, accuracy

MOST_ADAPTIVE = 1e4
"""The adaptive weight is clamped to this."""

_DELTA = 1e-6  # of arXiv 2012.09841, eq. 7
_DECAY = 0.99  # of LeCAM's averages


def hinge_discriminator_loss(real: Float[Tensor, "*_"], fake: Float[Tensor, "*_"]) -> Float[Tensor, ""]:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))] (Geometric GAN, arXiv 1705.02894); 2 is chance."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


def hinge_generator_loss(fake: Float[Tensor, "*_"]) -> Float[Tensor, ""]:
    """-E[D(G(z))] (arXiv 1705.02894)."""
    return -fake.mean()


def lecam(
    real: Float[Tensor, "*_"], fake: Float[Tensor, "*_"], mean_real: Float[Tensor, ""], mean_fake: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """E[(D(x) - mean_fake)^2] + E[(D(G(z)) - mean_real)^2] (LeCAM, arXiv 2104.03310, section 3.2).

    It keeps the logits of either kind near the running mean of the other's, so that a discriminator that has seen
    little data stays unsure.

    Args:
        real, fake: logits of a batch.
        mean_real, mean_fake: running means of the logits, constants here.
    """
    return (real - mean_fake.detach()).square().mean() + (fake - mean_real.detach()).square().mean()


def adaptive_weight(
    output: Tensor,
    reconstruction_gradient: Tensor,
    adversarial_gradient: Tensor,
    last_layer: Tensor,
    average: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, ""]:
    """The ratio of the losses' gradients at the decoder's last layer (VQGAN, arXiv 2012.09841, eq. 7), clamped.

    Both gradients are given at the output, so that neither loss is run backward a second time for it; only the way
    from the output to the last layer is.

    Args:
        output: the decoder's, with its graph, which is kept.
        reconstruction_gradient, adversarial_gradient: of the losses at the output.
        last_layer: a weight of the decoder.
        average: the mean over the processes of a training; none where there is one process.

    Returns:
        A constant in [0, `MOST_ADAPTIVE`], or NaN.
    """
    norms = torch.stack(
        [
            grad(output, last_layer, gradient, retain_graph=True)[0].float().norm()
            for gradient in (reconstruction_gradient, adversarial_gradient)
        ]
    )
    norms = average(norms) if average else norms
    return (norms[0] / (norms[1] + _DELTA)).clamp(0, MOST_ADAPTIVE).detach()


def with_gradient(value: Float[Tensor, ""], at: Tensor, gradient: Tensor) -> Float[Tensor, ""]:
    """A loss of this value whose gradient at `at` is given."""
    product = (at * gradient.detach()).sum()
    return value.detach() + (product - product.detach())


def last_weight(decoder: nn.Module) -> Tensor:
    """The decoder's last layer: the last weight of those that are trained, in the order of their registration."""
    return [p for p in decoder.parameters() if p.ndim >= 2 and p.requires_grad][-1]


class Adversary(nn.Module):
    """A discriminator and the running means of its logits: its state is what a checkpoint keeps.

    Args:
        width, levels: of the discriminator.
        lecam_weight: weight of LeCAM.
    """

    mean_logits: Tensor
    num_updates: Tensor

    def __init__(self, width: int = 32, levels: int = 3, lecam_weight: float = 0.0) -> None:
        super().__init__()
        self.discriminator = PatchDiscriminator(width, levels)
        self.lecam_weight = lecam_weight
        self.register_buffer("mean_logits", torch.zeros(2))  # of clips, of reconstructions
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))

    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 1 u i j"]:
        return self.discriminator(video)

    def blend(
        self,
        output: Float[Tensor, "b 3 t h w"],
        reconstruction_loss: Callable[[Tensor], Tensor],
        last_layer: Tensor,
        weight: float,
        *,
        adaptive: bool = True,
        average: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The decoder's loss: reconstruction plus weighted hinge.

        Args:
            output: reconstructed clips, float32, with their graph.
            reconstruction_loss: of them.
            last_layer: where the adaptive weight compares the two losses.
            weight: of the adversarial loss; a factor of the adaptive weight, where that is on.
            adaptive: whether to multiply by `adaptive_weight`.
            average: as of `adaptive_weight`.

        Returns:
            The loss, and terms to log. The discriminator gets no gradient from it.
        """
        pixels = output.detach().requires_grad_()
        reconstruction, adversarial = reconstruction_loss(pixels), hinge_generator_loss(self(pixels))
        # Backward passes belong outside autocast.
        with torch.autocast(output.device.type, enabled=False):
            (first,), (second,) = grad(reconstruction, pixels), grad(adversarial, pixels)
            factor = adaptive_weight(output, first, second, last_layer, average) if adaptive else torch.ones(())
            factor = weight * factor.to(output.device)
            loss = with_gradient(reconstruction + factor * adversarial, output, first + factor * second)
        return loss, {"adversarial": adversarial.detach(), "adversarial_factor": factor}

    def loss(
        self, logits: Float[Tensor, "b2 1 u i j"], average: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The discriminator's own loss: hinge and LeCAM; moves LeCAM's means.

        Args:
            logits: of clips and, after them, of as many reconstructions.
            average: as of `adaptive_weight`.

        Returns:
            The loss, and terms to log.
        """
        real, fake = logits.chunk(2)
        loss = hinge_discriminator_loss(real, fake)
        terms = {
            "discriminator_hinge": loss.detach(),
            "discriminator_accuracy": accuracy(real, fake),
            "logits_real": real.detach().mean(),
            "logits_fake": fake.detach().mean(),
        }
        if self.lecam_weight:
            self.remember(real, fake, average)
            terms["lecam"] = lecam(real, fake, self.mean_logits[0].clone(), self.mean_logits[1].clone())
            loss = loss + self.lecam_weight * terms["lecam"]
        return loss, terms

    @torch.no_grad()
    def remember(self, real: Tensor, fake: Tensor, average: Callable[[Tensor], Tensor] | None = None) -> None:
        """Moves LeCAM's means towards these logits; the first logits set them."""
        now = torch.stack([real.mean(), fake.mean()])
        now = average(now) if average else now
        part = torch.where(self.num_updates == 0, 1.0, 1 - _DECAY)
        self.mean_logits.lerp_(now, part)
        self.num_updates += 1
