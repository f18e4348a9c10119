"""In-mask storage: of a volume only the voxels inside a mask are kept; outside it every volume is 0.

Legend: n or B samples, X Y Z voxels in RAS, K voxels inside the mask. A stored row holds the K values in C order of the
sample (1, X, Y, Z), so that row[k] belongs at `volume.reshape(-1)[index[k]]`. The mask that OpenBHB publishes for its
grey matter maps keeps 519,945 of 2,122,945 voxels: a quarter of the disk, and of the bytes a loader moves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from brainage.errors import StoreError
from brainage.imaging.contract import InputContract

ORDER = "C order of the sample (1, X, Y, Z)"
_TOLERANCE_MM = 1e-3


@dataclass(frozen=True, eq=False)
class Mask:
    """Voxels of a grid; `name` and `threshold` say where they come from, for people."""

    name: str
    threshold: float
    inside: np.ndarray  # bool (X, Y, Z), RAS

    @cached_property
    def index(self) -> np.ndarray:
        """int64 [K], ascending: places of the voxels in a flattened sample."""
        return np.flatnonzero(self.inside)

    @property
    def voxels(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, X, Y, Z), of the samples."""
        return (1, *self.inside.shape)

    @cached_property
    def digest(self) -> str:
        """16 hex digits of the grid's shape and of the voxels; the name has no part in it."""
        found = hashlib.blake2b(repr(self.inside.shape).encode(), digest_size=8)
        found.update(np.packbits(self.inside).tobytes())
        return found.hexdigest()

    def contract(self, whole: InputContract) -> InputContract:
        """The contract of whole volumes with this mask; shape and grid stay those of the sample an encoder sees.

        StoreError when `whole` is no volume or of another shape.
        """
        if whole.kind != "volume" or tuple(whole.shape) != self.shape:
            raise StoreError(
                f"mask {self.name}: expected samples {self.shape}, found {whole.kind} {tuple(whole.shape)} "
                f"({whole.modality}); name another mask with data.mask=FILE, or none"
            )
        fields = {"name": self.name, "threshold": self.threshold, "voxels": self.voxels}
        return replace(whole, mask={**fields, "order": ORDER, "digest": self.digest})

    def take(self, sample: np.ndarray) -> np.ndarray:
        """[K] values inside, of one sample (1, X, Y, Z)."""
        return np.take(sample.reshape(-1), self.index)

    def share_outside(self, sample: np.ndarray) -> float:
        """Share of the summed absolute intensity of a sample that the mask takes away; 0 of an empty sample.

        >>> mask = Mask("m", 0.0, np.array([[[True, True, False, False]]]))
        >>> mask.share_outside(np.array([[[[1.0, 2.0, 0.0, 1.0]]]]))
        0.25
        """
        total = float(np.abs(sample).sum(dtype=np.float64))
        inside = float(np.abs(self.take(sample)).sum(dtype=np.float64))
        return round(max(0.0, 1.0 - inside / total), 9) if total else 0.0

    def restore(self, values: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Samples [n, 1, X, Y, Z] of rows [n, K], 0 outside the mask; into `out` if given."""
        if out is None:
            out = np.empty((len(values), *self.shape), values.dtype)
        for row, volume in zip(values, out, strict=True):
            flat = volume.reshape(-1)  # a view: `out` is in C order
            flat[:] = 0
            np.put(flat, self.index, row)
        return out


def unmask(values: Any, index: Any, shape: tuple[int, ...]) -> Any:
    """Samples [B, *shape] of in-mask rows [B, K] on whatever device they are: 0 outside, values[:, k] at index[k].

    values: torch tensor. index: int64 tensor [K] on the same device, `Mask.index`. A batch crosses to the device as
    stored, a quarter of the bytes for grey matter, and becomes volumes there.

    >>> import torch
    >>> unmask(torch.tensor([[5.0, 7.0]]), torch.tensor([1, 3]), (1, 2, 2, 1)).flatten().tolist()
    [0.0, 5.0, 0.0, 7.0]
    """
    if values.device.type != "cpu":
        return gathered(values, index, prod(shape)).view(len(values), *shape)
    flat = values.new_zeros((len(values), prod(shape)))  # twice as fast as a gather here
    flat[:, index] = values
    return flat.view(len(values), *shape)


def gathered(values: Any, index: Any, size: int) -> Any:
    """[B, size]: each voxel fetches its value, or the 0 behind the last one.

    On an accelerator, where torch's deterministic mode sorts the millions of indices of a scatter at every batch.
    """
    B, K = values.shape
    place = index.new_full((size,), K)
    place[index] = index.new_ones(K).cumsum(0) - 1
    padded = values.new_zeros((B, K + 1))
    padded[:, :K] = values
    return padded.index_select(1, place)


def stored_shape(contract: InputContract) -> tuple[int, ...]:
    """Of one row of `arrays.npy`: (K,) with a mask, else the sample's shape."""
    return (int(contract.mask["voxels"]),) if contract.mask else tuple(contract.shape)


def load_mask(file: str | Path, threshold: float, contract: InputContract) -> Mask:
    """Voxels of a NIfTI image above `threshold`, its axes brought to RAS; channel 0 of an image with several.

    StoreError naming both grids unless the image lies on the contract's grid (shape, voxel size and origin), and when
    the file is absent or damaged, is not finite or has no voxel above the threshold.
    """
    file = Path(file)
    if not file.is_file():
        raise StoreError(f"data.mask={file}: file not found; name a NIfTI file on the grid of the samples, or none")
    try:
        image: Any = nib.as_closest_canonical(nib.load(file))
        values = np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))
    except Exception as error:  # nibabel, gzip, zlib and numpy each have their own for a torn file
        words = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise StoreError(f"data.mask={file}: damaged or no NIfTI file ({words}); download it again") from error
    values = values[..., 0] if values.ndim == 4 else values
    _refuse_other_grid(file, values, image.affine, contract)
    if not np.isfinite(values).all():
        raise StoreError(f"data.mask={file}: holds values that are not finite; name another mask")
    inside = np.ascontiguousarray(values > threshold)
    if not inside.any():
        raise StoreError(
            f"data.mask={file}: no voxel above data.mask_threshold={threshold:g}, the largest is {values.max():g}"
        )
    return Mask(file.name, float(threshold), inside)


