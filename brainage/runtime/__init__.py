"""What every stage needs from the machine it runs on; importing it loads neither torch nor MLflow.

console      lines for people, from rank zero only       device       seeds, threads, which device
files        atomic writes                               environment  versions, git state, memory
precision    the guard against wrong low-precision convolutions
"""

from brainage.runtime.console import Stages, console, print_panel, warn
from brainage.runtime.device import allowed_cores, choose_device, seed_everything, set_threads
from brainage.runtime.environment import available_memory_gib, environment, git_state, peak_memory_gib
from brainage.runtime.files import write_json_atomic
from brainage.runtime.precision import conv_block_error, guard_precision

__all__ = [
    "Stages",
    "allowed_cores",
    "available_memory_gib",
    "choose_device",
    "console",
    "conv_block_error",
    "environment",
    "git_state",
    "guard_precision",
    "peak_memory_gib",
    "print_panel",
    "seed_everything",
    "set_threads",
    "warn",
    "write_json_atomic",
]
