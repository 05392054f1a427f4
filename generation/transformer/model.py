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
    """Transformer that predicts the velocity of the flow from noisy latents, timesteps and text.

    Args:
        in_channels: number of latent channels.
        out_channels: number of output channels; None: `in_channels`.
        patch_size: latent positions (t, h, w) per token.
        dim: width of the tokens.
        num_layers: number of video blocks.
        num_heads: number of heads; must divide `dim`, into heads of an even width of at least 6.
        mlp_ratio: width of the feed-forward layers relative to `dim`, as for ungated layers.
        text_vocab_size: number of words, for text as word ids; give either this or `text_dim`.
        text_dim: width of the text features, for text from a frozen encoder.
        text_max_length: maximum number of text tokens.
        num_refiner_layers: number of transformer layers over the text inside this model.
        rope_theta: base of the rotary wavelengths; small for small grids.
        attention: attention patterns as text (see `kinema.generation.attention.parse_patterns`), for example
            `spatial+temporal` for alternating blocks; None: full attention.
        coarse_tile: tile size (t, h, w) of VSA's gated coarse branch, in tokens; None: no coarse branch.

    Raises:
        KinemaError: an argument is out of range.
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
        """Create an untrained model from a preset.

        Args:
            name: a key of `presets.PRESETS`.
            **overrides: arguments that replace those of the preset; must include `text_vocab_size` or `text_dim`.

        Raises:
            KinemaError: `name` is not a preset.
        """
        if name not in PRESETS:
            raise KinemaError(f"`name` (={name!r}) must be one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    def set_attention(
        self, patterns: "str | Pattern | Sequence[Pattern] | PatternSchedule | None", *, backend: str = "auto"
    ) -> None:
        """Set the attention patterns. Weights are unchanged.

        Args:
            patterns: a pattern for all blocks, patterns that blocks cycle through, a schedule, or text; None: full
                attention.
            backend: name of the sparse attention backend, or `auto`.

        Raises:
            KinemaError: a pattern is for another number of heads, a layer does not exist, or a name is unknown.
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
        """The schedule of attention patterns; None: full attention."""
        return self._attention

    def enable_context_parallel(self, group: "dist.ProcessGroup") -> None:
        """Shard the tokens of each clip over the processes of a group; text is computed in every process.

        All processes must call `forward` together with the same arguments, and all get the whole result. Gradients of
        weights and arguments must be averaged over the group, as DDP does for weights.

        Args:
            group: the process group, for example from `context_parallel.context_group(2)`.

        Raises:
            KinemaError: `num_heads` is not divisible by the size of the group.
        """
        parallel = ContextParallel(group)
        parallel.check_heads(self.config["num_heads"])
        self._context_parallel = parallel

    def disable_context_parallel(self) -> None:
        """Compute whole clips in each process again."""
        self._context_parallel = None

    def _init_identity(self) -> None:
        """Zero-initialise residual gates and the output layer (adaLN-Zero; DiT, arXiv:2212.09748, 3.2)."""
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
        """Predict the velocity (noise - clean) at every position.

        Args:
            hidden_states: normalised latents, clean at given positions and noisy elsewhere; sizes must be multiples of
                the patch size.
            timestep: timestep in [0, 1000] (1000: noise, 0: clean) of each clip, of each latent step of the token
                grid, or of each token. Fewer values need less time and memory.
            encoder_hidden_states: word ids, or features of the frozen text encoder.
            encoder_attention_mask: text tokens to attend to, at least one per row; None: all.
            return_dict: whether to return a `Transformer2DModelOutput` instead of a tuple.
            step: index of the denoising step, for attention schedules; None: not sampling.
            num_steps: number of denoising steps.

        Returns:
            An output with `.sample` (b z_out t h w), or a tuple (sample,).
        """
        grid = self.token_grid(hidden_states.shape[2:])
        text_mask = _all_true_if_none(encoder_attention_mask, encoder_hidden_states)
        settings = self._attention, grid, len(self.blocks), self._attention_backend
        tokens = Arrangement.make(*settings, step, num_steps, self._context_parallel)

        x = self.embed_patches(self._patchify(hidden_states))
        x = x + self.embed_places(place_features(grid, x.device).to(self.embed_places.weight.dtype))
        text, pooled = self.refine_text(encoder_hidden_states, text_mask)
        modulation, modulation_out = self._modulations(timestep_groups(timestep, grid), pooled)
        positions = tokens.arrange(grid_positions(grid, x.device), 0)
        rotary = rotary_table(positions, self._head_dim, self.config["rope_theta"])

        x, modulation, modulation_out = tokens.arrange(x, 1), *map(tokens.arrange_groups, (modulation, modulation_out))
        for layer, block in enumerate(self.blocks):
            arguments = (x, modulation, text, text_mask, rotary, tokens.attention(layer, self.coarse_tile))
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, *arguments)  # pyright: ignore
            else:
                x = block(*arguments)

        shift, scale = modulation_out.unbind(2)
        x = tokens.restore(self.out(modulate(self.norm_out(x), shift, scale)))
        sample = self._unpatchify(x, grid)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def token_grid(self, latent_size: tuple[int, ...]) -> tuple[int, int, int]:
        """Return the number of tokens along t, h, w for a latent size.

        Raises:
            KinemaError: a size is not a multiple of the patch size.
        """
        for name, size, patch in zip(("t", "h", "w"), latent_size, self.patch_size, strict=True):
            if size % patch:
                raise KinemaError(f"latent size `{name}` (={size}) must be a multiple of the patch size (={patch})")
        t, h, w = (size // patch for size, patch in zip(latent_size, self.patch_size, strict=True))
        return t, h, w

    def _modulations(
        self, timestep: Float[Tensor, "b g"], pooled: Float[Tensor, "b d"]
    ) -> tuple[Float[Tensor, "b g 6 d"], Float[Tensor, "b g 2 d"]]:
        """Compute the modulation of the blocks and of the last norm for each group of tokens."""
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
        raise KinemaError(f"`dim` / `num_heads` (={head_dim}) must be even and at least 6: RoPE needs a pair per axis")
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
