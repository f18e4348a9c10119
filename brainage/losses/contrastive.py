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
- No value is read back to the host, shapes depend on N, V, D alone, and memory is a few [M, M] blocks.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from brainage.config import LossConfig, nearest
from brainage.errors import ConfigError
from brainage.losses.kernels import KERNELS


class Pairs(NamedTuple):
    """Anchors against columns, all that the formulas need to know of a batch."""

    cosine: Tensor  # [R, C]
    anchor_age_years: Tensor  # [R]
    column_age_years: Tensor  # [C]
    kin: Tensor  # [R, C] bool: same scan, and the same person where that counts as a positive
    partner: Tensor  # [R, C] bool: the column is in A(i)


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
    _one_of("similarity", similarity, ("cosine", "shifted"))
    if kernel == "gaussian" and sigma_years * math.sqrt(2 * math.pi) < 1:
        raise ConfigError(
            f"loss.sigma_years={sigma_years}: the gaussian kernel peaks above 1 there, so that L^exp attracts what it"
            " should repel; expected 0.4 or more, or loss.kernel=rbf"
        )
    pairs = _pairs(z, age_years, subject, same_subject)
    similarity_RC = _over_temperature(pairs.cosine - (1.0 if similarity == "shifted" else 0.0), temperature)
    log_kernel_RC = _log_kernel(pairs, kernel, sigma_years)
    repulsion_RC = similarity_RC * -torch.expm1(log_kernel_RC)  # s (1 - w), exact for w near 1
    return _anchor_losses(similarity_RC, _kernel_weights(pairs, log_kernel_RC), repulsion_RC, pairs).mean()


def yaware_loss(
    z: Tensor,
    age_years: Tensor,
    *,
    subject: Tensor | None = None,
    temperature: float = 0.1,
    kernel: str = "rbf",
    sigma_years: float = 2.0,
    same_subject: str = "exclude",
) -> Tensor:
    """y-Aware InfoNCE: every other embedding is a positive to the degree its age is like the anchor's.

        - sum_{k in A(i)} [w_ik / sum_{t in A(i)} w_it] log( exp(s_ik) / sum_{t in A(i)} exp(s_it) )

    Dufumier et al., MICCAI 2021. Weights are divided by the sum over the anchor's own columns, as in the equation; the
    paper's code divides along the other axis, so that anchors weigh 0.5 to 1.2 instead of 1, and returns twice the
    mean. Kernels that differ by a factor (rbf, gaussian) give the same loss.

    z [N, V, D], age_years [N], subject [N] or None -> scalar. Raises ConfigError for values without meaning.

    >>> z = torch.eye(3)[:, None]  # three orthogonal embeddings: every log is log(1 / 2)
    >>> round(yaware_loss(z, torch.tensor([20.0, 40.0, 80.0])).item(), 4)
    0.6931
    """
    pairs = _pairs(z, age_years, subject, same_subject)
    similarity_RC = _over_temperature(pairs.cosine, temperature)
    weight_RC = _kernel_weights(pairs, _log_kernel(pairs, kernel, sigma_years))
    return _anchor_losses(similarity_RC, weight_RC, similarity_RC, pairs).mean()


