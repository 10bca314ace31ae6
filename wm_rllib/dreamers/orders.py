"""What is asked of the dreamers, and what comes of it: numbers and references."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from wm_rllib.dreamers.dreamer import Dreamed


@dataclass(frozen=True)
class DreamOrder:
    """What one dream round needs: rows for each learner, and how to dream them."""

    rows: list[int]
    horizon: int
    temperature: float
    max_disagreement: float | None
    exploration_bonus: float
    optimism: float
    burn_in: int


@dataclass
class DreamHarvest:
    """What came of an order.

    Attributes:
        shard_refs: For each learner the references to its blocks.
        rows: For each learner the rows that came; fewer than asked for only when no dreamer was left in time, more
            only when they were ordered before it was known how many real rows would come.
        num_segments: Separate imagined trajectories.
        num_cuts: Those that were cut because M was unsure.
        slowest_s: Working time of the dreamer that took longest.
        dropped_rows: Rows dropped for their age.
    """

    shard_refs: list[list[ray.ObjectRef]]
    rows: list[int]
    num_segments: int = 0
    num_cuts: int = 0
    slowest_s: float = 0.0
    dropped_rows: int = 0

    @classmethod
    def empty(cls, num_learners: int) -> DreamHarvest:
        """Nothing yet."""
        return cls([[] for _ in range(num_learners)], [0] * num_learners)

    def add(self, part: Dreamed) -> None:
        """Takes in one dreamer's part."""
        for learner, ref in enumerate(part.shard_refs):
            if part.rows[learner]:
                self.shard_refs[learner].append(ref)
                self.rows[learner] += part.rows[learner]
        self.num_segments += part.num_segments
        self.num_cuts += part.num_cuts
        self.slowest_s = max(self.slowest_s, part.seconds)


@dataclass(frozen=True)
class DreamTicket:
    """An order that was sent and not waited for.

    Attributes:
        order: What was ordered.
        tag: Of the order; `tag_of` is what a dreamer's answer is kept under.
        ids: The dreamers that were asked; none if there was no healthy one.
    """

    order: DreamOrder
    tag: str
    ids: tuple[int, ...]

    def tag_of(self, dreamer_id: int) -> str:
        """Of what one dreamer was asked: by it one can tell who owes an answer."""
        return f"{self.tag}/{dreamer_id}"
