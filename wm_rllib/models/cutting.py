"""Where dreams are cut: after steps of which M is unsure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wm_rllib.models.mdn_rnn import MDNRNN


@dataclass(frozen=True)
class Cuts:
    """truncateds [B, H], and [z, h] after each of the N cuts [N, Z + D], lane by lane."""

    truncateds: Tensor
    features: Tensor


class Cutter:
    """Cuts after each step on which M's ensemble disagrees too much, and keeps what would have come next.

    Args:
        mdn_rnn: Has an ensemble.
        max_disagreement: In multiples of what is usual on real steps.
    """

    def __init__(self, mdn_rnn: MDNRNN, max_disagreement: float):
        self._mdn_rnn, self._limit = mdn_rnn, max_disagreement
        self._truncateds: list[Tensor] = []
        self._features: list[Tensor] = []

    def cut(self, z: Tensor, action: Tensor, terminated: Tensor, next_z: Tensor, next_h: Tensor) -> Tensor:
        """Decides on one step of all lanes.

        Returns:
            [B] bool: which lanes go on from a start state, for having terminated or for being cut.
        """
        ended = terminated | (self._mdn_rnn.disagreement(z, action) > self._limit)
        self._truncateds.append(ended ^ terminated)
        self._features.append(torch.cat([next_z, next_h], -1))
        return ended

    def cuts(self) -> Cuts:
        """All cuts so far; a dream's last step, of which `cut` was not told, is none."""
        truncateds = torch.stack([*self._truncateds, torch.zeros_like(self._truncateds[0])], 1)
        features = torch.stack([*self._features, torch.zeros_like(self._features[0])], 1)
        return Cuts(truncateds, features[truncateds])


def make_cutter(mdn_rnn: MDNRNN, max_disagreement: float | None) -> Cutter | None:
    """A cutter for one dream, or None where dreams are not to be cut or M has no ensemble."""
    if max_disagreement is None or mdn_rnn.ensemble is None:
        return None
    return Cutter(mdn_rnn, max_disagreement)
