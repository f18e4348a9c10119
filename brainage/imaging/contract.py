"""What an encoder may be fed: written beside every store, kept in every checkpoint, compared before any prediction."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np

from brainage.errors import ContractError

_TOLERANCE_MM = 1e-3


@dataclass(frozen=True)
class InputContract:
    """One kind of sample: volumes (1, X, Y, Z) with X to the right, Y to the front, Z up (RAS), or vectors (F,)."""

    modality: str  # what the values are, e.g. cat12vbm_gm, quasiraw, brain, freesurfer_thickness
    kind: Literal["volume", "vector"]
    shape: tuple[int, ...]
    space: str = ""  # e.g. MNI152; "native" where nothing was registered
    spacing_mm: tuple[float, ...] = ()  # volumes: edge lengths of a voxel
    origin_mm: tuple[float, ...] = ()  # volumes: RAS coordinates of the centre of voxel (0, 0, 0)
    axes: str = ""  # volumes: always RAS
    intensity: str = ""  # rule of the stored values, before any normalisation on the device
    features: tuple[str, ...] = ()  # vectors: name of each value, in order
    preprocessing: dict[str, str] = field(default_factory=dict)  # step -> tool and version
    mask: dict[str, Any] = field(default_factory=dict)  # volumes that are 0 outside it: see `brainage.data.masking`

    def __post_init__(self) -> None:
        if self.kind == "volume" and (len(self.shape) != 4 or len(self.spacing_mm) != 3 or self.axes != "RAS"):
            raise ContractError(
                f"contract of {self.modality!r}: a volume needs shape (1, X, Y, Z), three spacings and axes RAS; "
                f"found {self.shape}, {self.spacing_mm}, {self.axes!r}"
            )
        if self.kind == "vector" and (len(self.shape) != 1 or len(self.features) not in (0, self.shape[0])):
            raise ContractError(
                f"contract of {self.modality!r}: a vector needs shape (F,) and F feature names; "
                f"found {self.shape} and {len(self.features)} names"
            )
        if self.mask and (self.kind != "volume" or not {"name", "threshold", "voxels", "digest"} <= set(self.mask)):
            raise ContractError(
                f"contract of {self.modality!r}: a mask belongs to volumes and needs name, threshold, voxels, digest; "
                f"found {self.kind} and {self.mask}"
            )

    @property
    def dtype(self) -> np.dtype:
        """Stored type: fp16 for volumes, fp32 for vectors (a head volume in mm3 overflows fp16)."""
        return np.dtype(np.float16 if self.kind == "volume" else np.float32)

    @property
    def affine(self) -> np.ndarray:
        """4x4 matrix from voxel indices (i, j, k) to RAS millimetres; volumes only."""
        affine = np.diag([*self.spacing_mm, 1.0])
        affine[:3, 3] = self.origin_mm
        return affine

    def to_dict(self) -> dict[str, Any]:
        """Plain types only (lists for tuples), fit for JSON and for `torch.load(weights_only=True)`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> InputContract:
        """Inverse of `to_dict`; raises ContractError on keys it does not know."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ContractError(f"contract: unknown keys {sorted(unknown)}; written by a newer brainage?")
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)

    def differences(self, other: InputContract) -> list[str]:
        """One phrase for each field that differs, `self` being what is expected and `other` what was found."""
        phrases = []
        for name in (f.name for f in fields(self)):
            expected, found = getattr(self, name), getattr(other, name)
            if name == "mask":  # known by its voxels: its file may have moved
                same = expected.get("digest") == found.get("digest")
            elif name in ("spacing_mm", "origin_mm") and len(expected) == len(found):
                same = bool(np.allclose(expected, found, atol=_TOLERANCE_MM))
            else:
                same = expected == found
            if not same:
                show = _mask if name == "mask" else _short
                phrases.append(f"{name}: expected {show(expected)}, found {show(found)}")
        return phrases

    def refuse_other(self, other: InputContract, context: str) -> None:
        """Raise ContractError naming every difference unless `other` may be fed where `self` is expected."""
        phrases = self.differences(other)
        if phrases:
            raise ContractError(
                f"{context}: input does not fit the encoder: {'; '.join(phrases)}; "
                "prepare the scans as expected, or pre-train an encoder on these"
            )


def _mask(mask: dict[str, Any]) -> str:
    if not mask:
        return "none (whole volumes)"
    return f"{mask['name']} > {mask['threshold']:g} of {mask['voxels']} voxels (digest {mask['digest'][:8]})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(value)} values)"
