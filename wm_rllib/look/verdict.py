"""From figures to words: may this dream be trusted? Every rule that decides is in `RULES`, which the report prints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

from wm_rllib.look.measuring import Promise, TrustFigures
from wm_rllib.models.trust import Calibration, OpenLoop

CARE_AT, FAIL_AT = 0.1, 0.3
"""Promise above what was paid, as a share of it, from which on care is due, and from which on trust ends."""
CARE_FACTOR, FAIL_FACTOR = 1.5, 3.0
"""Factor between ends expected and ends seen, either way, with the same meaning."""
CHANCE = 2.0
"""Standard errors that chance explains."""


class Trust(IntEnum):
    """The answer, worst last."""

    YES = 0
    WITH_CARE = 1
    NO = 2
    UNKNOWN = 3


HEADLINES = {
    Trust.YES: "This dream can be trusted, as far as it was measured.",
    Trust.WITH_CARE: "This dream can be trusted with care.",
    Trust.NO: "This dream cannot be trusted.",
    Trust.UNKNOWN: "Whether this dream can be trusted is not known.",
}

RULES = (
    "Prediction: for how many steps in a row M's expectation under the real actions is nearer to what happened than "
    "saying that nothing changes. Yes if that holds for the whole horizon that dreams have (or as far as any real "
    "stretch reaches), with care for at least half of it, else no.",
    "Ends: how many ends of episodes M expects, step by step, against how many there were. Yes within a factor of "
    f"{CARE_FACTOR:g} either way or within {CHANCE:g} standard errors of counting, with care within a factor of "
    f"{FAIL_FACTOR:g}, else no.",
    "Promise: rewards that dreams of the same policy bring from real start states, over the horizon, against those "
    f"that were paid from there. Yes up to {CARE_AT:.0%} too much or within {CHANCE:g} standard errors, with care up "
    f"to {FAIL_AT:.0%}, else no. A promise that is too low by more than {FAIL_AT:.0%} asks for care, no more: a policy "
    "seeks out what is promised, not what is not. Shares are of the mean that was paid, or of its spread where that is "
    "larger. Over whole episodes, which may be longer than any dream of this run, the worst is that care is due.",
    "The verdict is the worst of the three that could be measured.",
)


@dataclass(frozen=True)
class Finding:
    """What one rule says: its name, how far to trust, and the figures in a sentence."""

    name: str
    trust: Trust
    words: str


@dataclass(frozen=True)
class Verdict:
    """The answer and its reasons."""

    trust: Trust
    findings: tuple[Finding, ...]

    @property
    def headline(self) -> str:
        """In one sentence."""
        return HEADLINES[self.trust]


def judge(figures: TrustFigures) -> Verdict:
    """Applies the rules."""
    findings = (
        prediction(figures.on_policy, figures.settings.horizon),
        ends(figures.ends),
        promise(figures.near, figures.whole),
    )
    known = [finding.trust for finding in findings if finding.trust is not Trust.UNKNOWN]
    return Verdict(max(known, default=Trust.UNKNOWN), findings)


def not_judged(reason: str) -> Verdict:
    """Nothing could be measured."""
    return Verdict(Trust.UNKNOWN, (Finding("Not measured", Trust.UNKNOWN, reason),))


def prediction(errors: OpenLoop, horizon: int) -> Finding:
    """How far ahead M is better than standing still."""
    measured, ahead = errors.num_measured, errors.steps_ahead
    if not measured:
        return Finding("Prediction", Trust.UNKNOWN, "No real stretch to predict.")
    good = ahead >= measured
    trust = Trust.YES if good else Trust.WITH_CARE if ahead >= measured / 2 else Trust.NO
    relative = errors.relative
    words = f"It predicts {ahead} of {measured} steps ahead better than standing still"
    words += f"; its error is {_share(float(relative[0]))} of standing still's one step ahead"
    if measured > 1:
        words += f" and {_share(float(relative[measured - 1]))} {measured} steps ahead"
    if measured < horizon:
        words += f". Dreams are up to {horizon} steps long, but no real stretch was"
    advice = f" Dreams of {ahead} steps (imagination_horizon) end where it stops predicting." if ahead > 1 else ""
    return Finding("Prediction", trust, f"{words}." + ("" if good else advice))


def ends(calibration: Calibration) -> Finding:
    """Whether M expects as many ends as there are."""
    expected, seen, steps = calibration.expected_ends, calibration.seen_ends, calibration.num_steps
    if not steps:
        return Finding("Ends", Trust.UNKNOWN, "No real step to judge.")
    words = f"It expects {expected:.1f} ends where {seen} came, in {steps:,} real steps"
    words += f" (calibration error {calibration.error:.2%})."
    if not seen and expected < 1.0:
        return Finding("Ends", Trust.UNKNOWN, f"{words} Too few to judge.")
    # Half an end more on either side: a ratio of small counts says little, and one of zero nothing.
    factor = math.exp(abs(math.log((expected + 0.5) / (seen + 0.5))))
    if factor <= CARE_FACTOR or abs(expected - seen) <= CHANCE * math.sqrt(max(seen, 1)):
        return Finding("Ends", Trust.YES, words)
    return Finding("Ends", Trust.WITH_CARE if factor <= FAIL_FACTOR else Trust.NO, words)


def promise(near: Promise, whole: Promise) -> Finding:
    """Whether the dream pays what the environment pays."""
    trust, words = _kept(near, f"over {near.steps} steps")
    far_trust, far_words = _kept(whole, "over whole episodes")
    if far_trust is not Trust.UNKNOWN and near.steps < whole.steps:
        trust = max(trust, min(far_trust, Trust.WITH_CARE))
        words = f"{words} {far_words}"
    return Finding("Promise", trust, words)


def _kept(found: Promise, where: str) -> tuple[Trust, str]:
    if not math.isfinite(found.gap):
        return Trust.NO, f"Its dreams leave all finite numbers {where}."
    if math.isinf(found.gap_error):
        return Trust.UNKNOWN, f"A single start says nothing of what it promises {where}."
    share = found.gap / found.scale
    figures = f"{found.dreamed.mean():.2f} dreamed, {found.real.mean():.2f} paid"
    figures += f", gap {found.gap:+.2f} ± {found.gap_error:.2f}"
    if abs(found.gap) <= CHANCE * found.gap_error:
        return Trust.YES, f"It promises what the real environment pays {where}, within chance ({figures})."
    trust = Trust.NO if share > FAIL_AT else Trust.WITH_CARE if share > CARE_AT or share < -FAIL_AT else Trust.YES
    more = "more" if share > 0 else "less"
    return trust, f"It promises {abs(share):.1%} {more} than the real environment pays {where} ({figures})."


def _share(value: float) -> str:
    return "an unknown share" if math.isnan(value) else f"{value:.0%}" if value < 10 else f"{value:.0f} times that"
