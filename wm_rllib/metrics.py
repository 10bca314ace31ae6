"""The metrics: what each is called, what it means, and the flat row of one iteration.

The same row goes to `progress.jsonl` and to TensorBoard. Nothing here imports Ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Scalar = float | int | str | None
Row = dict[str, Scalar]


class Metric(NamedTuple):
    """What a metric means, for docs/metrics.md."""

    meaning: str
    unit: str


# A name that ends with /* stands for one metric per stage, named after the stage.
METRICS: dict[str, Metric] = {
    "training_iteration": Metric("Iterations so far, over all resumes.", "iterations"),
    "phase": Metric("`random`, `pretrain` or `mixed`.", "name"),
    "num_env_steps_sampled_lifetime": Metric("Real steps so far; evaluation is not counted.", "steps"),
    "mixed_iterations": Metric(
        "Iterations of the mixed phase so far; null before pretraining has ended.", "iterations"
    ),
    "pretraining/done": Metric("Share of pretraining's gradient steps done; null in the other phases.", "0 to 1"),
    "rows/real": Metric("Real rows in this iteration's merged PPO batches, summed.", "rows"),
    "rows/imagined": Metric("Imagined rows in the same batches, summed.", "rows"),
    "imagination/ratio": Metric("Realised share of imagined rows: imagined / (real + imagined).", "0 to 1"),
    "imagination/configured_ratio": Metric(
        "The share asked for, from the setting, its schedule or the gate.", "0 to 1"
    ),
    "imagination/horizon": Metric("Mean realised length of this iteration's dreams.", "steps"),
    "imagination/configured_horizon": Metric(
        "Longest dream that the gate allowed; only at a ratio of `auto`.", "steps"
    ),
    "imagination/skill_next": Metric(
        "Share of the variance of fresh experience that M explains one step ahead; 0 is no better than the mean. Like "
        "the three below and `trust/*`, measured where an evaluation is due and, at a ratio of `auto`, always.",
        "up to 1",
    ),
    "imagination/skill_at_horizon": Metric(
        "The same as many steps ahead as dreams are long; null where no fresh episode is.", "up to 1"
    ),
    "imagination/judged_gap": Metric(
        "Mean dreamed less real discounted return from the same fresh states; null without two to compare.", "return"
    ),
    "imagination/judged_gap_error": Metric(
        "Of which that gap is within 2 by chance in some 90 of 100 iterations: by the spread between stretches of 15 "
        "steps.",
        "return",
    ),
    "imagination/gate_skill": Metric(
        "Running mean of `skill_next`, by which the gate opens; like the one below only at a ratio of `auto`.",
        "up to 1",
    ),
    "imagination/gate_gap": Metric(
        "What of the running mean of `judged_gap` is beyond chance, in standard deviations of returns, each counted as "
        "30 at most. "
        "From 0.7 on it lowers the ratio: at an upper bound of 0.99 and full skill to 0.98 at 1, to 0.85 at 3, to 0.33 "
        "at 10.",
        "standard deviations",
    ),
    "imagination/cut": Metric("Share of this iteration's dreams that were cut because M was unsure.", "0 to 1"),
    "imagination/return_gap": Metric(
        "Mean value target of dreamed rows, bonus included, less that of real ones; dreams start elsewhere, so watch "
        "its trend.",
        "return",
    ),
    "imagination/staleness": Metric(
        "Largest age of a fragment, real or dreamed; what this iteration made is 0.", "iterations"
    ),
    "imagination/dropped_rows": Metric("Rows, real or imagined, dropped because they were too old.", "rows"),
    "imagination/lost_rows": Metric(
        "Rows missing from updates: lost with the process that had them, or left out with those to keep the ratio.",
        "rows",
    ),
    "imagination/surplus_rows": Metric(
        "Imagined rows left over, since with `overlap` they are ordered before the real rows are counted.", "rows"
    ),
    "imagination/updates_skipped": Metric(
        "PPO updates left out because no merge at the ratio was possible.", "updates"
    ),
    "trust/steps_ahead": Metric(
        "Steps ahead up to which M's expectation under the real actions beats saying that nothing changes.", "steps"
    ),
    "trust/error_next": Metric(
        "M's error one step ahead over that of standing still, on fresh experience; 1 is no better.", "ratio"
    ),
    "trust/error_at_horizon": Metric(
        "The same `imagination_horizon` steps ahead; null where no fresh episode is that long.", "ratio"
    ),
    "trust/termination_calibration": Metric(
        "Expected calibration error of M's probability that the next step ends the episode.", "0 to 1"
    ),
    "trust/ends_expected": Metric(
        "Ends that M expected on the windows it was judged on, which overlap: an end counts in each.", "ends"
    ),
    "trust/ends_seen": Metric("Ends that there were on these windows, counted so.", "ends"),
    "replay/steps": Metric(
        "Env steps that the replay holds, where new ones have come in; absent where none have.", "steps"
    ),
    "replay/episodes": Metric("Episodes, or parts of them, that it holds.", "episodes"),
    "replay/gigabytes": Metric("Its images, as stored and with room for more, and their latents.", "10^9 bytes"),
    "vae/reconstruction_loss": Metric(
        "Half the squared error of V on normalised observations, summed over them.", "squared error"
    ),
    "vae/reconstruction_loss_at_start": Metric(
        "The same over the first twentieth of a fit's gradient steps, or of those of its first call to the learners.",
        "squared error",
    ),
    "vae/kl_divergence": Metric("KL of V's posterior from the standard normal.", "nats"),
    "vae/explained": Metric("Images: share of the squared deviation from the mean frame that V explains.", "up to 1"),
    "vae/moving_explained": Metric("The same over pixels that changed since the frame before.", "up to 1"),
    "mdn/nll": Metric("Negative log-likelihood of the next latent under M.", "nats"),
    "mdn/nll_at_start": Metric("The same over the first twentieth, as for V.", "nats"),
    "mdn/reward_loss": Metric("Error of M's reward head.", "squared error"),
    "mdn/termination_loss": Metric("Cross-entropy of M's termination head.", "nats"),
    "ppo/policy_loss": Metric("Clipped surrogate loss.", "-"),
    "ppo/vf_loss": Metric("Value loss.", "squared return"),
    "ppo/entropy": Metric("Mean entropy of the policy.", "nats"),
    "ppo/kl": Metric(
        "KL of the new policy from the one that acted, estimated on the last minibatch; null without dreams.", "nats"
    ),
    "ppo/clip_fraction": Metric(
        "Share of the last minibatch whose likelihood ratio is beyond `ppo.clip_param`; null without dreams.", "0 to 1"
    ),
    "ppo/vf_explained_var": Metric("Share of the returns' variance that the value function explains.", "up to 1"),
    "learning_rates/vae": Metric(
        "Learning rate in V's optimiser at the start of this iteration's fit; null without a fit.", "1 a step"
    ),
    "learning_rates/mdn_rnn": Metric("The same of M.", "1 a step"),
    "learning_rates/policy": Metric(
        "Learning rate in C's optimiser in this iteration's first dream round; null without one.", "1 a step"
    ),
    "world_model/version": Metric("Version of V and M at the parameter server; only grows.", "version"),
    "policy/version": Metric("Version of the controller at the parameter server; only grows.", "version"),
    "env_runners/episode_return_mean": Metric(
        "Mean return of recent real training episodes, of exploring and greedy environments alike.", "return"
    ),
    "env_runners/episode_len_mean": Metric("Mean length of recent real training episodes.", "steps"),
    "env_runners/num_episodes": Metric("Real training episodes that ended in this iteration.", "episodes"),
    "evaluation/episode_return_mean": Metric("Mean return of the greedy evaluation; null when none was due.", "return"),
    "evaluation/episode_return_std": Metric("Standard deviation of those returns.", "return"),
    "evaluation/episodes": Metric("Episodes of that evaluation.", "episodes"),
    "evaluation/confirmation_return_mean": Metric(
        "Mean return of the second evaluation, on fresh episodes, that confirms the first.", "return"
    ),
    "dream_evaluation/episode_return_mean": Metric(
        "Mean return of whole dreamed episodes of the greedy policy, from stored first observations, as M's outcome "
        "head has it; only where no real steps are taken (`online: false`) and an evaluation was due.",
        "return",
    ),
    "dream_evaluation/episode_return_std": Metric("Standard deviation of those returns.", "return"),
    "dream_evaluation/episode_len_mean": Metric("Mean length of those dreams.", "steps"),
    "dream_evaluation/unfinished": Metric(
        "Share of those dreams that went on at the limit (`evaluation.max_dream_steps`).", "0 to 1"
    ),
    "dream_evaluation/episodes": Metric("How many there were.", "episodes"),
    "restarts/env_runners": Metric("Env runners replaced so far.", "restarts"),
    "restarts/dreamers": Metric("Dreamers replaced so far.", "restarts"),
    "restarts/parameter_server": Metric("Parameter servers replaced so far.", "restarts"),
    "faults/env_runner_errors": Metric(
        "Errors of the environments' code so far; an env runner with three in a row ends the run.", "errors"
    ),
    "faults/env_runners_late": Metric(
        "Requests that an env runner did not answer within `env_runners.sample_timeout_s`, so far.", "requests"
    ),
    "faults/evaluation_errors": Metric(
        "Errors of the environments' code in evaluations so far; an evaluation env runner with three in a row ends the "
        "run.",
        "errors",
    ),
    "faults/dreamer_errors": Metric(
        "Errors of the dreamers' code so far; a dreamer with three in a row ends the run.", "errors"
    ),
    "faults/dreamers_late": Metric(
        "Requests that a dreamer did not answer within `dreamers.dreamer_timeout_s`, so far.", "requests"
    ),
    "faults/nodes": Metric("Nodes of the cluster.", "nodes"),
    "faults/nodes_lost": Metric("Nodes that left the cluster so far: killed, cut off, or scaled away.", "nodes"),
    "faults/resumes": Metric("How often this run has gone on from a checkpoint.", "resumes"),
    "seconds/iteration": Metric("Duration of the iteration.", "s"),
    "seconds/total": Metric("Duration of training so far, over all resumes.", "s"),
    "seconds/*": Metric(
        "Duration of one stage of the iteration; with `overlap` `sample` and `dream` are the work of the slowest "
        "actor, and `wait_sample` and `wait_dream` how long the algorithm waited for it.",
        "s",
    ),
    "steps_per_second/*": Metric(
        "Real steps of `sample`, dreamed steps of `dream`, gradient steps of V and M (`fit_updates`) "
        "and rows that PPO learns from (`update_rows`), by that stage's own time.",
        "steps/s",
    ),
}

# In every row, even where the result has nothing to say about them.
ALWAYS: tuple[str, ...] = (
    "training_iteration",
    "phase",
    "num_env_steps_sampled_lifetime",
    "mixed_iterations",
    "rows/real",
    "rows/imagined",
    "imagination/ratio",
    "evaluation/episode_return_mean",
    "world_model/version",
    "restarts/env_runners",
    "restarts/dreamers",
    "restarts/parameter_server",
    "seconds/iteration",
    "seconds/total",
)


def is_documented(name: str) -> bool:
    """Return whether the table has this name, or the group that it belongs to."""
    return name in METRICS or f"{name.partition('/')[0]}/*" in METRICS


def _scalar(value: Any) -> Scalar:
    """Return a number or text as JSON has it; None for what is neither, and for what is not finite."""
    item = getattr(value, "item", None)
    if item is not None:
        try:
            value = item()
        except (ValueError, RuntimeError):  # an array, not a number
            return None
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int | str) else None


def _flatten(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def progress_row(result: Mapping[str, Any]) -> Row:
    """Return the flat row of one iteration.

    Args:
        result: Nested result of `Algorithm.train()`.

    Returns:
        Metrics of the table that the result holds, by name with slashes, in the table's order. What is missing
        or not a finite number is None; `ALWAYS` names what is there in any case.
    """
    known = {name: _scalar(value) for name, value in _flatten(result) if is_documented(name)}
    known.setdefault("seconds/iteration", _scalar(result.get("time_this_iter_s")))
    for name in ALWAYS:
        known.setdefault(name, None)
    order = list(METRICS)
    rank = {name: order.index(name if name in METRICS else f"{name.partition('/')[0]}/*") for name in known}
    return {name: known[name] for name in sorted(known, key=lambda name: (rank[name], name))}
