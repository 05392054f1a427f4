"""The metrics of a set of clips against reference clips, side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from kinema.errors import KinemaError
from kinema.eval.generation.looks import Look, Networks
from kinema.eval.generation.requirements import too_little
from kinema.eval.metrics import GENERATION_METRICS as METRICS
from kinema.eval.summaries import gather, naming, number


class SetMeasures:
    """Metrics that have one number for all clips. Those of one module come from one object, which sees a clip once.

    Args:
        metrics: Names of `METRICS`; those of other kinds are left out.
        networks: The networks.
        lenient: A clip that a metric cannot take ends this metric alone, not the measurement.

    Raises:
        KinemaError: A network cannot be had.
    """

    def __init__(self, metrics: Sequence[str], networks: Networks, *, lenient: bool = False) -> None:
        self.names = [name for name in metrics if METRICS[name].inputs == "clip sets"]
        self.lenient = lenient
        self._measures: dict[str, Any] = {}
        for name in self.names:
            if METRICS[name].module not in self._measures:
                self._measures[METRICS[name].module] = METRICS[name].make(networks)
        self._failures: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self.names)

    def update(self, name: str, look: Look, *, real: bool) -> None:
        """Counts a clip.

        Raises:
            KinemaError: A metric cannot take it, and they are not lenient.
        """
        for module, measure in self._measures.items():
            if module in self._failures:
                continue
            try:
                with naming(name):
                    measure.update(look, real)
            except KinemaError as error:
                if not self.lenient:
                    raise
                self._failures[module] = str(error)

    def compute(self, num_clips: int, num_reference: int) -> tuple[Mapping[str, float | None], Mapping[str, str]]:
        """Numbers by metric, and why some have none; in several processes all must call this.

        Args:
            num_clips: Generated clips of all processes.
            num_reference: Reference clips of all processes.
        """
        failures = {module: reason for share in gather(self._failures) for module, reason in share.items()}
        numbers: dict[str, float | None] = {}
        missing: dict[str, str] = {}
        computed: dict[str, Mapping[str, float]] = {}
        for name in self.names:
            module = METRICS[name].module
            reason = failures.get(module) or too_little(name, num_clips, num_reference)
            if reason is not None:
                numbers[name], missing[name] = None, reason
                continue
            if module not in computed:
                computed[module] = self._measures[module].compute()
            numbers[name] = number(computed[module][name])
        return numbers, missing