def _refuse_other_grid(file: Path, values: np.ndarray, affine: np.ndarray, contract: InputContract) -> None:
    if contract.kind != "volume":
        raise StoreError(f"data.mask={file}: a mask is for volumes, found {contract.modality} of {contract.shape}")
    found, expected = (1, *values.shape), tuple(contract.shape)
    if found != expected or not np.allclose(affine, contract.affine, atol=_TOLERANCE_MM):
        raise StoreError(
            f"data.mask={file}: expected the grid of {contract.modality}, {_grid(expected, contract.affine)}; found "
            f"{_grid(found, affine)} after its axes are brought to RAS; name a mask on that grid with data.mask=FILE"
        )


def _grid(shape: tuple[int, ...], affine: np.ndarray) -> str:
    rounded = np.round(affine, 3) + 0.0
    spacing, origin = np.linalg.norm(rounded[:3, :3], axis=0).round(3), rounded[:3, 3]
    straight = np.allclose(rounded[:3, :3], np.diag(spacing), atol=_TOLERANCE_MM)
    oblique = "" if straight else " oblique"
    return f"{shape[1:]} voxels of {spacing.tolist()} mm from {origin.tolist()} mm{oblique}"


class MaskedRows:
    """Rows [n, K] as the read-only samples [n, 1, X, Y, Z] that they stand for, for code that wants an array.

    What works: `len`, `shape`, a row or rows by index or slice, `reshape(n, -1)` with blocks of columns, iteration,
    `numpy.asarray` (which makes every volume at once).

    >>> mask = Mask("m", 0.0, np.array([[[True, False, True]]]))
    >>> rows = MaskedRows(np.array([[1.0, 2.0], [3.0, 4.0]]), mask)
    >>> rows.shape, rows[1].ravel().tolist(), rows.reshape(2, -1)[:, 1:].tolist()
    ((2, 1, 1, 1, 3), [3.0, 0.0, 4.0], [[0.0, 2.0], [0.0, 4.0]])
    """

    def __init__(self, stored: np.ndarray, mask: Mask, *, flat: bool = False) -> None:
        self.stored = np.asarray(stored)
        self.mask = mask
        self.flat = flat
        self.shape = (len(stored), *((prod(mask.shape),) if flat else mask.shape))
        self.dtype = self.stored.dtype

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, tuple) and self.flat and len(key) == 2 and isinstance(key[1], slice):
            return self._columns(key[0], key[1])
        rows, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        one = isinstance(rows, int | np.integer)
        values = self.stored[[rows]] if one else self.stored[rows]
        whole = self.mask.restore(values).reshape(len(values), *self.shape[1:])
        return whole[(0, *rest)] if one else whole[(slice(None), *rest)]

    def _columns(self, rows: Any, columns: slice) -> np.ndarray:
        start, stop, step = columns.indices(self.shape[1])
        if step != 1:
            raise IndexError(f"columns of masked rows: expected a step of 1, found {step}")
        first, last = np.searchsorted(self.mask.index, [start, stop])
        values = self.stored[rows, first:last]
        block = np.zeros((*values.shape[:-1], max(0, stop - start)), self.dtype)
        block[..., self.mask.index[first:last] - start] = values
        return block

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("masked rows are no array: expected leave to copy them")
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def reshape(self, *shape: int) -> MaskedRows:
        """A view [n, F]; no other shape."""
        if tuple(shape) not in ((len(self), -1), (len(self), prod(self.mask.shape))):
            raise ValueError(f"masked rows: expected reshape({len(self)}, -1), found {shape}")
        return MaskedRows(self.stored, self.mask, flat=True)
