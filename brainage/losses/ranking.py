"""Contrastive losses that rank: what repels an anchor depends on which positive it is compared with.

Shapes as in `pairs`. Both need, for every pair (i, k), log sum exp(q_it) over the columns t further in age from i than
k is. Written down, that is a tensor of M^3; here a row is sorted by age distance once, a cumulative log-sum-exp runs
from the furthest to the nearest, and each k looks up how many columns lie beyond it: M^2 memory, M^2 log M time. What
is further is decided on the distances in float64, never on kernel weights: those underflow and make false ties.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brainage.losses.pairs import (
    Pairs,
    Setting,
    above_zero,
    age_distance,
    kernel_weights,
    log_kernel,
    make_pairs,
    over_temperature,
)


def thr_loss(
    z: Tensor,
    age_years: Tensor,
    *,
    subject: Tensor | None = None,
    temperature: float = 0.1,
    kernel: str = "rbf",
    sigma_years: float = 2.0,
    same_subject: str = "exclude",
    as_published_code: bool = False,
    setting: Setting = Setting(),  # noqa: B008 (a constant)
) -> Tensor:
    """L^thr: a positive k repels only those who are further in age from the anchor than k is.

        - sum_{k in A(i)} [w_ik / sum_t w_it] log( exp(s_ik) / sum_{t in A(i), |y_i - y_t| > |y_i - y_k|} exp(s_it) )

    Barbano et al. 2023 (arXiv 2211.08326); every kernel falls with the age distance, so w_it < w_ik says the same. The
    exact normaliser is not settled by the text. It can be negative. A positive beyond whom nobody lies (the furthest,
    everybody where all ages are equal) contributes nothing, and the weights are not divided anew.

    `as_published_code` gives what the code published with that paper computes (up to its factor tau / 0.07), so that
    its results can be repeated: it compares w_jk < w_ji, so that the anchor has one denominator in which column j
    counts as often as there are columns further from j than the anchor is: the nearest ages repel most. There the
    comparison is made on the kernel weights in the precision of the embeddings, as in the code: in float32 an rbf of
    2 years is 0 beyond 29 years, and such pairs do not repel at all. Where that code gives NaN (all ages equal) the
    anchor gives 0.

    z [N, V, D], age_years [N], subject [N] or None -> scalar. Raises ConfigError for values without meaning.

    >>> z = torch.eye(4)[:, None]  # orthogonal: s = 0, so that every denominator is a count
    >>> ages = torch.tensor([20.0, 21.0, 22.0, 60.0])
    >>> round(thr_loss(z, ages).item(), 4)  # log 2 for the nearest of 20, 22 and 60, whose weights are .593, .593 and 1
    0.3787
    """
    pairs = make_pairs(z, age_years, subject, same_subject, setting)
    similarity_RC = over_temperature(pairs.cosine, temperature)
    log_kernel_RC = log_kernel(pairs, kernel, sigma_years)
    weight_RC = kernel_weights(pairs, log_kernel_RC)
    if as_published_code:
        counted_RC = similarity_RC + _times_nearer(pairs, z, age_years, subject, same_subject, kernel, sigma_years)
        repelled_R = pairs.repulsion(counted_RC).logsumexp(dim=1)
        any_R = (pairs.repels & counted_RC.isfinite()).any(dim=1)
        loss_R = torch.where(any_R, repelled_R - (weight_RC * similarity_RC).sum(dim=1), 0.0)
        return pairs.mean(torch.where(weight_RC.any(dim=1), loss_R, 0.0))
    repelled_RC, any_RC = _beyond(pairs, pairs.repulsion(similarity_RC), age_distance(pairs), ties=False)
    return pairs.mean((weight_RC * torch.where(any_RC, repelled_RC - similarity_RC, 0.0)).sum(dim=1))


def rnc_loss(
    z: Tensor,
    age_years: Tensor,
    *,
    subject: Tensor | None = None,
    temperature: float = 2.0,
    same_subject: str = "exclude",
    setting: Setting = Setting(),  # noqa: B008 (a constant)
) -> Tensor:
    """Rank-N-Contrast: for every pair (i, j), nobody who is at least as far in age from i may be nearer in embedding.

        mean over j in A(i) of  - log( exp(q_ij) / sum_{k in A(i), |y_i - y_k| >= |y_i - y_j|} exp(q_ik) )

    with q_ij = -|z_i - z_j| / tau, the Euclidean distance of embeddings that are not normalised; Zha et al., NeurIPS
    2023, equations 1 and 2 (tau = 2). Ties in age distance are in each other's denominators. Their mean over all pairs
    is this mean over anchors whenever each anchor has as many partners, that is, when no person occurs twice.

    z [N, V, D], age_years [N], subject [N] or None -> scalar. Raises ConfigError for values without meaning.

    >>> z = torch.tensor([[[0.0]], [[2.0]], [[4.0]]])  # people in order of age
    >>> round(rnc_loss(z, torch.tensor([20.0, 30.0, 40.0])).item(), 4)  # (2 log(1 + 1 / e) + 2 log 2) / 6
    0.3355
    """
    above_zero("temperature", temperature)
    pairs = make_pairs(z, age_years, subject, same_subject, setting)
    # the exact form: by a matrix product, near embeddings would lose their digits
    distance_RC = torch.cdist(pairs.anchor_z, pairs.column_z, compute_mode="donot_use_mm_for_euclid_dist")
    similarity_RC = -distance_RC / temperature
    repelled_RC, any_RC = _beyond(pairs, pairs.repulsion(similarity_RC), age_distance(pairs), ties=True)
    partners_R = pairs.partner.sum(dim=1).clamp_min(1)
    pair_losses_RC = torch.where(any_RC & pairs.partner, repelled_RC - similarity_RC, 0.0)
    return pairs.mean(pair_losses_RC.sum(dim=1) / partners_R)


def _beyond(pairs: Pairs, repulsion_RC: Tensor, distance_RC: Tensor, *, ties: bool) -> tuple[Tensor, Tensor]:
    """log sum exp(repulsion_it) over the t in A(i) further from i than k is, for every (i, k); and whether any repels.

    With `ties` those as far as k count as well, k itself among them.
    """
    distance_RC = distance_RC.masked_fill(~pairs.partner, -1.0)  # never further than anybody
    order_RC = distance_RC.argsort(dim=1, descending=True)
    furthest_first_RC = repulsion_RC.gather(1, order_RC).logcumsumexp(dim=1)
    repelling_RC = pairs.repels.gather(1, order_RC).cumsum(dim=1)
    ascending_RC = distance_RC.gather(1, order_RC).flip(1).contiguous()
    nearer_RC = torch.searchsorted(ascending_RC, distance_RC, right=not ties)
    last_RC = distance_RC.shape[1] - nearer_RC - 1  # place of the nearest of those beyond k; -1: nobody
    place_RC = last_RC.clamp_min(0)
    any_RC = (last_RC >= 0) & (repelling_RC.gather(1, place_RC) > 0) & pairs.partner
    return furthest_first_RC.gather(1, place_RC), any_RC


@torch.no_grad()
def _times_nearer(
    pairs: Pairs, z: Tensor, age_years: Tensor, subject: Tensor | None, same_subject: str, kernel: str, sigma: float
) -> Tensor:
    """log of how many columns k have w_jk < w_ji, for every (i, j) [R, C]; -inf where there is none.

    Asked from the column's side: a row of the sorted weights of every column is needed, whatever the rows.
    """
    everybody = make_pairs(z.detach(), age_years, subject, same_subject, Setting())
    weight_CC = log_kernel(everybody, kernel, sigma).exp()
    ascending_CC = weight_CC.sort(dim=1).values
    weight_CR = log_kernel(pairs, kernel, sigma).exp().T.contiguous()  # kernels are symmetric: w_ji
    return torch.searchsorted(ascending_CC, weight_CR).T.to(pairs.cosine.dtype).log()
