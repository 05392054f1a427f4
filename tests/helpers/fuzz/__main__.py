"""`python -m fuzz`: many cases, how each kind ended, and what is wrong."""

import argparse
import multiprocessing
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "KINEMA_CACHE": os.devnull}

import torch

from fuzz.bases import make_bases
from fuzz.runner import Outcome, run_case


def main() -> int:
    """Run cases and print a table.

    Returns:
        1 where a case went wrong, else 0.
    """
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="cases (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of all cases (0)")
    parser.add_argument("--case", type=int, help="this case alone, and what it writes to stderr")
    parser.add_argument("--jobs", type=int, default=2, help="cases at once (2)")
    parser.add_argument("--folder", type=Path, default=Path("runs/fuzz"), help="files of cases that went wrong")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.folder.absolute()
    bases = folder / "bases"
    make_bases(bases)
    indices = range(options.count) if options.case is None else [options.case]
    outcomes = list(
        _followed(_run(indices, options.jobs, partial(run_case, bases, folder, options.seed)), len(indices))
    )
    _print_table(outcomes)
    bad = [outcome for outcome in outcomes if outcome.problems]
    for outcome in bad:
        print(f"\ncase {outcome.index} ({outcome.kind}): {', '.join(outcome.problems)}")
        print(f"  {folder / f'case-{outcome.index:05d}'}: kinema {shlex.join(outcome.arguments)[:300]}")
    if options.case is not None and bad:
        print((folder / f"case-{options.case:05d}/stderr.txt").read_text("utf-8", "replace"))
    print(f"\nseed {options.seed}: {len(outcomes)} cases, {len(bad)} went wrong")
    return int(bool(bad))


def _run(indices: Iterable[int], jobs: int, run: partial[Outcome]) -> Iterator[Outcome]:
    """The outcomes as they come. Workers are forks, so that each case starts with everything imported."""
    _import_everything()
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(run, indices)


def _import_everything() -> None:
    """What a case would import is there already: a fork takes milliseconds."""
    import kinema.apps.any_pipeline
    import kinema.apps.cli
    import kinema.eval.fvd
    import kinema.generation.pipeline
    import kinema.training.diffusion
    import kinema.training.train_diffusion

    kinema.apps.cli.build_parser()


def _followed(outcomes: Iterable[Outcome], total: int) -> Iterator[Outcome]:
    """Tells about once a hundred cases how far it is, and of trouble at once."""
    for count, outcome in enumerate(outcomes, start=1):
        if outcome.problems:
            print(f"case {outcome.index} ({outcome.kind}): {', '.join(outcome.problems)}", file=sys.stderr, flush=True)
        if count % 100 == 0:
            print(f"{count}/{total} cases", file=sys.stderr, flush=True)
        yield outcome


def _print_table(outcomes: list[Outcome]) -> None:
    print(f"{'kind':12}{'cases':>7}{'done':>7}{'refused':>9}{'wrong':>7}{'slowest':>10}{'memory':>10}")
    for kind, cases in sorted(Counter(outcome.kind for outcome in outcomes).items()):
        own = [outcome for outcome in outcomes if outcome.kind == kind]
        wrong = sum(bool(outcome.problems) for outcome in own)
        done = sum(outcome.status == 0 and not outcome.problems for outcome in own)
        slowest, memory = max(outcome.seconds for outcome in own), max(outcome.memory for outcome in own)
        row = f"{kind:12}{cases:7}{done:7}{cases - done - wrong:9}{wrong:7}"
        print(f"{row}{slowest:8.1f} s{memory / 2**30:7.2f} GB")


if __name__ == "__main__":
    sys.exit(main())
