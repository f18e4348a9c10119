"""A rank's part of every global batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from brainage.data.sampling import StepBatches, share


class Shares(Sampler[list[int]]):
    """The part of each of `batches` (a sampler, or a list of batches) that belongs to `rank` of 0..ranks-1.

    Every rank sees as many batches, so that all take part in every step. `may_be_none`: a rank may get an empty part
    (of a small batch of a validation); otherwise ConfigError.

    >>> [list(Shares([[5, 1, 4], [2]], rank, 2, may_be_none=True)) for rank in range(2)]
    [[[5, 1], [2]], [[4], []]]
    """

    def __init__(
        self, batches: StepBatches | Sequence[Sequence[int]], rank: int, ranks: int, *, may_be_none: bool = False
    ) -> None:
        self.batches = batches
        self.rank = rank
        self.ranks = ranks
        self.may_be_none = may_be_none

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (self._part(batch) for batch in self.batches)

    def _part(self, batch: Sequence[int]) -> list[int]:
        if self.may_be_none and self.rank >= len(batch):
            return []
        return share(batch, self.rank, min(self.ranks, len(batch)) if self.may_be_none else self.ranks)