def infonce_loss(
    z: Tensor,
    age_years: Tensor,
    *,
    subject: Tensor | None = None,
    temperature: float = 0.1,
    same_subject: str = "exclude",
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
    pairs = _pairs(z, age_years, subject, same_subject)
    similarity_RC = _over_temperature(pairs.cosine, temperature)
    return _anchor_losses(similarity_RC, _uniform_weights(pairs, pairs.kin), similarity_RC, pairs).mean()


def supcon_loss(
    z: Tensor,
    age_years: Tensor,
    *,
    subject: Tensor | None = None,
    temperature: float = 0.1,
    bin_years: float = 2.0,
    same_subject: str = "exclude",
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
    _above_zero("bin_years", bin_years)
    pairs = _pairs(z, age_years, subject, same_subject)
    similarity_RC = _over_temperature(pairs.cosine, temperature)
    bin_R, bin_C = (torch.floor(years / bin_years) for years in (pairs.anchor_age_years, pairs.column_age_years))
    weight_RC = _uniform_weights(pairs, (bin_R[:, None] == bin_C[None, :]) | pairs.kin)
    return _anchor_losses(similarity_RC, weight_RC, similarity_RC, pairs).mean()


CONTRASTIVE: dict[str, Callable[..., Tensor]] = {
    "exp": exp_loss,
    "yaware": yaware_loss,
    "infonce": infonce_loss,
    "supcon": supcon_loss,
}


def contrastive_loss(config: LossConfig) -> Callable[..., Tensor]:
    """The loss named by `config.name`, called as `loss(z [N, V, D], age_years [N], subject [N] | None)` -> scalar.

    Every keyword of the function that is a key of the configuration takes its value from there: the signature is the
    configuration. Raises ConfigError for a name that is not in CONTRASTIVE.
    """
    if config.name not in CONTRASTIVE:
        raise ConfigError(f"loss.name={config.name}: not a contrastive loss{nearest(config.name, list(CONTRASTIVE))}")
    function = CONTRASTIVE[config.name]
    values = {key: getattr(config, key) for key in inspect.signature(function).parameters if hasattr(config, key)}

    def loss(z: Tensor, age_years: Tensor, subject: Tensor | None = None) -> Tensor:
        return function(z, age_years, subject=subject, **values)

    return loss


def _pairs(z: Tensor, age_years: Tensor, subject: Tensor | None, same_subject: str) -> Pairs:
    _one_of("same_subject", same_subject, ("exclude", "positive"))
    if z.ndim != 3 or age_years.shape != z.shape[:1] or (subject is not None and subject.shape != z.shape[:1]):
        found = [list(x.shape) for x in (z, age_years, subject) if x is not None]
        raise ValueError(f"z, age_years, subject: expected shapes [N, V, D], [N], [N], found {found}")
    N, V, D = z.shape
    z_MD = _unit_length(z.reshape(N * V, D))
    scan_M = torch.arange(N, device=z.device).repeat_interleave(V)
    same_scan = scan_M[:, None] == scan_M[None, :]
    person_M = scan_M if subject is None else subject.repeat_interleave(V)
    same_person = person_M[:, None] == person_M[None, :]
    not_itself = ~torch.eye(N * V, dtype=torch.bool, device=z.device)
    positive = same_subject == "positive"
    # ages keep their own precision until they are subtracted: float32 distances of float64 ages lose nothing
    age_years_M = age_years.to(torch.promote_types(age_years.dtype, torch.float32)).repeat_interleave(V)
    # autocast would make this product bf16, and 1 / tau magnifies its error; on a GPU so does
    # set_float32_matmul_precision("high"), which nothing here can undo (TF32 convolutions have a switch of their own)
    with torch.autocast(z.device.type, enabled=False):
        cosine_MM = z_MD @ z_MD.T
    return Pairs(
        cosine=cosine_MM,
        anchor_age_years=age_years_M,
        column_age_years=age_years_M,
        kin=same_person if positive else same_scan,
        partner=not_itself if positive else not_itself & (same_scan | ~same_person),
    )


def _unit_length(z_MD: Tensor) -> Tensor:
    z_MD = z_MD.to(torch.promote_types(z_MD.dtype, torch.float32))
    length_M1 = torch.linalg.vector_norm(z_MD, dim=1, keepdim=True)
    dead_M1 = length_M1 < 1e-12  # false for NaN, which must reach the loss
    # dividing a dead embedding by a small epsilon would multiply its gradient by 1 / epsilon
    return torch.where(dead_M1, 0.0, z_MD / torch.where(dead_M1, 1.0, length_M1))


def _log_kernel(pairs: Pairs, kernel: str, sigma_years: float) -> Tensor:
    _one_of("kernel", kernel, tuple(KERNELS))
    _above_zero("sigma_years", sigma_years)
    distance_years_RC = (pairs.anchor_age_years[:, None] - pairs.column_age_years[None, :]).to(pairs.cosine.dtype)
    return KERNELS[kernel](distance_years_RC.masked_fill(pairs.kin, 0.0), sigma_years)


def _kernel_weights(pairs: Pairs, log_kernel_RC: Tensor) -> Tensor:
    """w_ik / sum_t w_it over A(i); rows sum to 1, or to 0 where A(i) is empty."""
    lowest = torch.finfo(log_kernel_RC.dtype).min  # -inf would make NaN of an empty row
    return log_kernel_RC.masked_fill(~pairs.partner, lowest).softmax(dim=1) * pairs.partner


def _uniform_weights(pairs: Pairs, positive_RC: Tensor) -> Tensor:
    """1 / number of positives in A(i); rows sum to 1, or to 0 where there is none."""
    positive_RC = (positive_RC & pairs.partner).to(pairs.cosine.dtype)
    return positive_RC / positive_RC.sum(dim=1, keepdim=True).clamp_min(1.0)


def _anchor_losses(similarity_RC: Tensor, weight_RC: Tensor, repulsion_RC: Tensor, pairs: Pairs) -> Tensor:
    """log sum_{t in A(i)} exp(q_it) - sum_k p_ik s_ik for each anchor [R]; 0 where nothing attracts it."""
    lowest = torch.finfo(repulsion_RC.dtype).min
    repelled_R = repulsion_RC.masked_fill(~pairs.partner, lowest).logsumexp(dim=1)
    attracted_R = (weight_RC * similarity_RC).sum(dim=1)
    return torch.where(weight_RC.any(dim=1), repelled_R - attracted_R, 0.0)


def _over_temperature(cosine_RC: Tensor, temperature: float) -> Tensor:
    _above_zero("temperature", temperature)
    return cosine_RC / temperature


def _above_zero(key: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"loss.{key}={value}: expected a number above 0")


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"loss.{key}={value}: unknown{nearest(value, known)}")
