"""The rules that turn figures into words, each at its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wm_rllib.look.measuring import Promise
from wm_rllib.look.verdict import RULES, Trust, ends, not_judged, prediction, promise
from wm_rllib.models.trust import Calibration, OpenLoop


def errors(relative: list[float], reach: int | None = None) -> OpenLoop:
    """Open-loop errors of one dimension, by how large they are against standing still's."""
    counts = torch.tensor([10 if reach is None or step < reach else 0 for step in range(len(relative))])
    still = torch.ones(len(relative), 1)
    return OpenLoop(torch.tensor(relative)[:, None], still, counts)


@pytest.mark.parametrize(
    ("relative", "trust", "words"),
    [
        ([0.1, 0.5, 0.9, 0.99], Trust.YES, "It predicts 4 of 4 steps ahead better than standing still"),
        ([0.1, 0.5, 1.0, 0.5], Trust.WITH_CARE, "It predicts 2 of 4 steps ahead"),
        ([0.1, 1.5, 0.5, 0.5], Trust.NO, "It predicts 1 of 4 steps ahead"),
        ([1.2, 0.5, 0.5, 0.5], Trust.NO, "It predicts 0 of 4 steps ahead"),
    ],
)
def test_prediction(relative: list[float], trust: Trust, words: str):
    finding = prediction(errors(relative), 4)
    assert finding.trust is trust
    assert words in finding.words and f"{relative[0]:.0%} of standing still's one step ahead" in finding.words


def test_prediction_goes_as_far_as_real_stretches_do():
    finding = prediction(errors([0.1, 0.5, math.nan, math.nan], reach=2), 4)
    assert finding.trust is Trust.YES
    assert "2 of 2 steps" in finding.words and "up to 4 steps long, but no real stretch was" in finding.words
    assert prediction(errors([math.nan] * 2, reach=0), 2).trust is Trust.UNKNOWN


def counted(expected: float, seen: int, steps: int = 1000) -> Calibration:
    return Calibration((0.0, 1.0), [steps], [expected / steps], [seen / steps], expected, seen)


@pytest.mark.parametrize(
    ("expected", "seen", "trust"),
    [
        (100.0, 100, Trust.YES),
        (140.0, 100, Trust.YES),
        (70.0, 100, Trust.YES),
        (200.0, 100, Trust.WITH_CARE),
        (40.0, 100, Trust.WITH_CARE),
        (400.0, 100, Trust.NO),
        (20.0, 100, Trust.NO),
        (6.0, 3, Trust.YES),  # two standard errors of three are 3.5
        (10.0, 0, Trust.NO),
        (0.5, 0, Trust.UNKNOWN),
    ],
)
def test_ends(expected: float, seen: int, trust: Trust):
    finding = ends(counted(expected, seen))
    assert finding.trust is trust
    assert f"{expected:.1f} ends where {seen} came, in 1,000 real steps" in finding.words


def test_without_a_step_nothing_is_known_of_ends():
    assert ends(Calibration((0.0, 1.0), [0], [math.nan], [math.nan], 0.0, 0)).trust is Trust.UNKNOWN


def promised(share: float, noise: float = 0.0, *, steps: int = 50, starts: int = 100) -> Promise:
    """Dreams that bring this share more than the 10 that are paid."""
    wobble = np.where(np.arange(starts) % 2, noise, -noise)
    return Promise(steps, np.full(starts, 10.0), (10.0 * (1 + share) + wobble)[:, None].repeat(4, 1))


@pytest.mark.parametrize(
    ("share", "trust"),
    [(0.05, Trust.YES), (0.2, Trust.WITH_CARE), (0.4, Trust.NO), (-0.2, Trust.YES), (-0.4, Trust.WITH_CARE)],
)
def test_promise(share: float, trust: Trust):
    finding = promise(promised(share), promised(share))
    assert finding.trust is trust
    more = "more" if share > 0 else "less"
    assert f"promises {abs(share):.1%} {more} than the real environment pays over 50 steps" in finding.words


def test_a_promise_within_chance_is_kept():
    within = promised(0.4, noise=30.0)
    assert within.gap == pytest.approx(4.0) and within.gap_error == pytest.approx(3.0, rel=0.01)
    finding = promise(within, within)
    assert finding.trust is Trust.YES and "within chance" in finding.words
    assert promise(promised(0.4, starts=1), promised(0.4, starts=1)).trust is Trust.UNKNOWN


@pytest.mark.parametrize(("share", "trust"), [(0.0, Trust.YES), (-0.5, Trust.WITH_CARE), (0.9, Trust.WITH_CARE)])
def test_whole_episodes_ask_for_care_at_most(share: float, trust: Trust):
    finding = promise(promised(0.0), promised(share, steps=500))
    assert finding.trust is trust
    assert "over whole episodes" in finding.words
    assert promise(promised(0.5), promised(0.0, steps=500)).trust is Trust.NO


def test_the_scale_is_what_was_paid_or_its_spread():
    real = np.array([-20.0, 20.0])
    assert Promise(5, real, real[:, None]).scale == 20.0
    assert Promise(5, real + 100.0, real[:, None]).scale == 100.0


def test_what_was_not_measured_is_not_known():
    verdict = not_judged("No checkpoint yet.")
    assert verdict.trust is Trust.UNKNOWN and "not known" in verdict.headline
    assert verdict.findings[0].words == "No checkpoint yet."


def test_the_rules_say_their_limits():
    rules = " ".join(RULES)
    assert all(limit in rules for limit in ("10%", "30%", "factor of 1.5", "factor of 3", "2 standard errors"))
