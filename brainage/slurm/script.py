"""The scripts that sbatch gets: readable, and the same when written twice."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from brainage.runtime.signals import AGAIN
from brainage.slurm.profile import Profile

INDEX = "$SLURM_ARRAY_TASK_ID"
DELIVERER = "brainage-deliver"  # jobs of this name run one at a time

STEP = f"""\
# Exit code {128 + AGAIN} is SIGUSR1: the time is nearly over and all is saved. The job then starts again and goes on.
step() {{
  local code=0
  srun "$@" || code=$?
  if [ "$code" -eq {128 + AGAIN} ]; then
    echo "$(date '+%F %T') job $SLURM_JOB_ID stopped in time and is requeued"
    scontrol requeue "$SLURM_JOB_ID" && sleep 600  # Slurm ends this script; it reports no end of its own
  fi
  if [ "$code" -ne 0 ]; then exit "$code"; fi
}}"""


def pretrain_script(profile: Profile, name: str, words: Sequence[str], run: str, *, evaluate: bool) -> str:
    """Fill the store (one task), train (one task a device), and evaluate (one task) where that is asked for.

    `words`: experiment and overrides; `run`: the run folder that follows from them.
    """
    devices = [f"trainer.devices={profile.tasks_per_node}", f"trainer.nodes={profile.nodes}"]
    lines = [
        f"experiment=({_join([*words, *devices, 'evaluate.after_training=false'])})",
        "",
        "# The store is filled by one task, before any device waits for it.",
        f'step {_alone(profile)} "${{brainage[@]}}" prepare "${{experiment[@]}}"',
        "# One task a device; the rank that fails ends the others.",
        f"step --nodes={profile.nodes} --ntasks={profile.tasks} --ntasks-per-node={profile.tasks_per_node} "
        f"--cpus-per-task={profile.cpus_per_task} --kill-on-bad-exit=1 \\",
        '  "${brainage[@]}" pretrain "${experiment[@]}"',
    ]
    if evaluate:
        lines += ["# One task evaluates; it starts others for the networks that this one is compared with.",
                  f'step --overlap {_alone(profile)} "${{brainage[@]}}" evaluate {_quote(run)}']  # fmt: skip
    return _script(profile, name, f"brainage pretrain {_join(words)}", lines)


def array_script(
    profile: Profile, name: str, words: Sequence[str], count: int, *, limit: int = 0, options: Sequence[str] = ()
) -> str:
    """`brainage WORDS` once for each number from 0 to count - 1, which stands for the word INDEX; each is one task on
    one machine, with all its devices. `limit`: how many run at once; 0: as many as the cluster has room for."""
    at_once = f"%{limit}" if limit else ""
    lines = [f'step {_alone(profile)} "${{brainage[@]}}" {_join(words)}']
    return _script(profile, name, f"brainage {_join(words)}", lines, [f"--array=0-{count - 1}{at_once}", *options])


def command_script(profile: Profile, name: str, words: Sequence[str], *, options: Sequence[str] = ()) -> str:
    """`brainage WORDS` in one task."""
    lines = [f'step {_alone(profile)} "${{brainage[@]}}" {_join(words)}']
    return _script(profile, name, f"brainage {_join(words)}", lines, options)


def deliver_script(profile: Profile, runs: Sequence[str], after: str) -> str:
    """Deliver to MLflow what the runs of an array have kept for it, once job `after` is over. One such job at a time:
    a sqlite file on a network disk bears one process."""
    lines = [
        f"for run in {_join(runs)}; do",
        f'  srun {_alone(profile)} "${{brainage[@]}}" sync "$run" || echo "$run: not delivered"',
        "done",
    ]
    options = [f"--dependency=afterany:{after},singleton"]
    small = Profile(**{**vars(profile), "nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0, "memory": ""})
    return _script(small, DELIVERER, "brainage sync, one run after the other", lines, options, steps=False)


def _script(
    profile: Profile, name: str, title: str, lines: Sequence[str], options: Sequence[str] = (), *, steps: bool = True
) -> str:
    command = shlex.split(profile.command) or [sys.executable, "-m", "brainage.cli"]
    before = [
        *([f"module load {_join(profile.modules)}"] if profile.modules else []),
        *profile.setup,
        *(f"export {key}={shlex.quote(value)}" for key, value in profile.environment.items()),
    ]
    parts = [
        ["#!/bin/bash", f"# {title}", f"# Profile {profile.name}. sbatch takes this file as it is."],
        [f"#SBATCH {option}" for option in [*sbatch_options(profile, name, array=_is_array(options)), *options]],
        ["", "set -uo pipefail", *before, f"brainage=({_join(command)})"],
        ["", STEP] if steps else [],
        ["", "echo \"$(date '+%F %T') job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, restart ${SLURM_RESTART_COUNT:-0}\""],
        list(lines),
    ]
    return "\n".join(line for part in parts for line in part) + "\n"


def sbatch_options(profile: Profile, name: str, *, array: bool = False) -> list[str]:
    """What sbatch is asked for, an option a line."""
    asked = {
        "job-name": name,
        "account": profile.account,
        "partition": profile.partition,
        "qos": profile.qos,
        "time": profile.time,
        "nodes": profile.nodes,
        "ntasks": profile.tasks,
        "ntasks-per-node": profile.tasks_per_node,
        "cpus-per-task": profile.cpus_per_task,
        "gpus-per-node": f"{profile.gpu_type}:{profile.gpus_per_node}".lstrip(":") if profile.gpus_per_node else "",
        "mem": profile.memory,
        "signal": f"SIGUSR1@{profile.signal_seconds}",  # to all tasks, not to this script
        "open-mode": "append",
        "output": f"{profile.logs}/%x-%A_%a.log" if array else f"{profile.logs}/%x-%j.log",
    }
    return [*(f"--{key}={value}" for key, value in asked.items() if value != ""), "--requeue", *profile.sbatch]


def _is_array(options: Sequence[str]) -> bool:
    return any(option.startswith("--array") for option in options)


def _alone(profile: Profile) -> str:
    """srun options of a single task that may use all cores and devices of one machine."""
    cores = profile.tasks_per_node * profile.cpus_per_task
    return f"--nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task={cores}"


def _join(words: Sequence[str]) -> str:
    return " ".join(_quote(word) for word in words)


def _quote(word: str) -> str:
    """For the shell; INDEX is left for it to fill in.

    >>> _quote("seed=$SLURM_ARRAY_TASK_ID"), _quote("data.root=my data")
    ('seed="$SLURM_ARRAY_TASK_ID"', "'data.root=my data'")
    """
    pieces = [shlex.quote(piece) if piece else "" for piece in word.split(INDEX)]
    return f'"{INDEX}"'.join(pieces) or "''"
