"""Applying drawn views on the device, in the order geometry, blur, intensity, noise, cut-out.

Rows that an operation leaves alone keep their bits. Every step is elementwise or `grid_sample`, never a matrix product
or a convolution: those run in TF32 on a GPU, whose error (1e-3) would part the devices. Legend: B subjects, V views,
N = B V rows with the views of a subject adjacent, n rows of one operation, X Y Z voxels in RAS, F values of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brainage.augment.draw import ViewParameters
from brainage.errors import DataError

Step = Callable[[Tensor, np.ndarray, ViewParameters], None]  # changes the named rows in place

# Voxels of one batched operation; their sampling grid takes 12 bytes each. A CPU is fastest within its cache.
CHUNK_VOXELS_CPU = 2**20
CHUNK_VOXELS_GPU = 2**25
BLUR_REACH = 4.0  # standard deviations after which a Gaussian is cut off


@torch.no_grad()
def apply_views(x: Tensor, views: ViewParameters) -> Tensor:
    """[B, *sample] of any float type -> [N, *sample] float32 on the same device; `x` itself is never changed.

    Geometry and intensity agree between devices to 1e-5 on smooth images. Noise fields repeat on one device (each
    row has its own seed) and share only their distribution between devices. Raises DataError unless x has B rows.
    """
    if len(x) * views.views != len(views):
        raise DataError(f"views: expected {len(views) // views.views} samples as drawn, found {len(x)}")
    return transform(x.to(torch.float32), views)


def transform(x: Tensor, views: ViewParameters) -> Tensor:
    """`apply_views` in the precision of `x`."""
    steps = [(rows, step) for rows, step in _steps(views) if len(rows)]
    if views.views == 1 and not steps:
        return x
    out = x.repeat_interleave(views.views, dim=0)
    for rows, step in steps:
        for chunk in _chunks(rows, out):
            step(out, chunk, views)
    return out


def _steps(views: ViewParameters) -> Iterator[tuple[np.ndarray, Step]]:
    """The rows that each operation changes, in order; an operation without rows costs nothing."""
    yield np.flatnonzero(views.mirrored), _mirror
    yield np.flatnonzero(views.resampled), _resample
    yield np.flatnonzero(views.blur_sigma_mm > 0), _blur
    yield np.flatnonzero(views.gamma != 1), _apply_gamma
    yield np.flatnonzero((views.gain != 1) | (views.offset != 0)), _apply_gain
    yield np.flatnonzero(views.noise_sd > 0), _add_noise
    yield np.flatnonzero((views.box[:, :, 1] > views.box[:, :, 0]).all(axis=1)), _cut_box
    yield np.flatnonzero(views.zeroed.any(axis=1)), _zero_features


def _chunks(rows: np.ndarray, out: Tensor) -> list[np.ndarray]:
    voxels = CHUNK_VOXELS_CPU if out.device.type == "cpu" else CHUNK_VOXELS_GPU
    size = max(1, voxels // out[0].numel())
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _mirror(out: Tensor, rows: np.ndarray, views: ViewParameters) -> None:
    index = _to(out, rows)
    out[index] = out[index].flip(2)  # axis 2 is x of [n, 1, X, Y, Z]


def _resample(out: Tensor, rows: np.ndarray, views: ViewParameters) -> None:
    """Trilinear; beyond the border the nearest voxel is repeated, since 0 is no background after normalisation."""
    index = _to(out, rows)
    grid = sampling_grid(views.matrix[rows], tuple(out.shape[2:]), views.spacing_mm, out)
    out[index] = F.grid_sample(out[index], grid, mode="bilinear", padding_mode="border", align_corners=False)


def sampling_grid(matrix: np.ndarray, shape: tuple[int, ...], spacing_mm: tuple[float, ...], like: Tensor) -> Tensor:
    """[n, X, Y, Z, 3] input positions as `grid_sample` wants them, on the device and in the precision of `like`.

    `align_corners=False`: -1 and 1 are the outer faces of the first and last voxel, so that voxel i of L lies at
    (2 i + 1) / L - 1. An affine map is a sum of one term an axis; the terms are computed in float64 on the CPU, which
    leaves two float32 additions to the device.
    """
    half_mm = np.array(shape) * spacing_mm / 2
    grid: Tensor | None = None
    for axis, length in enumerate(shape):
        centred_mm = (np.arange(length) - (length - 1) / 2) * spacing_mm[axis]
        term = centred_mm[None, :, None] * matrix[:, None, :3, axis] / half_mm
        if axis == 0:
            term = term + matrix[:, None, :3, 3] / half_mm
        sizes = [len(matrix), 1, 1, 1, 3]
        sizes[axis + 1] = length
        part = _to(like, term[..., ::-1].copy(), like.dtype).reshape(sizes)  # grid_sample counts axes from the last
        grid = part if grid is None else grid + part
    assert grid is not None
    return grid


def _blur(out: Tensor, rows: np.ndarray, views: ViewParameters) -> None:
    """Gaussian of its own width for each row, one axis at a time; the border voxel is repeated outwards."""
    index = _to(out, rows)
    blurred = out[index]
    for axis, spacing_mm in enumerate(views.spacing_mm):
        weights = gaussian_weights(views.blur_sigma_mm[rows] / spacing_mm)
        if weights.shape[1] > 1:
            blurred = _weigh_neighbours(blurred, _to(out, weights, out.dtype), axis + 2)
    out[index] = blurred


def gaussian_weights(sigma_voxels: np.ndarray) -> np.ndarray:
    """[n] -> [n, reach + 1] weights of the voxels 0, 1, 2... away; a row's weights are 0 beyond its own cut-off."""
    distance = np.arange(int(BLUR_REACH * sigma_voxels.max() + 0.5) + 1)
    weights = np.exp(-0.5 * (distance / sigma_voxels[:, None]) ** 2)
    weights[distance > np.floor(BLUR_REACH * sigma_voxels + 0.5)[:, None]] = 0
    return weights / (weights[:, :1] + 2 * weights[:, 1:].sum(axis=1, keepdims=True))


