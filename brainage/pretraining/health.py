"""Is the embedding alive: measures of one batch, and the watch that stops a run which is not.

Shapes: N scans, V views, D embedding, M rows of a matrix of embeddings. Every measure L2-normalises the rows itself, in
float32, and reads its value back to the host, so it belongs in a look every k steps and not in the loss.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brainage.config import HealthConfig
from brainage.errors import TrainingStopped

logger = logging.getLogger(__name__)

STALL_CHANGE = 1e-6  # a loss that moves by less than this share of itself has not moved


@torch.no_grad()
def collapse_value(
    loss: Callable[..., Tensor], age_years: Tensor, *, views: int, dim: int, subject: Tensor | None = None
) -> float:
    """The loss of an encoder that maps everyone onto one point, for a batch of these ages [N].

    `loss` is called as loss(z [N, views, dim], age_years, subject), as `contrastive_loss(config)` gives it. A softmax
    loss collapses to log(N V - 1) when no person occurs twice, cosine L^exp to less, depending on the ages: hence
    computed for each batch.

    >>> from brainage.config import LossConfig
    >>> from brainage.losses import contrastive_loss
    >>> ages = torch.tensor([20.0, 40.0, 60.0])
    >>> round(collapse_value(contrastive_loss(LossConfig(name="yaware")), ages, views=2, dim=8), 4)  # log 5
    1.6094
    """
    z = torch.zeros(len(age_years), views, dim, device=age_years.device)
    z[..., 0] = 1.0
    return float(loss(z, age_years, subject))


@torch.no_grad()
def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the singular values of z [M, D] divided by their sum (Roy & Vetterli, EUSIPCO 2007).

    Between 1 (all rows on one line) and min(M, D). Rows are normalised but not centred: centring a collapsed
    embedding would leave its rounding noise, which has full rank. 0 for zeros, NaN when a value is not finite.

    >>> round(effective_rank(torch.eye(4)), 4), round(effective_rank(torch.ones(4, 4)), 4)
    (4.0, 1.0)
    """
    z_MD = F.normalize(z.float(), dim=1)
    if not bool(z_MD.isfinite().all()):
        return math.nan
    singular_values = torch.linalg.svdvals(z_MD)
    if not bool(singular_values.sum() > 0):
        return 0.0
    share = singular_values / singular_values.sum()
    return float(torch.special.entr(share).sum().exp())


@torch.no_grad()
def alignment(z: Tensor) -> float:
    """Mean squared distance between two views of one scan, z [N, V, D] (Wang & Isola, ICML 2020, alpha = 2).

    0 when the embedding ignores the augmentation; NaN with a single view, which has no pair.

    >>> round(alignment(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])), 4)
    2.0
    """
    z_NVD = F.normalize(z.float(), dim=2)
    if z_NVD.shape[1] < 2:
        return math.nan
    return float(2 * z_NVD.var(dim=1).sum(dim=1).mean())  # mean over pairs of |a - b|^2 is twice the unbiased variance


@torch.no_grad()
def uniformity(z: Tensor) -> float:
    """log of the mean over pairs of exp(-2 |z_i - z_j|^2), z [M, D] (Wang & Isola, ICML 2020, t = 2).

    0 when all rows are one point, nearly -4 when they fill a high-dimensional sphere; NaN with a single row.

    >>> round(uniformity(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), 4)  # distance^2 = 2
    -4.0
    """
    z_MD = F.normalize(z.float(), dim=1)
    if len(z_MD) < 2:
        return math.nan
    return float(torch.pdist(z_MD).square().mul(-2).exp().mean().log())


@dataclass(frozen=True)
class HealthLine:
    """One look: what was measured and what it looks like. Measures that do not apply are None."""

    step: int
    loss: float
    collapse_value: float | None = None
    effective_rank: float | None = None
    alignment: float | None = None
    uniformity: float | None = None
    verdict: str = "healthy"  # or nan | collapsed | stalled, of this look alone
    looks: int = 0  # looks in a row with this verdict, when it is not healthy
    patience: int = 0

    def metrics(self) -> dict[str, float]:
        """Journal name -> value; what does not apply or is not finite is left out.

        >>> HealthLine(step=120, loss=2.0, collapse_value=4.0).metrics()
        {'health/loss_over_collapse': 0.5}
        """
        values = {
            "health/loss_over_collapse": self.loss / self.collapse_value if self.collapse_value else None,
            "health/effective_rank": self.effective_rank,
            "health/alignment": self.alignment,
            "health/uniformity": self.uniformity,
        }
        return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}

    def __str__(self) -> str:
        """
        >>> print(HealthLine(60, 3.912, 4.05, 14.21, 0.3, -1.9, verdict="collapsed", looks=3, patience=25))
        health step 60: loss 3.91 (collapse 4.05), effective rank 14.2, alignment 0.3, uniformity -1.9, collapsed (3/25)
        """
        loss = f"loss {self.loss:.3g}"
        if self.collapse_value is not None:
            loss += f" (collapse {self.collapse_value:.3g})"
        measures = {"effective rank": self.effective_rank, "alignment": self.alignment, "uniformity": self.uniformity}
        parts = [loss] + [f"{name} {x:.3g}" for name, x in measures.items() if x is not None and not math.isnan(x)]
        if self.verdict != "healthy":
            parts.append(f"{self.verdict} ({self.looks}/{self.patience})")
        return f"health step {self.step}: " + ", ".join(parts)


