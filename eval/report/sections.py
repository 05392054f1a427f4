"""Parts of a report from the results of measurements."""

from collections.abc import Mapping, Sequence
from typing import Any

from kinema.eval.fvd import FVDResult
from kinema.eval.generation import GenerationReport
from kinema.eval.metrics import METRICS
from kinema.eval.reconstruction import ReconstructionReport, border_frames
from kinema.eval.report import plots
from kinema.eval.report.document import Clips, Section, Table, number

Headline = list[tuple[str, Any, str]]

_MOST_ROWS = 200


def fvd_headline(result: FVDResult, label: str = "FVD") -> Headline:
    """The value, with its interval or its protocol beneath."""
    remark = f"protocol {result.protocol.name}, {result.num_real} against {result.num_fake} clips"
    rows: Headline = [(label, result.value, remark)]
    if result.infinity is not None:
        rows.append((f"{label} at infinity", result.infinity, "extrapolated to endlessly many clips"))
    return rows


def fvd_section(result: FVDResult, title: str = "Fréchet Video Distance", clips: Sequence[Clips] = ()) -> Section:
    """Value, other scores on the same features, and the whole protocol."""
    interval = "none: too few clips" if result.interval is None else " to ".join(number(v) for v in result.interval)
    values: list[tuple[str, Any]] = [
        ("FVD (lower is better; 0 for the same clips)", result.value),
        ("95 % interval, over other clips", interval),
        ("at infinity", "none: too few clips" if result.infinity is None else result.infinity),
        ("what two samples of these sizes from one source would be apart", result.bias),
        ("real windows", result.num_real),
        ("generated windows", result.num_fake),
    ]
    scores = [(f"{METRICS[name].title}, {METRICS[name].remark}", value) for name, value in result.scores.items()]
    tables = [Table(head=("", "value"), rows=values)]
    if scores:
        tables.append(Table(head=("on the same features", "value"), rows=scores))
    tables.append(protocol_table(result))
    rows = {"FVD": (result.value, result.interval), "by chance at this size": (result.bias, None)}
    if result.infinity is not None:
        rows["FVD at infinity"] = (result.infinity, None)
    caption = "The bar is the 95 % interval over other clips; the bias that all sets of this size share is not in it."
    return Section(
        title=title,
        text=("Only values of the same protocol, the same weights and about as many clips can be compared.",),
        tables=tables,
        figures=[plots.intervals("Distance", rows, xlabel="FVD", caption=caption)],
        clips=clips,
    )


def protocol_table(result: FVDResult) -> Table:
    """Every setting of the protocol, and the hash of the weights."""
    settings = result.protocol.as_dict()
    rows = [(name, _setting(value)) for name, value in settings.items() if name not in ("name", "changed", "source")]
    rows += [("weights (hash)", result.weights), ("source", result.protocol.source or "none")]
    changed = f", with other values of {', '.join(settings['changed'])}" if settings["changed"] else ""
    return Table(head=("setting", "value"), rows=rows, caption=f"Protocol {result.protocol.name}{changed}")


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_setting(each)}" for key, each in value.items())
    if value is None:
        return "as it is"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def metrics_headline(metrics: Mapping[str, float | None]) -> Headline:
    """The value of each metric, and which values are better."""
    return [(METRICS[name].title, value, METRICS[name].remark) for name, value in metrics.items()]


def reconstruction_section(
    result: ReconstructionReport, title: str = "Frames against their reference", clips: Sequence[Clips] = ()
) -> Section:
    """Means, first frames and borders apart, curves over frames, and each clip."""
    means = [
        (METRICS[name].title, value, result.first_frame.get(name), result.chunk_border.get(name))
        for name, value in result.metrics.items()
    ]
    names = [name for name in result.metrics if name in result.curves]
    each = [
        (clip.name, clip.num_frames, f"{clip.height}x{clip.width}", *(clip.metrics[n] for n in names))
        for clip in result.clips
    ]
    more = f"the first {_MOST_ROWS} of {len(each)}" if len(each) > _MOST_ROWS else f"{len(each)}"
    longest = max(clip.num_frames for clip in result.clips)
    ratio = result.temporal_ratio
    borders = border_frames(longest, ratio, result.chunk) if ratio and longest <= 129 else []
    figures = [
        plots.curves(
            METRICS[name].title,
            {"mean of clips": result.curves[name]},
            ylabel=METRICS[name].title,
            borders=borders,
            caption="Thin lines: frames at which latent steps or chunks end." if borders else "",
        )
        for name in names
        if longest > 1
    ]
    figures += [
        plots.histogram(f"{METRICS[name].title} of clips", values, xlabel=METRICS[name].title)
        for name in names
        if len(values := [v for clip in result.clips if (v := clip.metrics[name]) is not None]) >= 8
    ]
    return Section(
        title=title,
        tables=[
            Table(head=("", "mean", "first frame", "at borders"), rows=means, caption=_counts(result)),
            Table(
                head=("clip", "frames", "size", *(METRICS[n].title for n in names)),
                rows=each[:_MOST_ROWS],
                caption=f"Clips ({more})",
            ),
        ],
        figures=figures,
        clips=clips,
    )


def _counts(result: ReconstructionReport) -> str:
    text = f"{len(result.clips)} clips, {result.num_frames} frames; a clip's value is the mean over its frames"
    return text if result.chunk is None else f"{text}; {result.chunk} frames at once"


def generation_section(
    result: GenerationReport, title: str = "Generated clips", clips: Sequence[Clips] = ()
) -> Section:
    """Curves over frames, each clip with its prompt, and what the numbers depend on."""
    names = [name for name in result.metrics if METRICS[name].inputs == "clip"]
    titles = {name: METRICS[name].title for name in names}
    each = [(clip.prompt, clip.num_frames, *(clip.metrics[name] for name in names)) for clip in result.clips]
    more = f"the first {_MOST_ROWS} of {len(each)}" if len(each) > _MOST_ROWS else f"{len(each)}"
    settings = [(name, _setting(value)) for name, value in result.protocol.items()]
    figures = [
        plots.curves(titles[name], {"mean of clips": curve}, ylabel=titles[name])
        for name, curve in result.curves.items()
        if len(curve) > 1
    ]
    figures += [
        plots.histogram(f"{titles[name]} of clips", values, xlabel=titles[name])
        for name in names
        if len(values := [v for clip in result.clips if (v := clip.metrics[name]) is not None]) >= 8
    ]
    return Section(
        title=title,
        tables=[
            Table(head=("prompt", "frames", *titles.values()), rows=each[:_MOST_ROWS], caption=f"Clips ({more})"),
            Table(head=("setting", "value"), rows=settings, caption="What these figures depend on"),
            *_vbench_tables(result),
        ],
        figures=figures,
        clips=clips,
    )


def _vbench_tables(result: GenerationReport) -> list[Table]:
    """The figures that VBench has names for, and how far the networks are VBench's."""
    rows = [
        (
            score.name,
            score.value,
            METRICS[score.metric].title,
            score.network,
            score.vbench_network,
            score.same_network,
            score.difference,
        )
        for score in result.vbench()
    ]
    head = ("dimension", "value", "our metric", "network used", "VBench's network", "the same", "what else differs")
    return [Table(head=head, rows=rows, caption="Under VBench's names, on its scale")] if rows else []


def unreadable_section(unreadable: dict[str, str]) -> list[Section]:
    """What was skipped and why; nothing where all could be read."""
    if not unreadable:
        return []
    table = Table(head=("clip", "why it was skipped"), rows=list(unreadable.items()))
    return [Section(title=f"{len(unreadable)} clips could not be read", tables=[table])]
