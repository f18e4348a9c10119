"""Drawing the parameters of views on the CPU, each a pure function of (seed, step, sample key, view).

Who else is in the batch, and in which order, changes nothing; nor does switching another operation on or off, since
every parameter has its own place in the stream of its view. Legend: B subjects, V views, N = B V rows with the views
of a subject adjacent, F values of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brainage.config import AugmentConfig
from brainage.errors import ConfigError
from brainage.imaging.contract import InputContract

# The stream of one view, in order. Append only: a new place in between would change every later draw of old runs.
DRAWS = (
    "flip", "affine", "crop", "blur", "noise", "intensity", "cutout",
    "rotate_x", "rotate_y", "rotate_z", "scale", "translate_x", "translate_y", "translate_z",
    "crop_x", "crop_y", "crop_z", "blur_sigma", "noise_sd", "noise_seed", "gain", "offset", "gamma",
    "cutout_x", "cutout_y", "cutout_z",
)  # fmt: skip
FEATURE_DRAWS = 1024  # where the draws of single features begin: one for each value of a vector
VOLUME_ONLY = ("flip_p", "affine_p", "crop_p", "blur_p", "intensity_p")

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class ViewParameters:
    """What `apply_views` does to each of N rows; the neutral value of a row means that it is left alone."""

    views: int
    spacing_mm: tuple[float, ...]
    mirrored: np.ndarray  # bool: exchange left and right, nothing else geometric
    resampled: np.ndarray  # bool: sample through `matrix`
    matrix: np.ndarray  # [N, 4, 4] from output to input coordinates, mm RAS from the grid's centre, mirroring included
    blur_sigma_mm: np.ndarray  # 0: none
    gamma: np.ndarray  # power of the image rescaled to [0, 1]; 1: none
    gain: np.ndarray  # 1: none
    offset: np.ndarray  # 0: none
    noise_sd: np.ndarray  # 0: none
    noise_seed: np.ndarray  # int64: seed of the row's noise field
    box: np.ndarray  # [N, 3, 2] int64: first and one past the last voxel set to zero, along x, y, z; equal: none
    zeroed: np.ndarray  # [N, F] bool: values of a vector set to zero; F = 0 for volumes

    def __len__(self) -> int:
        return len(self.mirrored)


def check_augment(config: AugmentConfig, contract: InputContract) -> None:
    """Raise ConfigError with the key where the configuration cannot be drawn or does not fit the samples."""
    if contract.kind == "vector":
        for key in VOLUME_ONLY:
            if getattr(config, key) > 0:
                raise ConfigError(
                    f"augment.{key}={getattr(config, key)}: {contract.modality} samples are vectors, which take "
                    f"only noise and cut-out; set augment.{key}=0"
                )
    if not 0 <= config.scale < 1:
        raise ConfigError(f"augment.scale={config.scale}: expected from 0 to below 1")
    if not 0 < config.crop_share <= 1:
        raise ConfigError(f"augment.crop_share={config.crop_share}: expected above 0, at most 1")
    for key in ("blur_sigma_mm", "noise_sd"):
        ends = getattr(config, key)
        if len(ends) != 2 or not 0 <= ends[0] <= ends[1]:
            raise ConfigError(f"augment.{key}={ends}: expected two numbers, smallest first, none below 0")


def draw_views(
    config: AugmentConfig, contract: InputContract, keys: np.ndarray, *, seed: int, step: int
) -> ViewParameters:
    """Parameters of `config.views` views of each sample; `keys` are the samples' stable numbers, [B] integers.

    Raises ConfigError as `check_augment` does.
    """
    check_augment(config, contract)
    state = stream_states(seed, step, keys, config.views)
    draws = dict(zip(DRAWS, stream(state, 0, len(DRAWS)).T, strict=True))
    u = {name: to_unit(values) for name, values in draws.items()}
    on = {name: u[name] < getattr(config, f"{name}_p") for name in DRAWS[:7]}
    volume = contract.kind == "volume"
    resampled = on["affine"] | on["crop"]
    zeroed = np.zeros((len(state), 0), dtype=bool) if volume else _zeroed(config, contract, state, on["cutout"])
    return ViewParameters(
        views=config.views,
        spacing_mm=contract.spacing_mm,
        mirrored=on["flip"] & ~resampled,
        resampled=resampled,
        matrix=_matrices(config, contract, u, on) if volume else np.tile(np.eye(4), (len(state), 1, 1)),
        blur_sigma_mm=np.where(on["blur"], _between(config.blur_sigma_mm, u["blur_sigma"]), 0.0),
        gamma=np.where(on["intensity"], np.exp(_around(0, config.gamma, u["gamma"])), 1.0),
        gain=np.where(on["intensity"], _around(1, config.gain, u["gain"]), 1.0),
        offset=np.where(on["intensity"], _around(0, config.offset, u["offset"]), 0.0),
        noise_sd=np.where(on["noise"], _between(config.noise_sd, u["noise_sd"]), 0.0),
        noise_seed=(draws["noise_seed"] >> np.uint64(1)).astype(np.int64),
        box=_boxes(config, contract, u, on["cutout"]) if volume else np.zeros((len(state), 3, 2), dtype=np.int64),
        zeroed=zeroed,
    )


def splitmix(x: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014), on uint64 arrays.

    >>> [hex(value) for value in stream(np.zeros(1, dtype=np.uint64), 0, 2)[0]]
    ['0xe220a8397b1dcdaf', '0x6e789e6aa1b965f4']
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def stream(state: np.ndarray, first: int, count: int) -> np.ndarray:
    """[N, count] uint64: outputs `first`, `first + 1`... of the SplitMix64 generators that start in `state` [N]."""
    places = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    return splitmix(state[:, None] + places * _GOLDEN)


def stream_states(seed: int, step: int, keys: np.ndarray, views: int) -> np.ndarray:
    """Start of each view's own generator, [N] uint64: seed, step, key and view, mixed in one after the other."""
    keys = np.asarray(keys).astype(np.uint64).reshape(-1, 1)
    state = np.zeros((1, 1), dtype=np.uint64)
    for word in (_word(seed), _word(step), keys, np.arange(views, dtype=np.uint64)):
        state = splitmix((state ^ word) + _GOLDEN)
    return state.reshape(-1)


