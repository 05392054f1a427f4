"""How well a model follows Toybox prompts that it was not trained on, decided from pixels alone."""

from kinema.command_line import check_at_least
from kinema.eval.toybox import entry
from kinema.eval.toybox.entry import Settings as Options


def run(options: Options) -> None:
    """Generates, measures, reports."""
    # At least two prompts: each clip is also held against the prompts of others.
    check_at_least(options, {"num_prompts": 2, "num_steps": 1, "batch_size": 1})
    print(entry.run(options).table())
