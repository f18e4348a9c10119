"""Measures of an embedding against their definitions, and the watch on runs that are sick, young and healthy."""

from __future__ import annotations

import io
import itertools
import logging
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from brainage.config import HealthConfig, LossConfig
from brainage.errors import TrainingStopped
from brainage.losses import contrastive_loss
from brainage.losses.names import CONTRASTIVE_NAMES
from brainage.pretraining.health import (
    HealthLine,
    HealthWatch,
    alignment,
    collapse_value,
    effective_rank,
    uniformity,
)

AGES = torch.tensor([20.0, 21.0, 25.0, 40.0, 41.0, 60.0, 75.0, 88.0])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(z: Tensor) -> np.ndarray:
    rows = z.double().numpy()
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


# --- measures ---


@pytest.mark.parametrize("name", CONTRASTIVE_NAMES)
def test_the_collapse_value_is_the_loss_of_any_constant_embedding(name: str) -> None:
    loss = contrastive_loss(LossConfig(name=name))
    person = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])
    constant = draw(16).expand(8, 2, 16)
    for subject in (None, person):
        value = collapse_value(loss, AGES, views=2, dim=16, subject=subject)
        assert isinstance(value, float)
        assert value == pytest.approx(loss(constant, AGES, subject).item(), abs=1e-5)


def test_softmax_losses_collapse_to_the_logarithm_of_the_columns_and_cosine_exp_to_less() -> None:
    for name in ("infonce", "yaware", "supcon"):
        value = collapse_value(contrastive_loss(LossConfig(name=name)), AGES, views=2, dim=4)
        assert value == pytest.approx(math.log(15), abs=1e-5)
    assert collapse_value(contrastive_loss(LossConfig(name="exp")), AGES, views=2, dim=4) < math.log(15) - 0.05


def test_effective_rank_follows_roy_and_vetterli() -> None:
    z = draw(40, 12)
    singular_values = np.linalg.svd(unit(z), compute_uv=False)
    p = singular_values / singular_values.sum()
    assert effective_rank(z) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-5)


def test_effective_rank_counts_equally_used_directions_and_sees_collapse() -> None:
    assert effective_rank(torch.eye(6).repeat(5, 1)) == pytest.approx(6, rel=1e-5)
    assert effective_rank(torch.eye(6)[:2].repeat(5, 1) * 1000) == pytest.approx(2, rel=1e-5)
    assert effective_rank(draw(1, 128).expand(64, 128)) == pytest.approx(1, abs=1e-2)
    assert effective_rank(draw(1, 128) + 1e-3 * draw(64, 128, seed=1)) < 1.5
    assert effective_rank(torch.zeros(4, 3)) == 0
    assert math.isnan(effective_rank(torch.full((4, 3), math.nan)))


@pytest.mark.parametrize("views", [2, 3])
def test_alignment_and_uniformity_are_means_over_pairs(views: int) -> None:
    z = draw(5, views, 4)
    u = unit(z)
    pairs = [((u[n, a] - u[n, b]) ** 2).sum() for n in range(5) for a, b in itertools.combinations(range(views), 2)]
    assert alignment(z) == pytest.approx(np.mean(pairs), rel=1e-5)
    flat = u.reshape(-1, 4)
    potentials = [math.exp(-2 * ((a - b) ** 2).sum()) for a, b in itertools.combinations(flat, 2)]
    assert uniformity(z.reshape(-1, 4)) == pytest.approx(math.log(np.mean(potentials)), rel=1e-5)


def test_measures_of_half_precision_and_of_too_few_rows() -> None:
    z = draw(20, 2, 8)
    half = z.half()
    assert effective_rank(half.reshape(40, 8)) == pytest.approx(effective_rank(z.reshape(40, 8)), rel=1e-2)
    assert alignment(half) == pytest.approx(alignment(z), rel=1e-2)
    assert math.isnan(alignment(z[:, :1]))
    assert math.isnan(uniformity(z[0, :1]))
    same = z[:, :1].expand(20, 2, 8)
    assert alignment(same) == pytest.approx(0, abs=1e-9)


# --- the watch on real optimisation ---