def _weigh_neighbours(x: Tensor, weights: Tensor, axis: int) -> Tensor:
    length, reach = x.shape[axis], weights.shape[1] - 1
    sizes = [reach if each == axis else -1 for each in range(x.ndim)]
    padded = torch.cat([x.narrow(axis, 0, 1).expand(sizes), x, x.narrow(axis, length - 1, 1).expand(sizes)], axis)
    columns = weights.reshape(len(weights), -1, 1, 1, 1, 1)
    total = x * columns[:, 0]
    for away in range(1, reach + 1):
        both = padded.narrow(axis, reach - away, length) + padded.narrow(axis, reach + away, length)
        total.addcmul_(both, columns[:, away])
    return total


def _apply_gamma(out: Tensor, rows: np.ndarray, views: ViewParameters) -> None:
    """Between the row's own least and greatest value, which stay; a constant image stays as it is."""
    index = _to(out, rows)
    image = out[index]
    low = image.amin(dim=(1, 2, 3, 4), keepdim=True)
    range_ = (image.amax(dim=(1, 2, 3, 4), keepdim=True) - low).clamp_min(torch.finfo(out.dtype).tiny)
    out[index] = ((image - low) / range_).pow(_column(out, views.gamma[rows])) * range_ + low


def _apply_gain(out: Tensor, rows: np.ndarray, views: ViewParameters) -> None:
    index = _to(out, rows)
    out[index] = out[index] * _column(out, views.gain[rows]) + _column(out, views.offset[rows])


def _add_noise(out: Tensor, rows: np.ndarray, views: ViewParameters) -> None:
    """One generator seeded anew for each row, so that a row's noise does not depend on the others."""
    generator = torch.Generator(device=out.device)
    for row in rows:
        generator.manual_seed(int(views.noise_seed[row]))
        noise = torch.randn(out.shape[1:], generator=generator, device=out.device, dtype=out.dtype)
        out[row].add_(noise, alpha=float(views.noise_sd[row]))


def _cut_box(out: Tensor, rows: np.ndarray, views: ViewParameters) -> None:
    """Row by row, since that writes the boxes only; a mask would read and write every voxel."""
    for row in rows:
        (x0, x1), (y0, y1), (z0, z1) = views.box[row].tolist()
        out[row, :, x0:x1, y0:y1, z0:z1] = 0


def _zero_features(out: Tensor, rows: np.ndarray, views: ViewParameters) -> None:
    index = _to(out, rows)
    out[index] = out[index].masked_fill(_to(out, views.zeroed[rows]), 0)


def _to(like: Tensor, values: np.ndarray, dtype: torch.dtype | None = None) -> Tensor:
    return torch.as_tensor(values, dtype=dtype, device=like.device)


def _column(like: Tensor, values: np.ndarray) -> Tensor:
    return _to(like, values, like.dtype).reshape(-1, 1, 1, 1, 1)
