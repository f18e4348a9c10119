"""Gloo processes for tests: `together(ranks, work, *arguments)` runs `work(rank, ranks, *arguments)` in each.

They are forked from a server that has imported everything once: torch and lightning take seconds.
"""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

SECONDS = 240
PRELOADED = ["brainage.pretraining.run", "data_modules.cohort", "tests.scans"]


def together(ranks: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What each rank's `work` returns, in the order of ranks; raises with the first traceback if one of them fails.

    `work` must be a function of a module, and what it returns must fit `torch.save`.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_run, args=(rank, ranks, folder, work, arguments), daemon=True)
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(SECONDS)
        for process in processes:
            if process.is_alive():
                process.kill()
        results = [Path(folder) / f"{rank}.pt" for rank in range(ranks)]
        errors = [file.read_text() for file in sorted(Path(folder).glob("*.error"))]
        if errors or not all(file.is_file() for file in results):
            raise AssertionError(errors[0] if errors else f"a rank ended without a result within {SECONDS} s")
        return [torch.load(file, weights_only=False) for file in results]


def _run(rank: int, ranks: int, folder: str, work: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))  # as torchrun does
    try:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks
        )
        torch.save(work(rank, ranks, *arguments), Path(folder) / f"{rank}.pt")
        torch.distributed.barrier()
    except BaseException:
        (Path(folder) / f"{rank}.error").write_text(traceback.format_exc())
        os._exit(1)
    torch.distributed.destroy_process_group()
