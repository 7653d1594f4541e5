"""The order of a plan: spreads each sample's visits over the round's batches.

The round is cut into k equal stretches for a sample with k visits. Each stretch gets one visit, at
the same random phase. Phases of samples with equally many visits are evenly spaced, so batches fill
evenly. The few batches that overflow pass visits on to others. Samples with one visit fill the
places that are left.
"""

from collections import deque

import numpy as np
from jaxtyping import Int

_PHASES = 2**20  # phases are multiples of 1 / _PHASES, so that distances are exact integers
_REACH = 16  # largest distance of a single move, in batches
_SEARCHED = 2000  # batches that a search for a free place visits at most
_ATTEMPTS = 20  # random phases to try for a tight plan


def order_visits(
    rng: np.random.Generator, visits: Int[np.ndarray, " n"], batch_size: int, distance: int
) -> Int[np.ndarray, " R"]:
    """A random order of samples, repeats far apart.

    Let R be a multiple of `batch_size`. Visits of a sample with k of them then stand at least
    `distance` batches apart where k * distance <= number of batches. Where k is larger, they are
    spread evenly, and share a batch only if k exceeds the number of batches. A crowded plan can
    bring repeats closer: one with a shorter last batch, or one for which all attempts fail.

    Args:
        rng: source of the order.
        visits: how often each of n samples comes; R is their sum.
        batch_size: samples per batch.
        distance: least distance of a sample's visits, in batches.
    """
    total = int(visits.sum())
    num_batches = -(-total // batch_size)
    capacity = np.full(num_batches, batch_size)
    capacity[-1] -= num_batches * batch_size - total
    for _ in range(_ATTEMPTS):
        samples, owner, batches = _spread(rng, visits, num_batches)
        if _relieve(batches, owner, visits[samples], capacity, distance):
            break
    free = capacity - np.bincount(batches, minlength=num_batches)
    singles = rng.permutation(np.flatnonzero(visits == 1))
    plan = np.concatenate([samples[owner], singles]).astype(np.int32)
    batches = np.concatenate([batches, np.repeat(np.arange(num_batches), free)])
    shuffled = rng.permutation(total)
    return plan[shuffled[np.argsort(batches[shuffled], kind="stable")]]


def _spread(
    rng: np.random.Generator, visits: Int[np.ndarray, " n"], num_batches: int
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " V"], Int[np.ndarray, " V"]]:
    """Batches for the visits of samples with several visits, without regard to batch sizes.

    Neighbouring visits of a sample with k visits are the floor or the ceiling of num_batches / k
    batches apart.

    Returns:
        samples: the m samples with several visits.
        owner: for each of V visits the position of its sample in `samples`, ascending.
        batches: the visits' batches, ascending within a sample.
    """
    samples = rng.permutation(np.flatnonzero(visits > 1))
    samples = samples[np.argsort(visits[samples], kind="stable")]
    times = visits[samples]
    _, first, group, members = np.unique(
        times, return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.arange(len(samples)) - first[group]
    phase = (rank + rng.random(len(members))[group]) / members[group]
    owner = np.repeat(np.arange(len(samples)), times)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(times) - times, times)
    steps = number * _PHASES + (phase * _PHASES).astype(np.int64)[owner]
    return samples, owner, steps * num_batches // (times[owner] * _PHASES)


