"""Contrastive losses whose targets are ages.

Shapes: N scans, V views of each, D embedding, M = N V embeddings with a scan's views adjacent;
R anchors (rows) against C columns of a block of pairs, on one process R = C = M.

All have one form. Anchor i is drawn to the columns of A(i) by attraction weights p_ik that sum to 1 and pushed away
from them by a repulsion q_it, and the loss is the mean over all M anchors of

    loss_i = log sum_{t in A(i)} exp(q_it) - sum_{k in A(i)} p_ik s_ik

| loss | p_ik | q_it |
|---|---|---|
| infonce | uniform over the other views of the scan | s_it |
| supcon | uniform over the embeddings of the same age bin | s_it |
| yaware | w_ik / sum_t w_it | s_it |
| exp | w_ik / sum_t w_it | s_it (1 - w_it) |

with c_it = z_i . z_t of L2-normalised embeddings, s_it = c_it / tau, w_it = K(y_i - y_t), y in years.

What holds for every loss here:
- z [N, V, D] may be un-normalised and of any floating type: it is cast to float32 (float64 stays) and normalised here.
  A zero embedding stays zero and gets no gradient. The result is float32 (float64 for float64).
- A(i) leaves out the anchor itself. The other views of its scan stay, with the kernel's peak as weight.
- `subject` [N] are integer ids of persons. Other scans of the anchor's person are left out of A(i)
  (`same_subject="exclude"`), or count as if they were of the same age ("positive"). Without ids each scan is a person.
- An anchor without anything to be drawn to contributes 0 to the mean, which still divides by M.
- No value is read back to the host, shapes depend on N, V, D alone, and memory is a few [R, C] blocks.
- `setting` says which anchors are computed (across ranks, or in chunks) and holds what goes beyond the formulas.
L^thr and Rank-N-Contrast, whose repulsion depends on the positive as well, are in `ranking`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor

from brainage.config import LossConfig, nearest
from brainage.errors import ConfigError
from brainage.losses.chunks import mean_over_chunks
from brainage.losses.pairs import (
    Pairs,
    Setting,
    above_zero,
    kernel_weights,
    log_kernel,
    log_kernel_sums,
    make_pairs,
    one_of,
    over_temperature,
    uniform_weights,
)
from brainage.losses.ranking import rnc_loss, thr_loss


def exp_loss(
    z: Tensor,
    age_years: Tensor,
    *,
    subject: Tensor | None = None,
    temperature: float = 0.1,
    kernel: str = "rbf",
    sigma_years: float = 2.0,
    similarity: str = "cosine",
    same_subject: str = "exclude",
    setting: Setting = Setting(),  # noqa: B008 (a constant)
) -> Tensor:
    """L^exp: people of like age attract each other, and repulsion grows with the age distance.

        - sum_{k in A(i)} [w_ik / sum_{t in A(i)} w_it] log( exp(s_ik) / sum_{t in A(i)} exp(s_it (1 - w_it)) )

    Barbano et al. 2023 (arXiv 2211.08326) and 2025 (arXiv 2507.01794). Whether t = k stays in the denominator is not
    settled by the text; here it stays, as in the published code. That code subtracts the row maximum 1 / tau from s
    before it multiplies by 1 - w, which is harmless for a softmax but not here: it trains `similarity="shifted"`, that
    is s = (c - 1) / tau = -|z_i - z_t|^2 / (2 tau). The gradients of the two differ wherever ages do; with all ages
    equal the values differ by exactly 1 / tau (rbf, cauchy). The code also scales by tau / 0.07; here nothing does.

    The gaussian kernel is not the rbf here, see `kernels.log_gaussian`; below a sigma of 0.399 years its peak exceeds 1
    and would turn repulsion into attraction, which is refused.

    z [N, V, D], age_years [N], subject [N] or None -> scalar. Raises ConfigError for values without meaning.

    >>> z, age_years = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]), torch.tensor([40.0, 40.0])
    >>> round(exp_loss(z, age_years).item(), 4)  # w = 1, s = 10: log exp(10 (1 - 1)) - 10
    -10.0
    >>> round(exp_loss(z, age_years, similarity="shifted").item(), 4)  # s = 0
    0.0
    """
    one_of("similarity", similarity, ("cosine", "shifted"))
    if kernel == "gaussian" and sigma_years * math.sqrt(2 * math.pi) < 1:
        raise ConfigError(
            f"loss.sigma_years={sigma_years}: the gaussian kernel peaks above 1 there, so that L^exp attracts what it"
            " should repel; expected 0.4 or more, or loss.kernel=rbf"
        )
    pairs = make_pairs(z, age_years, subject, same_subject, setting)
    similarity_RC = over_temperature(pairs.cosine - (1.0 if similarity == "shifted" else 0.0), temperature)
    log_kernel_RC = log_kernel(pairs, kernel, sigma_years)
    repulsion_RC = similarity_RC * -torch.expm1(log_kernel_RC)  # s (1 - w), exact for w near 1
    return _mean_loss(similarity_RC, kernel_weights(pairs, log_kernel_RC), repulsion_RC, pairs)


def yaware_loss(
    z: Tensor,
    age_years: Tensor,
    *,
    subject: Tensor | None = None,
    temperature: float = 0.1,
    kernel: str = "rbf",
    sigma_years: float = 2.0,
    same_subject: str = "exclude",
    normalise: str = "row",
    setting: Setting = Setting(),  # noqa: B008 (a constant)
) -> Tensor:
    """y-Aware InfoNCE: every other embedding is a positive to the degree its age is like the anchor's.

        - sum_{k in A(i)} [w_ik / sum_{t in A(i)} w_it] log( exp(s_ik) / sum_{t in A(i)} exp(s_it) )

    Dufumier et al., MICCAI 2021. Weights are divided by the sum over the anchor's own columns, as in the equation; the
    paper's code, and a later library, divide along the other axis, w_ik / sum_t w_tk, so that anchors weigh 0.5 to 1.2
    instead of 1: `normalise="column"` (their value is twice this mean). Kernels that differ by a factor (rbf, gaussian)
    give the same loss.

    z [N, V, D], age_years [N], subject [N] or None -> scalar. Raises ConfigError for values without meaning.

    >>> z = torch.eye(3)[:, None]  # three orthogonal embeddings: every log is log(1 / 2)
    >>> round(yaware_loss(z, torch.tensor([20.0, 40.0, 80.0])).item(), 4)
    0.6931
    """
    one_of("normalise", normalise, ("row", "column"))
    pairs = make_pairs(z, age_years, subject, same_subject, setting)
    similarity_RC = over_temperature(pairs.cosine, temperature)
    log_kernel_RC = log_kernel(pairs, kernel, sigma_years)
    if normalise == "column":
        sums_C = log_kernel_sums(age_years, z.shape[1], subject, same_subject, kernel, sigma_years)
        shares_RC = (log_kernel_RC - sums_C.to(log_kernel_RC)[None, :]).masked_fill(~pairs.partner, -torch.inf)
        weight_RC = shares_RC.exp()
    else:
        weight_RC = kernel_weights(pairs, log_kernel_RC)
    return _mean_loss(similarity_RC, weight_RC, similarity_RC, pairs)


def infonce_loss(
    z: Tensor,
    age_years: Tensor,
    *,
    subject: Tensor | None = None,
    temperature: float = 0.1,
    same_subject: str = "exclude",
    setting: Setting = Setting(),  # noqa: B008 (a constant)
) -> Tensor:
    """InfoNCE (SimCLR's NT-Xent): only the other views of the scan are positives; ages are not used.

        mean over the other views k of  - log( exp(s_ik) / sum_{t in A(i)} exp(s_it) )

    Chen et al., ICML 2020, equation 1, which has V = 2; more views are averaged. With `same_subject="positive"` the
    views of the person's other scans are positives as well.

    z [N, V, D] with V >= 2, age_years [N], subject [N] or None -> scalar. Raises ConfigError for a single view.

    >>> z = torch.eye(2)[:, None].expand(2, 2, 2)  # two scans, equal views, orthogonal people
    >>> round(infonce_loss(z, torch.tensor([20.0, 40.0]), temperature=1.0).item(), 4)  # log(1 + 2 / e)
    0.5514
    """
    if z.ndim == 3 and z.shape[1] < 2:
        raise ConfigError(
            "loss.name=infonce: expected augment.views of 2 or more, since the other view is the positive"
        )
    pairs = make_pairs(z, age_years, subject, same_subject, setting)
    similarity_RC = over_temperature(pairs.cosine, temperature)
    return _mean_loss(similarity_RC, uniform_weights(pairs, pairs.kin), similarity_RC, pairs)


def supcon_loss(
    z: Tensor,
    age_years: Tensor,
    *,
    subject: Tensor | None = None,
    temperature: float = 0.1,
    bin_years: float = 2.0,
    same_subject: str = "exclude",
    setting: Setting = Setting(),  # noqa: B008 (a constant)
) -> Tensor:
    """SupCon with age bins as classes: every embedding of the anchor's bin is a positive.

        mean over k in A(i) of i's bin of  - log( exp(s_ik) / sum_{t in A(i)} exp(s_it) ),  bin = floor(y / bin_years)

    Khosla et al., NeurIPS 2020, equation 2 (the mean outside the logarithm). Bins start at 0 years. One view and nobody
    else in the bin: the anchor has no positive and contributes 0, where a plain division gives NaN.

    z [N, V, D], age_years [N], subject [N] or None -> scalar. Raises ConfigError for values without meaning.

    >>> z = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])  # ages 40 and 41 share a bin, 60 is alone
    >>> round(supcon_loss(z, torch.tensor([40.0, 41.0, 60.0]), temperature=1.0).item(), 4)  # 2/3 log(1 + 1 / e)
    0.2088
    """
    above_zero("bin_years", bin_years)
    pairs = make_pairs(z, age_years, subject, same_subject, setting)
    similarity_RC = over_temperature(pairs.cosine, temperature)
    bin_R, bin_C = (torch.floor(years / bin_years) for years in (pairs.anchor_age_years, pairs.column_age_years))
    weight_RC = uniform_weights(pairs, (bin_R[:, None] == bin_C[None, :]) | pairs.kin)
    return _mean_loss(similarity_RC, weight_RC, similarity_RC, pairs)


CONTRASTIVE: dict[str, Callable[..., Tensor]] = {
    "exp": exp_loss,
    "thr": thr_loss,
    "yaware": yaware_loss,
    "infonce": infonce_loss,
    "supcon": supcon_loss,
    "rnc": rnc_loss,
}


def contrastive_loss(config: LossConfig) -> Callable[..., Tensor]:
    """The loss of a configuration, called as `loss(z [N, V, D], age_years [N], subject [N] | None)` -> scalar.

    Every keyword of the function that is a key of the configuration takes its value from there: the signature is the
    configuration. Further keywords of the call: `site` [N], `progress` (share of the training done, 0 to 1: the kernel
    width goes from `sigma_start_years` to `sigma_years` in equal ratios), and `rows`, the scans whose embeddings are
    the anchors. With `chunk_rows` so many scans' rows are computed at a time, forward and backward, for memory's sake.

    Raises ConfigError for a name that is not in CONTRASTIVE.
    """
    if config.name not in CONTRASTIVE:
        raise ConfigError(f"loss.name={config.name}: not a contrastive loss{nearest(config.name, list(CONTRASTIVE))}")
    function = CONTRASTIVE[config.name]
    values = {key: getattr(config, key) for key in inspect.signature(function).parameters if hasattr(config, key)}
    extras = {key: getattr(config, key) for key in Setting._fields if hasattr(config, key)}

    def loss(
        z: Tensor,
        age_years: Tensor,
        subject: Tensor | None = None,
        *,
        site: Tensor | None = None,
        progress: float = 1.0,
        rows: tuple[int, int] | None = None,
    ) -> Tensor:
        if config.sigma_start_years and "sigma_years" in values:
            start, end = config.sigma_start_years, config.sigma_years
            values["sigma_years"] = start * (end / start) ** min(max(progress, 0.0), 1.0)

        def part(z: Tensor, first: int, last: int) -> Tensor:
            setting = Setting(rows=(first, last), site=site, progress=progress, **extras)
            return function(z, age_years, subject=subject, setting=setting, **values)

        first, last = rows or (0, len(age_years))
        if not config.chunk_rows or config.chunk_rows >= last - first:
            return part(z, first, last)
        return mean_over_chunks(part, z, (first, last), config.chunk_rows)

    return loss


def _mean_loss(similarity_RC: Tensor, weight_RC: Tensor, repulsion_RC: Tensor, pairs: Pairs) -> Tensor:
    """Mean over the anchors of sum_k p_ik (log sum_{t in A(i)} exp(q_it) - s_ik); 0 where nothing attracts."""
    repelled_R = pairs.repulsion(repulsion_RC).logsumexp(dim=1)
    attracted_R = (weight_RC * similarity_RC).sum(dim=1)
    drawn_R = weight_RC.any(dim=1) & pairs.repels.any(dim=1)
    return pairs.mean(torch.where(drawn_R, weight_RC.sum(dim=1) * repelled_R - attracted_R, 0.0))