def train(watch: HealthWatch, *, spread: float, lr: float, steps: int) -> list[HealthLine]:
    """L^exp on a linear encoder of noisy features of age; `spread` is how far people are from one common vector."""
    torch.manual_seed(0)
    ages = torch.linspace(20, 80, 24)
    features = torch.cat([torch.sin(ages[:, None] / torch.tensor([10.0, 20.0, 40.0])), draw(24, 5)], dim=1)
    inputs = draw(1, 1, 8) + spread * features[:, None] * torch.ones(24, 2, 1)
    encoder = nn.Linear(8, 6)
    loss = contrastive_loss(LossConfig())
    optimiser = torch.optim.Adam(encoder.parameters(), lr=lr)
    collapsed = collapse_value(loss, ages, views=2, dim=6)
    lines = []
    for step in range(steps):
        z = encoder(inputs)
        value = loss(z, ages)
        if step % watch.config.every_steps == 0:
            rank = effective_rank(z.reshape(-1, 6))
            lines.append(watch.look(step, value.item(), collapse_value=collapsed, effective_rank=rank))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    return lines


def test_a_run_that_stays_collapsed_is_stopped_after_patience_looks() -> None:
    with pytest.raises(TrainingStopped, match="collapsed for 25 looks in a row") as stopped:
        train(HealthWatch(HealthConfig(every_steps=2)), spread=1e-3, lr=1e-6, steps=100)
    message = str(stopped.value)
    assert message.startswith("health step 48: loss")
    assert "loss within 1.00% of its value on a constant embedding and effective rank below 1.5" in message
    assert "encoder.head=mlp_bn" in message
    assert "\n" not in message


def test_a_healthy_run_is_left_alone_though_its_loss_passes_the_collapse_value() -> None:
    lines = train(HealthWatch(HealthConfig(every_steps=1)), spread=1.0, lr=0.003, steps=150)
    assert lines[0].loss > 1.1 * lines[0].collapse_value > lines[-1].loss
    assert 0 < sum(line.verdict == "collapsed" for line in lines) < 10
    assert lines[-1].verdict == "healthy"


def test_a_young_run_that_starts_collapsed_and_recovers_is_saved_by_patience() -> None:
    young = {"spread": 0.03, "lr": 0.001, "steps": 160}
    lines = train(HealthWatch(HealthConfig(every_steps=3)), **young)
    assert lines[0].verdict == "collapsed"
    assert lines[-1].verdict == "healthy"
    with pytest.raises(TrainingStopped, match="collapsed for 5 looks"):
        train(HealthWatch(HealthConfig(every_steps=3, patience=5)), **young)


# --- the rules of the watch ---


def healthy(step: int, watch: HealthWatch) -> HealthLine:
    return watch.look(step, 3.0 + 0.01 * (step % 7), collapse_value=4.0, effective_rank=12.0)


@pytest.mark.parametrize(
    ("loss", "rank", "collapsed"),
    [
        (4.03, 12.0, True),
        (3.97, 12.0, True),
        (3.95, 12.0, False),
        (4.05, 12.0, False),
        (3.0, 1.4, True),
        (3.0, 1.6, False),
    ],
)
def test_the_loss_and_the_effective_rank_each_tell_collapse(loss: float, rank: float, collapsed: bool) -> None:
    line = HealthWatch(HealthConfig(patience=9)).look(1, loss, collapse_value=4.0, effective_rank=rank)
    assert (line.verdict == "collapsed") is collapsed


def test_a_margin_holds_around_negative_collapse_values_too() -> None:
    watch = HealthWatch(HealthConfig(patience=9))
    assert watch.look(1, -5.02, collapse_value=-5.0, effective_rank=9.0).verdict == "collapsed"
    assert watch.look(2, -5.2, collapse_value=-5.0, effective_rank=9.0).verdict == "healthy"


def test_one_healthy_look_starts_the_count_again() -> None:
    watch = HealthWatch(HealthConfig(patience=3))
    for step in range(30):
        if step % 3 == 2:
            assert healthy(step, watch).looks == 0
        else:
            assert watch.look(step, 4.0 + step * 1e-3, collapse_value=4.0, effective_rank=9.0).looks == step % 3 + 1


@pytest.mark.parametrize(("loss", "rank"), [(math.nan, 9.0), (math.inf, 9.0), (-math.inf, None), (3.0, math.nan)])
def test_a_value_that_is_not_finite_stops_at_once(loss: float, rank: float | None) -> None:
    watch = HealthWatch(HealthConfig())
    healthy(1, watch)
    with pytest.raises(TrainingStopped, match=r"health step 20: .*not finite.*optim\.lr"):
        watch.look(20, loss, collapse_value=4.0, effective_rank=rank)


