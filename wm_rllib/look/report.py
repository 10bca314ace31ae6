"""What a report consists of, and in which order."""

from __future__ import annotations

from typing import Any

import yaml

from wm_rllib import __version__
from wm_rllib.look import page, plots
from wm_rllib.look.dream_check import DreamCheck
from wm_rllib.look.names import dimension_names
from wm_rllib.look.pictures import data_uri
from wm_rllib.look.run import RunHistory, number
from wm_rllib.look.verdict import Verdict
from wm_rllib.models.trust import Calibration
from wm_rllib.runs.console import format_duration
from wm_rllib.settings.settings import to_tree


def make_report(run: RunHistory, check: DreamCheck | None, verdict: Verdict, source: str) -> str:
    """The report's HTML.

    Args:
        run: The run's history.
        check: What was found of its dream; None if nothing was measured.
        verdict: What follows from that.
        source: Which checkpoint was measured, as a person would call it.
    """
    body = [page.facts(_facts(run)), page.verdict_box(verdict), _learning(run)]
    if check is not None:
        body += _dream_sections(run, check, source)
    body += [_training(run), _stages(run), _counters(run), _settings(run)]
    body.append(page.paragraph(f"Written by wm_rllib {__version__} from {run.path}."))
    return page.page(f"{run.env_id}: {run.path.absolute().name}", body)


def _facts(run: RunHistory) -> dict[str, Any]:
    evaluations = run.series("evaluation/episode_return_mean")[1]
    steps, seconds = run.last("num_env_steps_sampled_lifetime"), number(run.last("seconds/total"))
    return {
        "state": run.state,
        "iterations": run.last("training_iteration") or 0,
        "real steps": f"{int(steps or 0):,}",
        "training time": "-" if seconds is None else format_duration(seconds),
        "last evaluation": f"{evaluations[-1]:.1f}" if evaluations else "none yet",
        "best evaluation": f"{max(evaluations):.1f}" if evaluations else "none yet",
        "resumed": f"{run.last('faults/resumes') or 0} times",
        "seed": run.settings.get("seed"),
    }


def _learning(run: RunHistory) -> str:
    if not run.rows:
        return page.section("Learning", page.paragraph("No iteration has ended yet."))
    phases = ", ".join(f"{name} up to {int(stop):,}" for name, _, stop in run.phases)
    return page.section("Learning", plots.learning_curve(run), page.paragraph(f"Phases, in {run.axis}: {phases}."))


def _dream_sections(run: RunHistory, check: DreamCheck, source: str) -> list[str]:
    figures = check.figures
    names = dimension_names(run.env_id, figures.on_policy.predicted.shape[1])
    settings = figures.settings
    measured = (
        f"Measured on {source}, with {figures.num_episodes} fresh episodes of its exploring policy and as many of "
        f"random actions. Dreams are up to {settings.horizon} steps long, start after up to {settings.burn_in} real "
        f"steps, and are drawn at temperature {settings.temperature:g}."
    )
    film = [page.image(data_uri(check.film), "real frames above dreamed ones")] if check.film is not None else []
    real = page.section(
        "Real against dreamed",
        page.paragraph(
            f"{measured} Below: one real stretch, what M expects of it under the same actions, and dreams of it."
        ),
        *film,
        plots.traces(figures.traces, names),
    )
    return [real, *_measured_sections(check, names)]


def _measured_sections(check: DreamCheck, names: list[str]) -> list[str]:
    figures = check.figures
    return [
        page.section(
            "How far ahead it predicts",
            page.paragraph(
                "M's expectation is fed back to it step after step, under the actions that were really taken. Below "
                "the dashed line it knows more than that nothing will change."
            ),
            plots.open_loop(figures, names),
        ),
        page.section(
            "What it promises",
            page.paragraph(
                "Left: ends that M expected, step by step, beside those that came. Right: what dreams of the same "
                "policy from the same states bring, a dot for each start, beside what the environment paid."
            ),
            page.row_of(plots.reliability(figures.ends), plots.promises(figures.near, figures.whole)),
            _promise_table(check),
            page.folded("Ends in numbers", _reliability_table(figures.ends)),
        ),
        page.section(
            "What its latents stand for",
            page.paragraph(
                "Each latent is moved over its range, the others stay at their mean; V decodes. Latents that move "
                "nothing are left out."
            ),
            plots.traversals(figures.traversal, check.obs_scale, names),
        ),
    ]


def _promise_table(check: DreamCheck) -> str:
    rows = []
    for name, promise in (("over the horizon", check.figures.near), ("whole episodes", check.figures.whole)):
        rows.append(
            (
                name,
                len(promise.real),
                f"{promise.real.mean():.2f} ± {promise.real.std():.2f}",
                f"{promise.dreamed.mean():.2f} ± {promise.dreamed.std():.2f}",
                f"{promise.gap:+.2f} ± {promise.gap_error:.2f}",
            )
        )
    return page.table(("rewards", "starts", "paid (mean ± spread)", "dreamed", "gap ± standard error"), rows)


def _reliability_table(ends: Calibration) -> str:
    rows = [
        (f"{low:.1%} to {high:.1%}", f"{count:,}", f"{predicted:.2%}", f"{seen:.2%}", f"{count * seen:.0f}")
        for low, high, count, predicted, seen in zip(
            ends.edges, ends.edges[1:], ends.counts, ends.predicted, ends.seen, strict=False
        )
        if count
    ]
    return page.table(("probability of an end", "steps", "says M, mean", "came", "ends"), rows)


def _training(run: RunHistory) -> str:
    drawn = plots.imagination(run), plots.losses(run)
    return page.section("Imagination and the world model in training", *drawn) if any(drawn) else ""


def _stages(run: RunHistory) -> str:
    if not run.stage_seconds:
        return ""
    total = sum(run.stage_seconds.values())
    rows = [(name, f"{seconds:.1f}", f"{seconds / total:.0%}") for name, seconds in run.stage_seconds.items()]
    note = "With overlap, sample and dream run beside the others, so that the sum is more than what passed."
    content = [plots.stages(run), page.table(("stage", "s", "share"), rows)]
    if run.settings.get("world_model.training.overlap"):
        content.append(page.paragraph(note))
    return page.section("Seconds of every stage", *content)


def _counters(run: RunHistory) -> str:
    counters = run.counters
    notable = {name: value for name, value in counters.items() if value and name != "faults/nodes"}
    words = (
        "Nothing was restarted, lost or late." if not notable else ", ".join(f"{k}: {v:g}" for k, v in notable.items())
    )
    return page.section(
        "Restarts and faults",
        page.paragraph(words),
        page.folded("All counters", page.table(("counter", "count"), counters.items())),
    )


def _settings(run: RunHistory) -> str:
    if not run.settings:
        return page.section("Settings", page.paragraph("The run folder has no settings that this version can read."))
    text = yaml.safe_dump(to_tree(run.settings), sort_keys=False)
    return page.section("Settings", page.folded("config.yaml", f"<pre>{page.text(text)}</pre>"))
