"""The video diffusion transformer.

Shapes: b batch, z latent channels, t h w the latent grid, n tokens after patching (order t h w), d width,
l text tokens, g groups of tokens that share a timestep.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.generation.attention import Pattern, PatternSchedule, as_schedule, check_backend, parse_patterns
from kinema.generation.attention.grid import check_triple
from kinema.generation.transformer.arrangement import Arrangement
from kinema.generation.transformer.context_parallel import ContextParallel
from kinema.generation.transformer.layers import (
    CrossAttention,
    SelfAttention,
    TextRefiner,
    TimestepEmbedding,
    VideoBlock,
    modulate,
    timestep_groups,
)
from kinema.generation.transformer.presets import PRESETS
from kinema.generation.transformer.rope import NUM_OCTAVES, grid_positions, place_features, rotary_table
from kinema.loading import quiet_casting

quiet_casting()


class VideoTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin, CacheMixin):
    """Predicts the flow's velocity from noisy latents, a timestep for every token, and text.

    Args:
        in_channels: channels of the latents.
        out_channels: channels of the prediction; None: as `in_channels`.
        patch_size: latent positions (t, h, w) that make one token.
        dim: width.
        num_layers: video blocks.
        num_heads: heads; `dim` is a multiple, and a head's width is even and at least 6.
        mlp_ratio: width of the feed-forward layers over `dim` (counted as for an ungated layer).
        text_vocab_size: number of words, for text as word ids; exactly one of this and `text_dim` is given.
        text_dim: width of the text features, for text from a frozen encoder.
        text_max_length: longest prompt in tokens.
        num_refiner_layers: transformer layers over the text inside this model.
        rope_theta: base of the rotary wavelengths; small for small grids.
        attention: what tokens see, as text (`kinema.generation.attention.parse_patterns`): `spatial+temporal` for
            blocks in turns; None: all see all.
        coarse_tile: tokens (t, h, w) of the tiles of VSA's gated coarse branch in every block; None: no such branch.

    Raises:
        KinemaError: an argument is out of its range.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["VideoBlock", "TextRefiner"]  # noqa: RUF012 (diffusers' protocol)
    _repeated_blocks = ["VideoBlock"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        in_channels: int = 16,
        out_channels: int | None = None,
        patch_size: Sequence[int] = (1, 1, 1),
        dim: int = 256,
        num_layers: int = 8,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        text_vocab_size: int | None = None,
        text_dim: int | None = None,
        text_max_length: int = 64,
        num_refiner_layers: int = 2,
        rope_theta: float = 10000.0,
        attention: str | None = None,
        coarse_tile: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        _check_config(dim, num_heads, patch_size, text_vocab_size, text_dim)
        self.set_attention(attention)
        self.coarse_tile = None if coarse_tile is None else check_triple("coarse_tile", tuple(coarse_tile))
        self.patch_size: tuple[int, int, int] = (patch_size[0], patch_size[1], patch_size[2])
        self.out_channels = out_channels if out_channels is not None else in_channels
        patch_volume = patch_size[0] * patch_size[1] * patch_size[2]

        self.embed_patches = nn.Linear(in_channels * patch_volume, dim)
        self.embed_places = nn.Linear(6 * NUM_OCTAVES, dim, bias=False)
        self.refine_text = TextRefiner(
            dim, num_heads, num_refiner_layers, mlp_ratio, text_vocab_size, text_dim, text_max_length
        )
        self.embed_timestep = TimestepEmbedding(dim)
        self.embed_pooled_text = nn.Linear(dim, dim)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(
            VideoBlock(dim, num_heads, mlp_ratio, coarse_tile is not None) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.modulation_out = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.out = nn.Linear(dim, self.out_channels * patch_volume)

        self.gradient_checkpointing = False
        self._context_parallel: ContextParallel | None = None
        self.apply(_init_weights)
        self._init_identity()

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "VideoTransformer":
        """Makes a model of a named size, untrained.

        Args:
            name: a key of `presets.PRESETS`.
            **overrides: arguments that replace the preset's; `text_vocab_size` or `text_dim` is needed.

        Raises:
            KinemaError: unknown name.
        """
        if name not in PRESETS:
            raise KinemaError(f"`name` (={name!r}) must be one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    def set_attention(
        self, patterns: "str | Pattern | Sequence[Pattern] | PatternSchedule | None", *, backend: str = "auto"
    ) -> None:
        """Sets what tokens see from now on; the weights stay as they are.

        Args:
            patterns: for all blocks, for blocks in turns, by denoising step, or as text; None: all see all.
            backend: name of the backend of sparse attention.

        Raises:
            KinemaError: a pattern is for another number of heads, or a layer does not exist, or a name is unknown.
        """
        if isinstance(patterns, str):
            patterns = parse_patterns(patterns)
        schedule = None if patterns is None else as_schedule(patterns)
        if schedule is not None:
            schedule.check(self.config["num_layers"], self.config["num_heads"])
        check_backend(backend)
        self._attention, self._attention_backend = schedule, backend

    @property
    def attention(self) -> PatternSchedule | None:
        """What tokens see; None: all see all."""
        return self._attention

    def enable_context_parallel(self, group: "dist.ProcessGroup") -> None:
        """Lets the processes of a group share the tokens of each clip; text is computed by each of them.

        From now on all of them call `forward` at the same time, with the same arguments, and all get the whole result.
        Gradients, of weights and of arguments, are to be averaged over the group, as DDP does with those of weights.

        Args:
            group: the processes, for example `context_parallel.context_group(2)`.

        Raises:
            KinemaError: `num_heads` is no multiple of the group's size.
        """
        parallel = ContextParallel(group)
        parallel.check_heads(self.config["num_heads"])
        self._context_parallel = parallel

    def disable_context_parallel(self) -> None:
        """Each process computes whole clips again."""
        self._context_parallel = None

    def _init_identity(self) -> None:
        """Zeroes what makes every branch, and the output, start at nothing (adaLN-Zero; DiT, arXiv:2212.09748, 3.2)."""
        cross_attentions = [module for module in self.modules() if isinstance(module, CrossAttention)]
        gates = [
            module.coarse_gate for module in self.modules() if isinstance(module, SelfAttention) and module.coarse_gate
        ]
        outputs = [attention.out for attention in cross_attentions]
        for linear in (self.modulation[1], self.modulation_out[1], self.out, *outputs, *gates):
            for parameter in linear.parameters():
                nn.init.zeros_(parameter)

    def forward(
        self,
        hidden_states: Float[Tensor, "b z t h w"],
        timestep: Float[Tensor, "b ..."],
        encoder_hidden_states: Int[Tensor, "b l"] | Float[Tensor, "b l f"],
        encoder_attention_mask: Bool[Tensor, "b l"] | None = None,
        return_dict: bool = True,
        step: int | None = None,
        num_steps: int | None = None,
    ) -> Transformer2DModelOutput | tuple[Float[Tensor, "b z_out t h w"]]:
        """Predicts the velocity (noise - clean) at every position.

        Args:
            hidden_states: normalised latents, given ones clean, wanted ones noisy; sizes are multiples of the patch.
            timestep: in [0, 1000] (1000: noise, 0: clean) of every clip, of every latent step (as many as the grid of
                tokens has along t) or of every token. Fewer numbers need less time and memory.
            encoder_hidden_states: word ids, or features of the frozen text encoder.
            encoder_attention_mask: which text tokens exist, at least one a row; None: all.
            return_dict: whether to wrap the result.
            step: the denoising step, for attention that changes with it; None: outside of sampling.
            num_steps: how many there are.

        Returns:
            `.sample` (b z_out t h w), or a tuple of it.
        """
        grid = self.token_grid(hidden_states.shape[2:])
        text_mask = _all_true_if_none(encoder_attention_mask, encoder_hidden_states)
        settings = self._attention, grid, len(self.blocks), self._attention_backend
        tokens = Arrangement.make(*settings, step, num_steps, self._context_parallel)

        x = self.embed_patches(self._patchify(hidden_states))
        x = x + self.embed_places(place_features(grid, x.device).to(self.embed_places.weight.dtype))
        text, pooled = self.refine_text(encoder_hidden_states, text_mask)
        modulation, modulation_out = self._modulations(timestep_groups(timestep, grid), pooled)
        positions = tokens.put(grid_positions(grid, x.device), 0)
        rotary = rotary_table(positions, self._head_dim, self.config["rope_theta"])

        x, modulation, modulation_out = tokens.put(x, 1), *map(tokens.put_groups, (modulation, modulation_out))
        for layer, block in enumerate(self.blocks):
            arguments = (x, modulation, text, text_mask, rotary, tokens.attention(layer, self.coarse_tile))
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, *arguments)  # pyright: ignore
            else:
                x = block(*arguments)

        shift, scale = modulation_out.unbind(2)
        x = tokens.back(self.out(modulate(self.norm_out(x), shift, scale)))
        sample = self._unpatchify(x, grid)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def token_grid(self, latent_size: tuple[int, ...]) -> tuple[int, int, int]:
        """Returns the number of tokens along t, h, w for latents of that size.

        Raises:
            KinemaError: a size is no multiple of the patch.
        """
        for name, size, patch in zip(("t", "h", "w"), latent_size, self.patch_size, strict=True):
            if size % patch:
                raise KinemaError(f"latent size `{name}` (={size}) must be a multiple of the patch size (={patch})")
        t, h, w = (size // patch for size, patch in zip(latent_size, self.patch_size, strict=True))
        return t, h, w

    def _modulations(
        self, timestep: Float[Tensor, "b g"], pooled: Float[Tensor, "b d"]
    ) -> tuple[Float[Tensor, "b g 6 d"], Float[Tensor, "b g 2 d"]]:
        """Modulation of the blocks and of the last norm, computed once for each group of tokens."""
        condition = self.embed_timestep(timestep) + self.embed_pooled_text(pooled)[:, None]
        shared = rearrange(self.modulation(condition), "b g (six d) -> b g six d", six=6)
        last = rearrange(self.modulation_out(condition), "b g (two d) -> b g two d", two=2)
        return shared, last

    def _patchify(self, latents: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b n p"]:
        pt, ph, pw = self.patch_size
        return rearrange(latents, "b z (t pt) (h ph) (w pw) -> b (t h w) (z pt ph pw)", pt=pt, ph=ph, pw=pw)

    def _unpatchify(self, tokens: Float[Tensor, "b n p"], grid: tuple[int, int, int]) -> Float[Tensor, "b z t h w"]:
        (t, h, w), (pt, ph, pw) = grid, self.patch_size
        pattern = "b (t h w) (z pt ph pw) -> b z (t pt) (h ph) (w pw)"
        return rearrange(tokens, pattern, t=t, h=h, w=w, pt=pt, ph=ph, pw=pw)

    @property
    def _head_dim(self) -> int:
        return self.config["dim"] // self.config["num_heads"]


def _all_true_if_none(
    mask: Bool[Tensor, "b l"] | None, text: Int[Tensor, "b l"] | Float[Tensor, "b l f"]
) -> Bool[Tensor, "b l"]:
    return torch.ones(text.shape[:2], dtype=torch.bool, device=text.device) if mask is None else mask


def _check_config(
    dim: int, num_heads: int, patch_size: Sequence[int], text_vocab_size: int | None, text_dim: int | None
) -> None:
    if dim % num_heads:
        raise KinemaError(f"`dim` (={dim}) must be divisible by `num_heads` (={num_heads})")
    head_dim = dim // num_heads
    if head_dim % 2 or head_dim < 6:
        raise KinemaError(f"`dim` / `num_heads` (={head_dim}) must be even and at least 6: each axis needs a pair")
    if len(patch_size) != 3 or min(patch_size) < 1:
        raise KinemaError(f"`patch_size` (={patch_size}) must be three numbers of at least 1")
    if (text_vocab_size is None) == (text_dim is None):
        raise KinemaError(
            f"exactly one of `text_vocab_size` (={text_vocab_size}) and `text_dim` (={text_dim}) must be given"
        )


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, TextRefiner):
        nn.init.normal_(module.places, std=0.02)
    elif isinstance(module, VideoBlock):
        nn.init.normal_(module.table, std=module.table.shape[-1] ** -0.5)
