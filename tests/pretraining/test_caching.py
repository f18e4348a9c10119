"""Encoding in chunks: the gradients of the whole batch, and memory that does not grow with it."""

from __future__ import annotations

import pytest
import torch

from brainage.imaging.contract import InputContract
from brainage.pretraining.checkpoint import new_module
from tests.pretraining.groups import together
from tests.scans import small_experiment

CONTRACT = InputContract("vector", "vector", (12,))
SCANS = 9


def batch_of(scans: int = SCANS) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    return {
        "sample": torch.randn(scans, 12, generator=draw),
        "age_years": torch.rand(scans, generator=draw) * 60 + 20,
        "subject": torch.arange(scans),
        "site": torch.arange(scans) % 2,
        "key": torch.arange(scans) + 100,
    }


def module_of(folder, *words: str):
    torch.manual_seed(0)
    return new_module(small_experiment(folder, "data.intensity=none", *words), CONTRACT, 10)


def gradients(module, batch) -> torch.Tensor:
    torch.manual_seed(7)  # of dropout
    module.zero_grad()
    module.training_step(batch, 0).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters()])


@pytest.mark.parametrize("chunk", [1, 2, 5, 8, 17, 18, 1000])
@pytest.mark.parametrize("words", [["loss.name=exp"], ["loss.name=rnc"], ["loss.name=l1"]], ids=lambda w: w[0])
@pytest.mark.parametrize("norm", ["none", "group"])
def test_any_chunk_has_the_gradients_of_the_whole_batch(tmp_path, chunk, words, norm):
    words = [*words, f"encoder.norm={norm}", "encoder.head=mlp"]
    whole = gradients(module_of(tmp_path, *words), batch_of())
    parts = gradients(module_of(tmp_path, *words, f"trainer.chunk_samples={chunk}"), batch_of())
    assert (parts - whole).norm() <= 1e-5 * whole.norm()
    assert whole.norm() > 0


def test_dropout_draws_the_same_numbers_when_a_chunk_is_encoded_again(tmp_path):
    words = ["encoder.norm=none", "encoder.head=mlp", "encoder.dropout=0.5", "trainer.chunk_samples=4"]
    module = module_of(tmp_path, *words)
    parameter = next(module.encoder.parameters())
    grad = gradients(module, batch_of())[: parameter.numel()].view_as(parameter)
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    step, values = 1e-2, []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.add_(sign * step * direction)
        torch.manual_seed(7)
        values.append(module.training_step(batch_of(), 0).item())
        with torch.no_grad():
            parameter.sub_(sign * step * direction)
    assert (grad * direction).sum().item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=0.05)


def test_running_averages_move_once_a_chunk(tmp_path):
    module = module_of(tmp_path, "encoder.norm=batch", "trainer.chunk_samples=6")
    gradients(module, batch_of())
    counted = [norm.num_batches_tracked.item() for norm in module.encoder.modules() if hasattr(norm, "running_mean")]
    assert counted == [3] * len(counted)
    assert counted


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_the_batch(tmp_path):
    def kept(scans: int) -> int:
        module = module_of(tmp_path, "encoder.hidden=[512]", "encoder.norm=none", "trainer.chunk_samples=8")
        own = {p.data_ptr() for p in module.parameters()}
        held: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in own:
                held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            module.trunk(batch_of(scans), 0)
        return sum(held.values())

    assert kept(200) <= kept(20) + 200 * 12 * 4 * 2  # the samples themselves
    assert kept(200) < 200 * 2 * 512 * 4  # one hidden layer of all views would be more


def shared_step(rank: int, ranks: int, folder: str) -> tuple[torch.Tensor, list[float]]:
    from brainage.encoders.sync_norm import synchronise

    module = module_of(folder, "encoder.norm=batch", "trainer.chunk_samples=4")
    synchronise(module, torch.device("cpu"))
    part = slice(0, 5) if rank == 0 else slice(5, 9)  # three and two chunks of their own
    gradient = gradients(module, {name: values[part] for name, values in batch_of().items()})
    means = [norm.running_mean for norm in module.encoder.modules() if hasattr(norm, "running_mean")]
    return gradient, torch.cat(means).tolist()


def test_ranks_of_unequal_parts_meet_in_every_chunk(tmp_path):
    first, second = together(2, shared_step, str(tmp_path))
    assert first[0].isfinite().all()
    assert first[0].norm() > 0
    assert first[1] == pytest.approx(second[1])  # statistics over both, or they would have hung
