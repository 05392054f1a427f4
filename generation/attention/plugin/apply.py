"""Applies sparse attention to diffusers transformers, and removes it."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from kinema.errors import KinemaError
from kinema.generation.attention.functional import check_backend
from kinema.generation.attention.patterns import Full, Pattern
from kinema.generation.attention.plugin.cogvideox import CogVideoX
from kinema.generation.attention.plugin.family import Entry, SparseProcessor, TransformerFamily
from kinema.generation.attention.plugin.forward import ForwardPlan, StepCounter
from kinema.generation.attention.plugin.hunyuan_video import HunyuanVideo
from kinema.generation.attention.plugin.ltx import LTX
from kinema.generation.attention.plugin.wan import Wan
from kinema.generation.attention.reduction import TokenReduction
from kinema.generation.attention.schedule import PatternSchedule
from kinema.generation.attention.text import parse_patterns

TRANSFORMER_FAMILIES: dict[str, TransformerFamily] = {
    "WanTransformer3DModel": Wan(),
    "LTXVideoTransformer3DModel": LTX(),
    "CogVideoXTransformer3DModel": CogVideoX(),
    "HunyuanVideoTransformer3DModel": HunyuanVideo(),
}
"""Families by class name of their transformer in diffusers."""

_ATTRIBUTE = "_kinema_sparse_attention"


def apply_sparse_attention(
    transformer: Any,
    pattern: Pattern | PatternSchedule | Sequence[Pattern] | str | TokenReduction,
    *,
    dense_steps: int | tuple[int, int] = 0,
    dense_layers: int | tuple[int, ...] = 0,
    min_tokens: int = 0,
    backend: str = "auto",
    num_steps: int | None = None,
) -> None:
    """Make self-attention over the video tokens of a diffusers transformer sparse, in place.

    The pipeline needs no change. Text tokens attend to all tokens and are attended to by all. A dense block runs the
    original attention, unless its tokens are padded. Denoising steps are counted from the timesteps of the calls: an
    equal timestep is the same step (guidance), a higher one starts a new sampling. To start one at an equal or lower
    timestep, apply again or set `num_steps=1`. In training mode steps are not counted. Applying again replaces the
    previous settings. Fuse projections and add LoRA layers to the patch embedding before applying.

    Args:
        transformer: a transformer of a class in `TRANSFORMER_FAMILIES`, or several that share a schedule and a step
            count, such as Wan 2.2's ``(pipe.transformer, pipe.transformer_2)``.
        pattern: a pattern for all blocks, or patterns that blocks cycle through, also as text (`sliding-tile:3x3x1`,
            `spatial+temporal`); a schedule, which replaces the next three arguments; or a `TokenReduction`, for full
            attention between fewer tokens.
        dense_steps: number of first denoising steps with dense attention, or (first, last) for both ends.
        dense_layers: number of first blocks with dense attention, or a tuple of block indices (negative: from the end).
        min_tokens: clips with fewer video tokens use dense attention.
        backend: a name in `BACKENDS`, or `auto`.
        num_steps: number of denoising steps; required if the last steps are dense.

    Raises:
        KinemaError: an argument is invalid; the transformer is unchanged.
    """
    transformers = _transformers(transformer)
    reduction = pattern if isinstance(pattern, TokenReduction) else None
    schedule = _schedule(Full() if reduction else pattern, dense_steps, dense_layers, min_tokens)
    _check_steps(schedule, num_steps)
    check_backend(backend)
    for each in transformers:
        attentions = _family(each).attentions(each)
        schedule.check(len(attentions), attentions[0].heads, num_steps)
        _check_not_split(each)
    remove_sparse_attention(transformers)
    counter = StepCounter()
    for each in transformers:
        setattr(each, _ATTRIBUTE, _Plugin(each, schedule, backend, num_steps, counter, reduction))


def remove_sparse_attention(transformer: Any) -> None:
    """Restore the original attention. Does nothing to transformers without sparse attention.

    Args:
        transformer: a transformer of a class in `TRANSFORMER_FAMILIES`, or several.

    Raises:
        KinemaError: a transformer is not of a class in `TRANSFORMER_FAMILIES`.
    """
    for each in _transformers(transformer):
        plugin = vars(each).get(_ATTRIBUTE)
        if plugin is not None:
            plugin.detach(each)
            delattr(each, _ATTRIBUTE)


def _family(transformer: Any) -> TransformerFamily:
    for kind in type(transformer).__mro__:
        if kind.__name__ in TRANSFORMER_FAMILIES:
            return TRANSFORMER_FAMILIES[kind.__name__]
    raise KinemaError(f"`transformer` (={type(transformer).__name__}) must be one of {', '.join(TRANSFORMER_FAMILIES)}")


def _transformers(transformer: Any) -> Sequence[Any]:
    transformers = tuple(transformer) if isinstance(transformer, (list, tuple)) else (transformer,)
    if not transformers or len(set(map(id, transformers))) < len(transformers):
        raise KinemaError(f"`transformer` (={len(transformers)} of them) must be one, or several distinct ones")
    for each in transformers:
        _family(each)
    return transformers


def _schedule(
    pattern: Any, dense_steps: int | tuple[int, int], dense_layers: int | tuple[int, ...], min_tokens: int
) -> PatternSchedule:
    if isinstance(pattern, PatternSchedule):
        for name, value in (("dense_steps", dense_steps), ("dense_layers", dense_layers), ("min_tokens", min_tokens)):
            if value != 0:
                raise KinemaError(f"`{name}` (={value}) must be left out: `pattern` is a schedule and sets it")
        return pattern
    if isinstance(pattern, str):
        pattern = parse_patterns(pattern)
    patterns = (pattern,) if isinstance(pattern, Pattern) else tuple(pattern)
    for each in patterns:
        if not isinstance(each, Pattern):
            raise KinemaError(f"`pattern` (with {each!r}) must be a pattern, patterns, a schedule or text")
    return PatternSchedule(patterns, dense_layers=dense_layers, dense_steps=dense_steps, min_tokens=min_tokens)


def _check_steps(schedule: PatternSchedule, num_steps: int | None) -> None:
    if num_steps is not None and num_steps < 1:
        raise KinemaError(f"`num_steps` (={num_steps}) must be at least 1")
    if num_steps is None and not isinstance(schedule.dense_steps, int) and schedule.dense_steps[1] > 0:
        raise KinemaError(
            f"`num_steps` (=None) must be given if the last steps are dense, `dense_steps` (={schedule.dense_steps})"
        )


def _check_not_split(transformer: Any) -> None:
    if getattr(transformer, "_parallel_config", None) is not None:
        raise KinemaError("`transformer` must not use context parallelism: attention needs all tokens")


class _Plugin:
    """The hooks and processors of sparse attention in one transformer.

    Hooks are methods, not closures, so that a deep copy of the transformer gets its own plugin.
    """

    def __init__(
        self,
        transformer: Any,
        schedule: PatternSchedule,
        backend: str,
        num_steps: int | None,
        counter: StepCounter,
        reduction: TokenReduction | None = None,
    ) -> None:
        self.family = _family(transformer)
        self.schedule = schedule
        self.backend = backend
        self.num_steps = num_steps
        self.counter = counter
        # A copy for each transformer, because matchings are cached by block.
        self.reduction = None if reduction is None else replace(reduction)
        self.num_samplings = 0
        self.plan: ForwardPlan | None = None
        """Plan of the current forward pass; None outside of one."""
        self.entries: Sequence[Entry] = self.family.entries(transformer)
        self.handles = [
            transformer.register_forward_pre_hook(self._begin, with_kwargs=True),
            transformer.register_forward_hook(self._end, always_call=True),
            transformer.norm_out.register_forward_pre_hook(self._leave),
            *(module.register_forward_hook(partial(self._enter, change)) for module, change in self.entries),
        ]
        for layer, attention in enumerate(self.family.attentions(transformer)):
            attention.set_processor(self.family.processor(attention.processor, layer))

    def detach(self, transformer: Any) -> None:
        for handle in self.handles:
            handle.remove()
        for attention in self.family.attentions(transformer):
            if isinstance(attention.processor, SparseProcessor):
                attention.set_processor(attention.processor.stock)

    def _begin(self, transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._check_unchanged(transformer)
        arguments = inspect.signature(type(transformer).forward).bind(transformer, *args, **kwargs).arguments
        arguments.pop("self")
        self.plan = self._plan(transformer, arguments)
        # Return all arguments as keywords, because `prepare` may have added some.
        return ((), arguments) if self.family.prepare(self.plan, arguments) else None

    def _plan(self, transformer: Any, arguments: dict[str, Any]) -> ForwardPlan:
        grid, num_leading = self.family.grid(transformer, arguments)
        step = None if transformer.training else self.counter.step(arguments["timestep"])
        num_layers = len(self.family.attentions(transformer))
        # One-step samplings repeat the timestep, so that the counter cannot tell them apart.
        is_new = self.num_samplings != self.counter.num_samplings or self.num_steps == 1
        if self.reduction is not None and is_new:
            self.num_samplings = self.counter.num_samplings
            self.reduction.reset()
        # diffusers' caches reuse block outputs in later steps, whose token order may differ.
        is_cached = getattr(transformer, "is_cache_enabled", False)
        context = (num_layers, step, self.num_steps, grid)
        return ForwardPlan(
            grid,
            tuple(self.schedule.at(i, *context) for i in range(num_layers)),
            batch_size=len(arguments["hidden_states"]),
            num_leading=num_leading,
            step=step,
            backend=self.backend,
            can_reorder=self.family.can_reorder(transformer) and not is_cached,
            reduction=self.reduction,
            is_reduced=tuple(not self.schedule.is_dense(i, *context) for i in range(num_layers)),
        )

    def _check_unchanged(self, transformer: Any) -> None:
        _check_not_split(transformer)
        processors = [attention.processor for attention in self.family.attentions(transformer)]
        entries = zip(self.entries, self.family.entries(transformer), strict=True)
        if not all(isinstance(each, SparseProcessor) for each in processors) or any(
            a[0] is not b[0] for a, b in entries
        ):
            raise KinemaError(
                "attention processors or layers of `transformer` were replaced after apply_sparse_attention;"
                " it must be applied again"
            )

    def _enter(self, change: Any, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return None if self.plan is None else change(self.plan, output)

    def _leave(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        return None if self.plan is None else (self.plan.restore(args[0], 1), *args[1:])

    def _end(self, transformer: Any, args: tuple[Any, ...], output: Any) -> None:
        self.plan = None