def to_unit(values: np.ndarray) -> np.ndarray:
    """uint64 -> float64, uniform in [0, 1), by the upper 53 bits."""
    return (values >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _word(number: int) -> np.ndarray:
    return np.array([number % 2**64], dtype=np.uint64)


def _between(ends: list[float], u: np.ndarray) -> np.ndarray:
    return ends[0] + (ends[1] - ends[0]) * u


def _around(centre: float, reach: float, u: np.ndarray) -> np.ndarray:
    return centre + reach * (2 * u - 1)


def _matrices(
    config: AugmentConfig, contract: InputContract, u: dict[str, np.ndarray], on: dict[str, np.ndarray]
) -> np.ndarray:
    """[N, 4, 4] pull matrices: an output point finds its input point by undoing crop, then affine, then mirror."""
    half_mm = np.array(contract.spacing_mm) * contract.shape[1:] / 2
    mirror = np.tile(np.eye(4), (len(on["flip"]), 1, 1))
    mirror[on["flip"], 0, 0] = -1
    crop = np.tile(np.eye(4), (len(on["crop"]), 1, 1))
    centre_mm = (1 - config.crop_share) * half_mm * _around(0, 1, _axes(u, "crop"))
    crop[on["crop"], :3, :3] *= config.crop_share
    crop[on["crop"], :3, 3] = centre_mm[on["crop"]]
    undo = np.tile(np.eye(4), (len(on["affine"]), 1, 1))
    back = _rotations(config, u).transpose(0, 2, 1) / _around(1, config.scale, u["scale"])[:, None, None]
    shift_mm = _around(0, config.translate_mm, _axes(u, "translate"))
    undo[on["affine"], :3, :3] = back[on["affine"]]
    undo[on["affine"], :3, 3] = -np.einsum("nij,nj->ni", back, shift_mm)[on["affine"]]
    return mirror @ undo @ crop


def _rotations(config: AugmentConfig, u: dict[str, np.ndarray]) -> np.ndarray:
    """[N, 3, 3]: about x first, then y, then z; positive angles turn y to z, z to x, x to y."""
    turned = np.tile(np.eye(3), (len(u["rotate_x"]), 1, 1))
    radians = np.deg2rad(_around(0, config.rotate_degrees, _axes(u, "rotate")))
    for axis in range(3):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.tile(np.eye(3), (len(turned), 1, 1))
        turn[:, a, a] = turn[:, b, b] = np.cos(radians[:, axis])
        turn[:, b, a] = np.sin(radians[:, axis])
        turn[:, a, b] = -turn[:, b, a]
        turned = turn @ turned
    return turned


def _boxes(config: AugmentConfig, contract: InputContract, u: dict[str, np.ndarray], on: np.ndarray) -> np.ndarray:
    grid = np.array(contract.shape[1:])
    edge = np.rint(config.cutout_share * grid).astype(np.int64)
    start = np.floor(_axes(u, "cutout") * (grid - edge + 1)).astype(np.int64)
    return np.stack([start, start + edge * on[:, None]], axis=2)


def _zeroed(config: AugmentConfig, contract: InputContract, state: np.ndarray, on: np.ndarray) -> np.ndarray:
    """Exactly round(share F) values of each row that is on: those with the smallest draws."""
    features = contract.shape[0]
    count = round(config.cutout_share * features)
    zeroed = np.zeros((len(state), features), dtype=bool)
    rows = np.flatnonzero(on)
    if count and len(rows):
        order = np.argpartition(stream(state[rows], FEATURE_DRAWS, features), count - 1, axis=1)
        zeroed[rows[:, None], order[:, :count]] = True
    return zeroed


def _axes(u: dict[str, np.ndarray], name: str) -> np.ndarray:
    return np.stack([u[f"{name}_{axis}"] for axis in "xyz"], axis=1)