def _relieve(
    batches: Int[np.ndarray, " V"],
    owner: Int[np.ndarray, " V"],
    times: Int[np.ndarray, " m"],
    capacity: Int[np.ndarray, " b"],
    distance: int,
) -> bool:
    """Moves visits out of batches that hold more than their capacity, in place.

    Keeps the spacing even if possible, else keeps only what `order_visits` promises. If that fails
    too, it moves any visit.

    Args:
        batches, owner: as `_spread` returns them.
        times: visits of each sample.
        capacity: places in each batch.
        distance: as in `order_visits`.

    Returns:
        Whether the promise of `order_visits` is kept.
    """
    kept = True
    excess = np.bincount(batches, minlength=len(capacity)) - capacity
    crowded = np.flatnonzero(excess > 0)
    if not crowded.size:
        return kept
    num_whole = int((capacity == capacity[0]).sum())
    even = np.minimum(distance, num_whole // times)
    promised = np.where(even == distance, distance, np.minimum(even, 1))
    moves = _Moves(batches, owner, excess)
    for batch in crowded.tolist():
        while excess[batch] > 0:
            if not (moves.relieve(batch, even) or moves.relieve(batch, promised)):
                holes = np.flatnonzero(excess < 0)
                hole = int(holes[np.argmin(np.abs(holes - batch))])
                moves.move(moves.members(batch)[0], hole)
                kept = False
    return kept


class _Moves:
    """Visits by batch, and moves of visits between batches.

    Args:
        batches, owner: as `_spread` returns them; moves change `batches` in place.
        excess: visits above capacity in each batch; moves change it in place.
    """

    def __init__(
        self,
        batches: Int[np.ndarray, " V"],
        owner: Int[np.ndarray, " V"],
        excess: Int[np.ndarray, " b"],
    ):
        self._batches, self._owner, self._excess = batches, owner, excess
        self._order = np.argsort(batches, kind="stable")
        self._bounds = np.searchsorted(batches[self._order], np.arange(len(excess) + 1))
        self._members: dict[int, list[int]] = {}

    def members(self, batch: int) -> list[int]:
        """The visits of a batch."""
        if batch not in self._members:
            start, end = self._bounds[batch : batch + 2]
            self._members[batch] = self._order[start:end].tolist()
        return self._members[batch]

    def move(self, visit: int, batch: int) -> None:
        """Moves a visit to a batch."""
        old = int(self._batches[visit])
        self.members(old).remove(visit)
        self.members(batch).append(visit)
        self._batches[visit] = batch
        self._excess[old] -= 1
        self._excess[batch] += 1

    def relieve(self, batch: int, spacing: Int[np.ndarray, " m"]) -> bool:
        """Takes one visit out of a batch by a shortest chain of moves that ends in a free place.

        Args:
            spacing: for each sample the distance in batches that its visits must keep.

        Returns:
            Whether a visit left the batch.
        """
        came_from: dict[int, tuple[int, int]] = {batch: (-1, -1)}  # batch -> source, visit
        queue = deque([batch])
        while queue and len(came_from) < _SEARCHED:
            source = queue.popleft()
            for visit in self.members(source):
                low, high = self._window(visit, spacing)
                reach = range(max(low, source - _REACH), min(high, source + _REACH) + 1)
                for target in sorted(reach, key=lambda x, source=source: abs(x - source)):
                    if target in came_from:
                        continue
                    came_from[target] = source, visit
                    if self._excess[target] < 0:
                        return self._follow(target, came_from, spacing)
                    queue.append(target)
        return False

    def _follow(
        self,
        target: int,
        came_from: dict[int, tuple[int, int]],
        spacing: Int[np.ndarray, " m"],
    ) -> bool:
        """Makes a chain's moves, the last first; False where an earlier move forbids one."""
        while came_from[target][0] >= 0:
            source, visit = came_from[target]
            low, high = self._window(visit, spacing)
            if not low <= target <= high:
                return False
            self.move(visit, target)
            target = source
        return True

    def _window(self, visit: int, spacing: Int[np.ndarray, " m"]) -> tuple[int, int]:
        """First and last batch that a visit can have between its sample's other visits."""
        owner, batches = self._owner, self._batches
        gap = int(spacing[owner[visit]])
        low, high = 0, len(self._excess) - 1
        if visit > 0 and owner[visit - 1] == owner[visit]:
            low = int(batches[visit - 1]) + gap
        if visit + 1 < len(owner) and owner[visit + 1] == owner[visit]:
            high = int(batches[visit + 1]) - gap
        return low, high
