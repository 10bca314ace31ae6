"""Ratio and horizon of an iteration: as configured, or as the gate chooses them from a judgement of M."""

from __future__ import annotations

from wm_rllib.actors.calling import call
from wm_rllib.env_runners.collection import RealExperience
from wm_rllib.learners.calls import on_learners
from wm_rllib.learners.gate import Judgement
from wm_rllib.mixing import AUTO, ratio_at
from wm_rllib.training.stages import Stages

NUM_WINDOWS = 128
"""Windows of fresh experience that a judgement of M rests on."""


def choose_imagination(stages: Stages, real: RealExperience) -> tuple[float, int]:
    """Ratio and horizon of the iteration that learns from `real`.

    The gate judges M on experience that it has not been fitted to yet: that of this iteration. Without the gate M is
    judged too, for people to see, in iterations that end with an evaluation.
    """
    config, state = stages.config, stages.parts.state
    is_auto = config.imagination_ratio == AUTO
    wanted = is_auto or state.evaluation_is_due(config.evaluation_interval_steps, config.evaluation_interval_iterations)
    judgement = _judge(stages) if wanted and real.raw_refs else None
    if not is_auto:
        if judgement is not None:
            stages.report.add_judgement(judgement, config.imagination_horizon)
        # The ratio of a schedule is that of the step at which the iteration began.
        before = state.num_env_steps - real.num_timesteps
        return ratio_at(config.imagination_ratio, before), config.imagination_horizon
    if judgement is not None:
        state.gate.judge(judgement)
    ratio, horizon = state.gate.ratio(config.gate_bounds), state.gate.horizon(config.gate_bounds)
    stages.report.add_judgement(judgement, horizon)
    stages.report.add_gate(state.gate, horizon)
    return ratio, horizon


def _judge(stages: Stages) -> Judgement | None:
    """Learner 0's judgement of M on the newest experience; None if that was lost with its env runner."""
    seed, service = stages.seed("judge"), stages.parts.replay.service
    with stages.report.stage("judge"):
        if seed is not None:
            call(service, "reseed", seed)
        length = stages.config.burn_in, stages.config.imagination_horizon
        windows_ref = call(service, "newest_windows", NUM_WINDOWS, *length)
        if windows_ref is None:
            return None
        judgements = on_learners(stages.parts.learners, "judge", windows_ref=windows_ref, seed=seed)
    return next(judgement for judgement in judgements if judgement is not None)
