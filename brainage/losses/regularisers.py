"""Terms beside a loss that shape the features: order and contrast for networks that predict age, and sites mixed.

Legend: M rows of the global batch (scans, or their views), R of them anchors, F features. As in the contrastive losses,
each term is a mean over the anchors of `rows`, so that the parts of several ranks add up. float32 (float64 stays).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from brainage.losses.pairs import above_zero

Rows = tuple[int, int]
PUSH_PER_YEAR = 0.01  # ConR: how the weight of a negative grows with its age distance, as in the authors' code


def order_regulariser(features: Tensor, age_years: Tensor, *, rows: Rows | None = None) -> Tensor:
    """ORDER: features lie the further apart, the further apart the ages.

        - mean over pairs of  (|y_i - y_j| - m) / max |y - y|  |f_i - f_j|_1,   m = min |y - y|, f of unit length

    Shah et al., WACV 2024 (arXiv 2403.10522), with Manhattan distance, which they found best; they add it to a
    classification loss. Without two different ages it is 0.

    features [M, F], age_years [M] -> scalar, 0 or below.

    >>> f = torch.eye(3)  # orthogonal: a distance of 2 each
    >>> round(order_regulariser(f, torch.tensor([20.0, 30.0, 40.0])).item(), 4)  # weights 0, 0 and 1/2
    -0.3333
    """
    f_MF, years_M = _prepared(features, age_years)
    if len(f_MF) < 2:
        return f_MF.sum() * 0.0
    first, last = rows or (0, len(f_MF))
    gaps = years_M.sort().values.diff()
    widest = years_M.max() - years_M.min()
    weight_RM = (years_M[first:last, None] - years_M[None, :]).abs() - gaps.min()
    weight_RM = (weight_RM / torch.where(widest > 0, widest, 1.0)).masked_fill(_itself(first, last, f_MF), 0.0)
    distance_RM = torch.cdist(f_MF[first:last], f_MF, p=1.0)
    return -(weight_RM * distance_RM).sum(dim=1).mean() / (len(f_MF) - 1)


def conr_regulariser(
    features: Tensor,
    age_years: Tensor,
    predicted_years: Tensor,
    *,
    window_years: float = 1.0,
    temperature: float = 0.1,
    rows: Rows | None = None,
) -> Tensor:
    """ConR: people of other ages whom the network takes for people of the anchor's age are pushed away from it.

        mean over positives j of - log( exp(s_ij) / [ sum_{p positive} exp(s_ip) + sum_{n negative} S_in exp(s_in) ] )

    Positives are at most `window_years` from the anchor in age; negatives are not, though their predictions are;
    S_in = exp(0.01 |y_i - y_n|); s is the cosine over the temperature. An anchor without a positive or without a
    negative gives 0. Keramati et al., ICLR 2024 (arXiv 2309.06651), for one feature vector a sample. Their code adds
    exp(0) for every column that is no positive to the denominator; here stands the equation.

    features [M, F], age_years and predicted_years [M] -> scalar, 0 or above. No gradient reaches the predictions.

    >>> f = torch.eye(3)  # s = 0; 20 and 21 are positives of each other, 60 is taken for 20 by both
    >>> ages, predicted = torch.tensor([20.0, 21.0, 60.0]), torch.tensor([20.0, 20.5, 20.0])
    >>> round(conr_regulariser(f, ages, predicted).item(), 4)  # 2/3 of about log(1 + exp(0.395))
    0.6067
    """
    above_zero("temperature", temperature)
    above_zero("regulariser_window_years", window_years)
    f_MF, years_M = _prepared(features, age_years)
    first, last = rows or (0, len(f_MF))
    itself_RM = _itself(first, last, f_MF)
    distance_RM = (years_M[first:last, None] - years_M[None, :]).abs()
    predicted_M = predicted_years.detach().to(years_M.dtype)
    near_RM = (predicted_M[first:last, None] - predicted_M[None, :]).abs() <= window_years
    positive_RM = (distance_RM <= window_years) & ~itself_RM
    negative_RM = (distance_RM > window_years) & near_RM
    similarity_RM = f_MF[first:last] @ f_MF.T / temperature
    pushed_RM = similarity_RM + PUSH_PER_YEAR * distance_RM * negative_RM
    lowest = torch.finfo(pushed_RM.dtype).min
    denominator_R = pushed_RM.masked_fill(~(positive_RM | negative_RM), lowest).logsumexp(dim=1)
    counted_R = positive_RM.any(dim=1) & negative_RM.any(dim=1)
    attracted_R = (similarity_RM * positive_RM).sum(dim=1) / positive_RM.sum(dim=1).clamp_min(1)
    return torch.where(counted_R, denominator_R - attracted_R, 0.0).mean()


def site_dependence(z: Tensor, site: Tensor, *, rows: Rows | None = None) -> Tensor:
    """How far the embeddings of each site lie from those of all: 0 when site cannot be told.

        sum over sites of  p_s^2 MMD^2(z of site s, z of all),   p_s the site's share of the batch

    the squared maximum mean discrepancy (Gretton et al., JMLR 2012) under the kernel exp(-|z_i - z_j|^2 / 2) of
    unit-length embeddings; the sum is the Hilbert-Schmidt independence criterion of embedding and site (Gretton et al.,
    ALT 2005). Sites whose people differ in age are told apart by age as well: a large weight then costs accuracy.

    z [M, D], site [M] integer ids -> scalar, 0 or above.

    >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> round(site_dependence(z, torch.tensor([0, 1])).item(), 4)  # (1 - 1 / e) / 4
    0.158
    >>> round(site_dependence(z.repeat(2, 1), torch.tensor([0, 0, 1, 1])).item(), 4)
    0.0
    """
    z_MD, _ = _prepared(z, site)
    first, last = rows or (0, len(z_MD))
    same_RM = (site[first:last, None] == site[None, :]).to(z_MD.dtype)
    share_M = (site[:, None] == site[None, :]).to(z_MD.dtype).mean(dim=1)  # of each row's site
    centred_RM = same_RM - share_M[first:last, None] - share_M[None, :] + share_M.mean()
    kernel_RM = (z_MD[first:last] @ z_MD.T - 1.0).exp()
    return (kernel_RM * centred_RM).mean(dim=1).mean()


def _prepared(features: Tensor, age_years: Tensor) -> tuple[Tensor, Tensor]:
    if features.ndim != 2 or age_years.shape != features.shape[:1]:
        raise ValueError(f"expected shapes [M, F] and [M], found {list(features.shape)} and {list(age_years.shape)}")
    dtype = torch.promote_types(features.dtype, torch.float32)
    return F.normalize(features.to(dtype), dim=1), age_years.to(dtype)


def _itself(first: int, last: int, like: Tensor) -> Tensor:
    place_M = torch.arange(len(like), device=like.device)
    return place_M[first:last, None] == place_M[None, :]