def test_a_loss_that_does_not_move_is_stalled_and_a_slow_one_is_not() -> None:
    watch = HealthWatch(HealthConfig(patience=5))
    for step in range(60):  # 4e-7 a look: still from look to look, moving over a few
        watch.look(step, 3.0 * (1 - 4e-7 * step), collapse_value=4.0, effective_rank=9.0)
    for step in range(4):
        watch.look(step, 2.5, collapse_value=4.0, effective_rank=9.0)
    with pytest.raises(TrainingStopped, match="stalled: the loss has not moved for 5 looks"):
        watch.look(5, 2.5 + 1e-7, collapse_value=4.0, effective_rank=9.0)


def test_a_supervised_run_is_not_judged_by_its_rank_and_needs_no_collapse_value() -> None:
    watch = HealthWatch(HealthConfig(patience=2), supervised=True)
    for step in range(20):
        line = watch.look(step, 9.0 + step, effective_rank=1.1)
        assert line.verdict == "healthy"
    assert str(line) == "health step 19: loss 28, effective rank 1.1"
    watch.look(20, 5.0)
    with pytest.raises(TrainingStopped, match="stalled"):
        watch.look(21, 5.0)
    at_mean = HealthWatch(HealthConfig(patience=1), supervised=True)
    with pytest.raises(TrainingStopped, match="collapsed") as stopped:
        at_mean.look(1, 5.0, collapse_value=5.0)
    assert "head" not in str(stopped.value)  # there is no projection head to change


def test_without_stop_a_sick_run_is_only_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    watch = HealthWatch(HealthConfig(patience=4, stop=False))
    with caplog.at_level(logging.WARNING):
        for step in range(8):
            watch.look(step, 4.0, collapse_value=4.0, effective_rank=1.0)
    assert [record.message.split(":")[0] for record in caplog.records] == ["health step 3", "health step 7"]
    with caplog.at_level(logging.WARNING):
        assert watch.look(9, math.nan).verdict == "nan"
    assert "not finite" in caplog.records[-1].message


@pytest.mark.parametrize(
    ("ending_loss", "verdict"), [([4.01 + 1e-4 * i for i in range(9)], "collapsed for 8"), ([3.0] * 9, "moved for 8")]
)
def test_a_watch_from_a_checkpoint_decides_like_one_that_never_stopped(ending_loss: list[float], verdict: str) -> None:
    looks = [(3.9 + 0.02 * (step % 11), 12.0) for step in range(40)] + [(loss, 9.0) for loss in ending_loss]

    def run(watch: HealthWatch, start: int) -> tuple[list[str], str]:
        lines = []
        try:
            for step in range(start, len(looks)):
                loss, rank = looks[step]
                lines.append(str(watch.look(step, loss, collapse_value=4.0, effective_rank=rank)))
        except TrainingStopped as error:
            return lines, str(error)
        return lines, ""

    config = HealthConfig(patience=8)
    whole, ending = run(HealthWatch(config), 0)
    assert f"{verdict} looks" in ending
    for cut in (1, 5, 20, 43):
        first = HealthWatch(config)
        for step in range(cut):
            first.look(step, np.float64(looks[step][0]), collapse_value=4.0, effective_rank=looks[step][1])
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = HealthWatch(config)
        second.load_state_dict(torch.load(file, weights_only=True))
        assert run(second, cut) == (whole[cut:], ending)


def test_the_line_reads_as_one_sentence_and_gives_the_journal_its_numbers() -> None:
    line = HealthLine(120, 3.912, 4.05, 14.21, 0.31, -1.9)
    assert (
        str(line) == "health step 120: loss 3.91 (collapse 4.05), effective rank 14.2, alignment 0.31, uniformity -1.9"
    )
    assert line.metrics() == {
        "health/loss_over_collapse": pytest.approx(3.912 / 4.05),
        "health/effective_rank": 14.21,
        "health/alignment": 0.31,
        "health/uniformity": -1.9,
    }
    single_view = HealthLine(1, math.nan, 0.0, alignment=math.nan)
    assert single_view.metrics() == {}
    assert str(single_view) == "health step 1: loss nan (collapse 0)"
