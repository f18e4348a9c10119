"""`make demo`: every stage on a simulated cohort, in one process, with the share of each in the time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from brainage.config import Experiment
from brainage.data.source import ScanSource
from brainage.evaluation_stages import evaluate_on_stage, evaluate_stage, evaluation_experiment
from brainage.runtime import Stages, console, peak_memory_gib
from brainage.stages import prepare_stage, pretrain_stage, progress_bar

SUBJECTS, SEED, SPACING_MM = 500, 0, 6.0
PATIENTS, CLINICAL = 160, "demo_adni"  # people of the simulated ADNI, and the evaluation that judges them
WriteCohort = Callable[..., Path]  # (out, subjects=, seed=, spacing_mm=, on_progress=)


def run_demo(
    experiment: Experiment,
    write_cohort: WriteCohort,
    write_clinical: WriteCohort,
    open_cohort: Callable[[Experiment], ScanSource],
) -> Path:
    """Simulate, prepare, pre-train, evaluate, then judge the network on people with a disease it has never seen; prints
    headlines, shares and next commands; gives the run folder. `open_cohort` reads what the two others write.
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
    with stages("simulate ADNI"), progress_bar("simulate", PATIENTS) as advance:
        clinic = root.with_name("adni")
        write_clinical(clinic, subjects=PATIENTS, seed=SEED, spacing_mm=SPACING_MM, on_progress=advance)
    console().print(f"simulated ADNI cohort: {PATIENTS} people, some with MCI or AD, {clinic}", soft_wrap=True)
    with stages("evaluate on ADNI"):
        judged, name = evaluation_experiment(folder, CLINICAL, [f"data.root={json.dumps(str(clinic))}"])
        patients = open_cohort(judged)
        prepare_stage(patients)
        evaluate_on_stage(judged, patients, folder, name)
    stages.print()
    console().print(
        f"peak memory {peak_memory_gib():.1f} GiB\n\n"
        f"report        {folder / 'report.html'}\n"
        "next          make ui                                          browse the run in MLflow\n"
        "              make pretrain EXP=openbhb_exp DATA=/your/openbhb  the same on real data\n"
        f"              make evaluate RUN={folder} ON=adni DATA=/your/adni\n"
        "              make experiments                                 what else is shipped",
        soft_wrap=True,
        markup=False,
    )
    return folder