class HealthWatch:
    """Judges every look and stops a run whose looks agree for `config.patience` in a row that it is not learning.

    - nan: the loss or the embedding is not finite. Stops at once.
    - collapsed: the loss is within `collapse_margin` (a share) of its value on a constant embedding, or the effective
      rank is below `min_effective_rank`. Every softmax loss may start there, hence the patience.
    - stalled: the loss stays within 1e-6 of itself. Batches differ, so that a network that answers to its input moves
      more than that, however slowly it learns; one batch trained on for ever (overfit_batches=1) may end so. This does
      not watch the clock.

    With `supervised`, the effective rank is not judged: age alone is one direction. `config.stop = false` only warns.
    """

    def __init__(self, config: HealthConfig, supervised: bool = False) -> None:
        self.config = config
        self.supervised = supervised
        self._collapsed_looks = 0
        self._still_looks = 0
        self._still_loss: float | None = None  # the loss at the first of the still looks

    def look(
        self,
        step: int,
        loss: float,
        *,
        collapse_value: float | None = None,
        effective_rank: float | None = None,
        alignment: float | None = None,
        uniformity: float | None = None,
    ) -> HealthLine:
        """Count this look and say what it shows. Raises TrainingStopped once enough looks in a row agree."""
        loss = float(loss)  # it goes into the checkpoint, where a tensor or numpy scalar must not
        verdict, looks, reason = self._judge(loss, collapse_value, effective_rank)
        patience = 1 if verdict == "nan" else max(1, self.config.patience)
        line = HealthLine(step, loss, collapse_value, effective_rank, alignment, uniformity, verdict, looks, patience)
        if verdict != "healthy" and looks >= patience:
            message = f"{line}: {reason}. {self._advice(verdict)}. health.stop=false only warns"
            if self.config.stop:
                raise TrainingStopped(message)
            if looks % patience == 0:
                logger.warning(message)
        return line

    def state_dict(self) -> dict[str, int | float | None]:
        """Plain numbers, so that a resumed run decides as the uninterrupted one would."""
        return {
            "collapsed_looks": self._collapsed_looks,
            "still_looks": self._still_looks,
            "still_loss": self._still_loss,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting where `state_dict` was taken."""
        self._collapsed_looks = state["collapsed_looks"]
        self._still_looks = state["still_looks"]
        self._still_loss = state["still_loss"]

    def _judge(self, loss: float, collapse_value: float | None, rank: float | None) -> tuple[str, int, str]:
        """Count this look; its verdict, the looks in a row that share it, and what was seen."""
        if not math.isfinite(loss) or (rank is not None and math.isnan(rank)):
            return "nan", 1, f"not finite: loss {loss}, effective rank {rank}"
        seen = self._signs_of_collapse(loss, collapse_value, rank)
        self._collapsed_looks = self._collapsed_looks + 1 if seen else 0
        if self._still_loss is not None and abs(loss - self._still_loss) <= STALL_CHANGE * abs(self._still_loss):
            self._still_looks += 1
        else:
            self._still_looks, self._still_loss = 1, loss
        in_a_row = f"looks in a row, one every {self.config.every_steps} steps"
        if seen:
            return "collapsed", self._collapsed_looks, f"collapsed for {self._collapsed_looks} {in_a_row}: {seen}"
        if self._still_looks > 1:
            return "stalled", self._still_looks, f"stalled: the loss has not moved for {self._still_looks} {in_a_row}"
        return "healthy", 0, ""

    def _signs_of_collapse(self, loss: float, collapse_value: float | None, rank: float | None) -> str:
        signs = []
        margin = self.config.collapse_margin
        if collapse_value is not None and abs(loss - collapse_value) <= margin * abs(collapse_value):
            signs.append(f"loss within {margin:.2%} of its value on a constant embedding")
        if rank is not None and rank < self.config.min_effective_rank and not self.supervised:
            signs.append(f"effective rank below {self.config.min_effective_rank}")
        return " and ".join(signs)

    def _advice(self, verdict: str) -> str:
        gentler = "a smaller optim.lr, optim.warmup_epochs=5 or optim.clip_norm=1"
        if verdict == "nan":
            return f"Try {gentler}, or trainer.precision=fp32"
        if verdict == "stalled":
            return "Try a larger optim.lr or encoder.norm=batch; a schedule may have brought the learning rate to 0"
        return f"Try {gentler}" if self.supervised else f"Try encoder.head=mlp_bn, {gentler}"
