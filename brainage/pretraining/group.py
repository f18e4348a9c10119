"""The processes of one training as a group: how they meet, and how the first decides for all of them."""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment

from brainage.config import Experiment
from brainage.data.source import ScanSource, data_digest
from brainage.errors import BrainageError, ConfigError, DataError
from brainage.runtime.device import choose_device
from brainage.runtime.ranks import launched, local_rank, rank, ranks

PATIENCE = timedelta(days=7)  # of ranks that wait while the first fills a store; a dead first is noticed at once

_T = TypeVar("_T")
_left: list[bool] = []


def wanted_ranks(experiment: Experiment) -> int:
    """Processes that an experiment trains in: one a device."""
    return experiment.trainer.devices * experiment.trainer.nodes


def check_ranks(experiment: Experiment, train_scans: int) -> None:
    """Raise ConfigError when the global batch cannot be dealt to the devices asked for."""
    wanted, batch = wanted_ranks(experiment), min(experiment.data.batch_size, train_scans)
    if batch < wanted:
        raise ConfigError(
            f"a batch of {batch} scans for {wanted} devices leaves some without any: expected a data.batch_size (and "
            f"as many train scans) of {wanted} or more, or fewer trainer.devices"
        )
    if wanted > 1 and not experiment.trainer.sync_batchnorm and batch // wanted * experiment.augment.views < 2:
        raise ConfigError(
            f"a batch of {batch} scans for {wanted} devices leaves BatchNorm one sample each: expected a larger "
            "data.batch_size, or trainer.sync_batchnorm=true"
        )


def cluster_environment() -> ClusterEnvironment:
    """How Lightning finds the other ranks; it starts no process and requeues no job."""
    return TorchElasticEnvironment() if "RANK" in os.environ else SLURMEnvironment(auto_requeue=False)


def join(experiment: Experiment) -> None:
    """Meet the other ranks; nothing where this process trains alone or has met them before.

    Values of the host travel by gloo also where devices talk by NCCL, so that none of them waits for the device.
    Raises ConfigError when other processes were started than the experiment asks for.
    """
    if not launched() and wanted_ranks(experiment) == 1:
        return
    if ranks() != wanted_ranks(experiment):
        raise ConfigError(
            f"started as {ranks()} processes, but trainer.devices={experiment.trainer.devices} on "
            f"trainer.nodes={experiment.trainer.nodes} ask for {wanted_ranks(experiment)}; make them agree"
        )
    if dist.is_initialized():
        return
    backend = "gloo"
    if choose_device(experiment.trainer.accelerator).type == "cuda":
        refuse_missing_devices(experiment)
        torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl"
    environment = cluster_environment()
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    dist.init_process_group(backend, rank=rank(), world_size=ranks())
    atexit.register(lambda: None if _left else dist.destroy_process_group())


def leave() -> None:
    """This rank failed: end without waiting for the others, who may wait for this one."""
    _left.append(True)


def refuse_missing_devices(experiment: Experiment) -> None:
    """Raise ConfigError when this machine has fewer GPUs than `trainer.devices`."""
    found = torch.cuda.device_count()
    if found < experiment.trainer.devices:
        raise ConfigError(
            f"trainer.devices={experiment.trainer.devices}: this process sees {found} GPU{'s' * (found != 1)}; under "
            "Slurm ask for --gpus-per-node (not --gpus-per-task, which hides the others), else lower trainer.devices"
        )


def agree(action: Callable[[], _T]) -> _T:
    """What `action` gives on the first rank, on every rank; what it raises there is raised on all of them.

    The result must be picklable. All ranks must call this at the same place.
    """
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return action()
    told: list[Any] = [None, None]
    raised: Exception | None = None
    if dist.get_rank() == 0:
        try:
            told[0] = action()
        except Exception as error:
            raised = error
            told[1] = error if isinstance(error, BrainageError) else RuntimeError(f"{type(error).__name__}: {error}")
    dist.broadcast_object_list(told, src=0, group=_host_group())
    if raised is not None:
        raise raised
    if told[1] is not None:
        told[1].__notes__ = ["raised on the first rank, which says so"]
        raise told[1]
    return told[0]


def highest(number: int) -> int:
    """The highest of all ranks' numbers, on every rank. All ranks must call this at the same place."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return number
    told = torch.tensor([number])
    dist.all_reduce(told, op=dist.ReduceOp.MAX, group=_host_group())
    return int(told)


def first_prepares(data: ScanSource, prepare: Callable[[ScanSource], Any]) -> None:
    """Fill or open the store: the first rank before all others, then the first of each machine, then the rest.

    Raises DataError when a rank then finds other scans than the first, as where machines have stores of their own.
    """
    agree(lambda: prepare(data) and None)
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return
    if dist.get_rank() and local_rank() == 0:
        prepare(data)
    dist.barrier(group=_host_group())
    if local_rank():
        prepare(data)
    mine = (data.split_hash, data_digest(data))
    if mine != agree(lambda: mine):
        raise DataError(f"{data.store.path}: rank {rank()} finds other people or samples there than the first rank")


@functools.cache
def _host_group() -> Any:
    return dist.new_group(backend="gloo", timeout=PATIENCE)
