"""What every contrastive loss needs to know of a batch: anchors against columns, and who may attract or repel whom.

Shapes: N scans of the global batch, V views of each, D embedding, M = N V embeddings with a scan's views adjacent;
R anchors (rows) against C = M columns. On one process R = C; across ranks each rank takes the rows of its own scans,
and a chunk of rows is a part of those. Every loss is a mean over anchors, so that parts of rows add up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from brainage.config import nearest
from brainage.errors import ConfigError
from brainage.losses.kernels import KERNELS

_BLOCK = 1024  # scans compared at once where only ages are needed


class Setting(NamedTuple):
    """Which anchors are computed, and what goes beyond the published formulas; the defaults are the formulas.

    `rows`: first and last + 1 of the scans whose embeddings are the anchors; the loss is the mean over those.
    `site` [N]: integer ids of sites. `progress`: share of the training that is done, 0 to 1.
    `repel_nearest`: dynamic localised repulsion (Traeuble et al. 2024, arXiv 2408.00527): only the nearest columns in
    the embedding repel an anchor, V times as many as there are scans at the start of training and V times
    `repel_nearest` at its end, fewer by a straight line; 0: all, always. Their code counts the anchor itself among
    its nearest and lowers the number once in several epochs.
    `site_repulsion`: columns of the anchor's own site count this often in what repels it, so that within a site only
    age can tell people apart and the site is no shortcut; 1: like all others. The idea of weighted negatives, our form.
    `age_balance`: anchors are weighted by (density of their age in the batch)^-age_balance, mean 1, the density by an
    rbf kernel of 2 years: 1 makes rare ages count as much as common ones, 0 is off. Inverse density weights, as in
    Yang et al., ICML 2021 (label distribution smoothing).
    """

    rows: tuple[int, int] | None = None
    site: Tensor | None = None
    progress: float = 1.0
    repel_nearest: int = 0
    site_repulsion: float = 1.0
    age_balance: float = 0.0


class Pairs(NamedTuple):
    """Anchors against columns."""

    anchor_z: Tensor  # [R, D] embeddings as they came, float32 or float64
    column_z: Tensor  # [C, D]
    cosine: Tensor  # [R, C]
    anchor_age_years: Tensor  # [R]
    column_age_years: Tensor  # [C]
    kin: Tensor  # [R, C] bool: same scan, and the same person where that counts as a positive
    partner: Tensor  # [R, C] bool: the column is in A(i)
    repels: Tensor  # [R, C] bool: the column is in A(i) and pushes the anchor away
    repulsion_bias: Tensor | None  # [R, C] or None: log of how often a column counts in what repels
    anchor_weight: Tensor | None  # [R] or None: mean 1 over all M anchors

    def repulsion(self, q_RC: Tensor) -> Tensor:
        """`q_RC` with the bias, and the lowest number where nothing repels (-inf would make NaN of an empty row)."""
        biased_RC = q_RC if self.repulsion_bias is None else q_RC + self.repulsion_bias
        return biased_RC.masked_fill(~self.repels, torch.finfo(q_RC.dtype).min)

    def mean(self, loss_R: Tensor) -> Tensor:
        """Mean over the anchors, weighted where that is asked for."""
        return (loss_R if self.anchor_weight is None else loss_R * self.anchor_weight).mean()


def make_pairs(z: Tensor, age_years: Tensor, subject: Tensor | None, same_subject: str, setting: Setting) -> Pairs:
    """Everything of a batch z [N, V, D], age_years [N], subject [N] or None that the formulas use.

    Raises ConfigError for values without meaning, ValueError for shapes that do not belong together.
    """
    one_of("same_subject", same_subject, ("exclude", "positive"))
    site = setting.site
    one_each = [age_years, *(ids for ids in (subject, site) if ids is not None)]
    if z.ndim != 3 or any(values.shape != z.shape[:1] for values in one_each):
        found = [list(x.shape) for x in (z, *one_each)]
        raise ValueError(f"z, age_years, subject: expected shapes [N, V, D], [N], [N], found {found}")
    N, V, D = z.shape
    first, last = setting.rows or (0, N)
    z_MD = z.reshape(N * V, D).to(torch.promote_types(z.dtype, torch.float32))
    unit_MD = _unit_length(z_MD)
    anchors = slice(first * V, last * V)
    # autocast would make this product bf16, and 1 / tau magnifies its error; on a GPU so does
    # set_float32_matmul_precision("high"), which nothing here can undo (TF32 convolutions have a switch of their own)
    with torch.autocast(z.device.type, enabled=False):
        cosine_RC = unit_MD[anchors] @ unit_MD.T
    kin_RC, partner_RC = _relations(N, V, subject, same_subject, (first, last), z.device)
    age_years_M = _exact(age_years).repeat_interleave(V)
    repels_RC = partner_RC & _among_nearest(cosine_RC, partner_RC, N, V, setting)
    weight_N = None if setting.age_balance == 0 else _balancing_weights(_exact(age_years), setting.age_balance)
    return Pairs(
        anchor_z=z_MD[anchors],
        column_z=z_MD,
        cosine=cosine_RC,
        anchor_age_years=age_years_M[anchors],
        column_age_years=age_years_M,
        kin=kin_RC,
        partner=partner_RC,
        repels=repels_RC,
        repulsion_bias=_site_bias(cosine_RC, kin_RC, V, setting, (first, last)),
        anchor_weight=None if weight_N is None else weight_N[first:last].repeat_interleave(V).to(cosine_RC.dtype),
    )


def log_kernel(pairs: Pairs, kernel: str, sigma_years: float) -> Tensor:
    """log w_ik of every pair [R, C]; kin are of the same age."""
    one_of("kernel", kernel, tuple(KERNELS))
    above_zero("sigma_years", sigma_years)
    distance_years_RC = (pairs.anchor_age_years[:, None] - pairs.column_age_years[None, :]).to(pairs.cosine.dtype)
    return KERNELS[kernel](distance_years_RC.masked_fill(pairs.kin, 0.0), sigma_years)


def age_distance(pairs: Pairs) -> Tensor:
    """|y_i - y_t| of every pair [R, C] in float64, where two distances are told apart; kin are of the same age."""
    distance_years_RC = pairs.anchor_age_years.double()[:, None] - pairs.column_age_years.double()[None, :]
    return distance_years_RC.masked_fill(pairs.kin, 0.0).abs()


def kernel_weights(pairs: Pairs, log_kernel_RC: Tensor) -> Tensor:
    """w_ik / sum_t w_it over A(i); rows sum to 1, or to 0 where A(i) is empty."""
    lowest = torch.finfo(log_kernel_RC.dtype).min
    return log_kernel_RC.masked_fill(~pairs.partner, lowest).softmax(dim=1) * pairs.partner


def uniform_weights(pairs: Pairs, positive_RC: Tensor) -> Tensor:
    """1 / number of positives in A(i); rows sum to 1, or to 0 where there is none."""
    positive_RC = (positive_RC & pairs.partner).to(pairs.cosine.dtype)
    return positive_RC / positive_RC.sum(dim=1, keepdim=True).clamp_min(1.0)


@torch.no_grad()
def log_kernel_sums(
    age_years: Tensor, views: int, subject: Tensor | None, same_subject: str, kernel: str, sigma_years: float
) -> Tensor:
    """log sum_{t in A(k)} w_kt of every embedding k of the batch [C]; blocks of rows, so that memory stays small."""
    N = len(age_years)
    exact_M = _exact(age_years).repeat_interleave(views)
    sums = []
    for first in range(0, N, _BLOCK):
        rows = (first, min(first + _BLOCK, N))
        kin_RC, partner_RC = _relations(N, views, subject, same_subject, rows, age_years.device)
        distance_RC = exact_M[rows[0] * views : rows[1] * views, None] - exact_M[None, :]
        log_w_RC = KERNELS[kernel](distance_RC.masked_fill(kin_RC, 0.0), sigma_years)
        sums.append(log_w_RC.masked_fill(~partner_RC, torch.finfo(log_w_RC.dtype).min).logsumexp(dim=1))
    return torch.cat(sums)


def _relations(
    N: int, V: int, subject: Tensor | None, same_subject: str, rows: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """`kin` and `partner` of the rows of some scans against all columns."""
    scan_C = torch.arange(N, device=device).repeat_interleave(V)
    place_C = torch.arange(N * V, device=device)
    anchors = slice(rows[0] * V, rows[1] * V)
    same_scan = scan_C[anchors, None] == scan_C[None, :]
    person_C = scan_C if subject is None else subject.repeat_interleave(V)
    same_person = person_C[anchors, None] == person_C[None, :]
    not_itself = place_C[anchors, None] != place_C[None, :]
    if same_subject == "positive":
        return same_person, not_itself
    return same_scan, not_itself & (same_scan | ~same_person)


def _among_nearest(cosine_RC: Tensor, partner_RC: Tensor, N: int, V: int, setting: Setting) -> Tensor:
    """bool [R, C]: among the most similar partners of the anchor, as many as repel at this moment of the training."""
    if not setting.repel_nearest:
        return torch.ones_like(partner_RC)
    scans = round(N + (setting.repel_nearest - N) * min(max(setting.progress, 0.0), 1.0))
    count = V * max(scans, 1)
    if count >= cosine_RC.shape[1]:
        return torch.ones_like(partner_RC)
    similar_RC = cosine_RC.detach().masked_fill(~partner_RC, -torch.inf)
    chosen = similar_RC.topk(count, dim=1).indices
    return torch.zeros_like(partner_RC).scatter(1, chosen, True)


def _site_bias(cosine_RC: Tensor, kin_RC: Tensor, V: int, setting: Setting, rows: tuple[int, int]) -> Tensor | None:
    if setting.site_repulsion == 1:
        return None
    if setting.site is None:
        raise ValueError("site_repulsion: expected the site of every scan")
    above_zero("site_repulsion", setting.site_repulsion)
    site_C = setting.site.repeat_interleave(V)
    same_RC = (site_C[rows[0] * V : rows[1] * V, None] == site_C[None, :]) & ~kin_RC
    bias = torch.log(torch.tensor(setting.site_repulsion, dtype=torch.float64)).to(cosine_RC)
    return same_RC.to(cosine_RC.dtype) * bias


@torch.no_grad()
def _balancing_weights(age_years: Tensor, power: float) -> Tensor:
    """[N], mean 1: (share of the batch within about 2 years of a scan's age)^-power."""
    density = []
    for first in range(0, len(age_years), _BLOCK):
        distance = age_years[first : first + _BLOCK, None] - age_years[None, :]
        density.append(KERNELS["rbf"](distance, 2.0).exp().mean(dim=1))
    weight_N = torch.cat(density).pow(-power)
    return weight_N / weight_N.mean()


def _unit_length(z_MD: Tensor) -> Tensor:
    length_M1 = torch.linalg.vector_norm(z_MD, dim=1, keepdim=True)
    dead_M1 = length_M1 < 1e-12  # false for NaN, which must reach the loss
    # dividing a dead embedding by a small epsilon would multiply its gradient by 1 / epsilon
    return torch.where(dead_M1, 0.0, z_MD / torch.where(dead_M1, 1.0, length_M1))


def _exact(age_years: Tensor) -> Tensor:
    """Ages keep their own precision until they are subtracted: float32 distances of float64 ages lose nothing."""
    return age_years.to(torch.promote_types(age_years.dtype, torch.float32))


def over_temperature(cosine_RC: Tensor, temperature: float) -> Tensor:
    """s = c / tau; ConfigError unless tau is above 0."""
    above_zero("temperature", temperature)
    return cosine_RC / temperature


def above_zero(key: str, value: float) -> None:
    """ConfigError naming the key of LossConfig unless the value is above 0."""
    if not value > 0:
        raise ConfigError(f"loss.{key}={value}: expected a number above 0")


def one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    """ConfigError naming the key of LossConfig and the nearest known value unless the value is known."""
    if value not in known:
        raise ConfigError(f"loss.{key}={value}: unknown{nearest(value, known)}")
