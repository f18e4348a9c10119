"""`make demo`: every stage on a simulated cohort, in one process, with the share of each in the time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from brainage.config import Experiment
from brainage.data.source import ScanSource
from brainage.evaluation_stages import evaluate_stage
from brainage.runtime import Stages, console, peak_memory_gib
from brainage.stages import prepare_stage, pretrain_stage, progress_bar

SUBJECTS, SEED, SPACING_MM = 500, 0, 6.0


def run_demo(
    experiment: Experiment, write_cohort: Callable[..., Path], open_cohort: Callable[[Experiment], ScanSource]
) -> Path:
    """Simulate, prepare, pre-train, evaluate; prints headline, shares and next commands; gives the run folder.

    `write_cohort(out, subjects=, seed=, spacing_mm=, on_progress=)` writes the cohort that `open_cohort` then reads.
    """
    stages, root = Stages(), Path(experiment.data.root)
    with stages("simulate"), progress_bar("simulate", SUBJECTS) as advance:
        write_cohort(root, subjects=SUBJECTS, seed=SEED, spacing_mm=SPACING_MM, on_progress=advance)
    console().print(f"simulated OpenBHB cohort: {SUBJECTS} people, {SPACING_MM:g} mm, {root}", soft_wrap=True)
    with stages("prepare"):
        data = open_cohort(experiment)
        prepare_stage(data)
    with stages("pretrain"):
        folder = pretrain_stage(experiment, data)
    if experiment.trainer.fast_dev_run:
        return folder
    with stages("evaluate and report"):
        evaluate_stage(experiment, data, folder)
    stages.print()
    console().print(
        f"peak memory {peak_memory_gib():.1f} GiB\n\n"
        f"report        {folder / 'report.html'}\n"
        "next          make ui                                          browse the run in MLflow\n"
        "              make pretrain EXP=openbhb_exp DATA=/your/openbhb  the same on real data\n"
        "              make experiments                                 what else is shipped",
        soft_wrap=True,
        markup=False,
    )
    return folder
