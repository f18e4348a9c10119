"""How far the gradient of several processes is from that of one: every loss, whole modules, real DDP on gloo.

    python experiments/benchmarks/ddp_parity.py [--ranks 2 3] [--batch 11] [--encoder resnet18 --losses exp l1]

Simulated scans, two views each, a batch that the ranks do not share evenly. One process takes the whole batch; then R
processes take their shares of it, and DDP averages. Printed is |difference of the gradients| / |gradient| over all
parameters, and the difference of the logged losses over the loss; in float64 what remains is rounding.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from brainage.config import Experiment, from_plain
from brainage.data.sampling import share
from brainage.encoders.sync_norm import synchronise
from brainage.imaging.contract import InputContract
from brainage.losses.names import CONTRASTIVE_NAMES, SUPERVISED_NAMES
from brainage.pretraining.checkpoint import new_module

VOLUME = InputContract(
    "simulated", "volume", (1, 16, 16, 16), spacing_mm=(8, 8, 8), origin_mm=(0, 0, 0), axes="RAS", space="none"
)
VECTOR = InputContract(modality="features", kind="vector", shape=(24,))
MORE = {
    "exp, localised": {"name": "exp", "repel_nearest": 3, "site_repulsion": 3.0, "age_balance": 1.0},
    "exp, site penalty": {"name": "exp", "site_penalty": 2.0},
    "supcon, chunked": {"name": "supcon", "chunk_rows": 2},
    "l1, order": {"name": "l1", "regulariser": "order"},
    "l1, conr": {"name": "l1", "regulariser": "conr", "regulariser_window_years": 5.0},
}
LOSSES = {name: {"name": name} for name in (*CONTRASTIVE_NAMES, *SUPERVISED_NAMES)} | MORE
NORMS = {"sync": "batch", "group": "group", "none": "none"}
Found = dict[tuple[str, str, str], tuple[Tensor, Tensor]]  # loss, norm, precision -> gradient, logged loss


def experiment_of(loss: dict, norm: str, encoder: str) -> Experiment:
    network = {"name": encoder, "norm": NORMS[norm], "width": 0.25 if encoder != "mlp" else 1.0, "hidden": [32, 32]}
    head = {"head": "mlp_bn" if norm == "sync" else "mlp", "head_dim": 16}
    return from_plain({"name": "parity", "encoder": network | head, "loss": loss, "augment": {"noise_p": 1.0}})


def batch_of(contract: InputContract, size: int) -> dict[str, Tensor]:
    """Ages in half years (ties), some people twice, three sites."""
    generator = torch.Generator().manual_seed(3)
    return {
        "sample": torch.randn(size, *contract.shape, generator=generator),
        "age_years": torch.randint(40, 160, (size,), generator=generator) / 2,
        "subject": torch.arange(size) * 3 // 4,
        "site": torch.arange(size) % 3,
        "key": torch.arange(size),
    }


def gradients(rank: int, ranks: int, meeting: str, size: int, encoder: str, losses: list[str]) -> None:
    """Of every row for this rank; the first writes them down."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}.meeting", rank=rank, world_size=ranks)
    contract = VECTOR if encoder == "mlp" else VOLUME
    batch = batch_of(contract, size)
    mine = share(range(size), rank, ranks)
    found: Found = {}
    for loss, values in ((loss, LOSSES[loss]) for loss in losses):
        for norm in NORMS:
            for precision, dtype in (("float64", torch.float64), ("float32", torch.float32)):
                torch.manual_seed(0)
                module = new_module(experiment_of(values, norm, encoder), contract)
                if values["name"] in SUPERVISED_NAMES:
                    module.fit_ages(batch["age_years"].numpy())
                    torch.nn.init.normal_(module.head.weight, std=0.1)  # it starts at 0, where no gradient passes it
                module = synchronise(module, torch.device("cpu")).to(dtype)
                found[loss, norm, precision] = step(module, {name: part[mine] for name, part in batch.items()}, dtype)
    if rank == 0:
        torch.save(found, f"{meeting}.pt")
    dist.destroy_process_group()


def step(module: torch.nn.Module, batch: dict[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gradient that DDP averages and the loss that is logged, of the module's own training step without its casts."""

    def forward(batch: dict[str, Tensor]) -> Tensor:
        loss, _ = module.loss_of(module.trunk(module.views(batch, 0).to(dtype)), batch)
        return loss

    module.forward = forward
    averaged = DistributedDataParallel(module, gradient_as_bucket_view=True)  # named: it averages while it lives
    loss = averaged(batch)
    loss.backward()
    logged = loss.detach().clone()
    dist.all_reduce(logged)
    gradient = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
    return gradient.clone(), logged / dist.get_world_size()


def table(one: Found, several: dict[int, Found]) -> str:
    head = "| loss | norm | precision |" + "".join(f" {n} ranks: gradient | loss |" for n in several)
    lines = [head, "|---|---|---|" + "---|---|" * len(several)]
    for key, (gradient, loss) in one.items():
        cells = ""
        for found in several.values():
            other, logged = found[key]
            cells += f" {float((other - gradient).norm() / gradient.norm()):.1e}"
            cells += f" | {float((logged - loss).abs() / loss.abs()):.1e} |"
        lines.append(f"| {' | '.join(key)} |{cells}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--batch", type=int, default=11)
    parser.add_argument("--encoder", default="mlp", help="mlp: feature vectors; else volumes of 16^3 (slow)")
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    options = parser.parse_args()
    found: dict[int, Found] = {}
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (1, *options.ranks):
            meeting = str(Path(folder) / str(ranks))
            processes.spawn(gradients, (ranks, meeting, options.batch, options.encoder, options.losses), nprocs=ranks)
            found[ranks] = torch.load(f"{meeting}.pt")
    print(f"{options.encoder}, batch of {options.batch} scans x 2 views, torch {torch.__version__}, gloo\n")
    print(table(found.pop(1), found))


if __name__ == "__main__":
    main()
