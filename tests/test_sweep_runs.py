"""Real sweeps: killed and gone on with, an exploit of PBT, interrupted by Ctrl-C, and by Optuna."""

from __future__ import annotations

import csv
import json
import re
import signal
import time
from pathlib import Path

import pytest
from sweeping import Sweep, trial_results, write_sweep

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

STEPS, METRIC = "num_env_steps_sampled_lifetime", "episode_return_mean"
SPACES = {
    "world_model.vae.learning_rate": {"loguniform": [1e-4, 1e-2]},
    "world_model.mdn_rnn.learning_rate": {"loguniform": [1e-4, 1e-2]},
    "ppo.learning_rate": {"loguniform": [1e-4, 1e-2]},
}
ASHA = {"scheduler": "asha", "num_samples": 4, "asha": {"grace_period": 128, "reduction_factor": 2}}
COMMAND = ("sweep", "--config", "sweep.yaml", "--run-dir", "run", "--resume", "auto")


@pytest.fixture(autouse=True)
def nothing_stays():
    """Ends what a failed test leaves running."""
    yield
    while Sweep.started:
        sweep = Sweep.started.pop()
        if sweep.process.poll() is None:
            sweep.kill()


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "run" / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def ended(output: str) -> set[str]:
    return set(re.findall(r"^trial (\S+)  ended after", output, flags=re.MULTILINE))


def evaluated(output: str) -> set[str]:
    return set(re.findall(r"^trial (\S+)  steps .* evaluation/", output, flags=re.MULTILINE))


def started(output: str) -> set[str]:
    return set(re.findall(r"^trial (\S+)  (?:starts|goes on)", output, flags=re.MULTILINE))


def test_asha_killed_and_gone_on_with(tmp_path):
    spaces = SPACES | {"world_model.vae.latent_dim": {"choice": [2, 3, 4]}}
    write_sweep(tmp_path, ASHA, spaces, **{"stop.total_timesteps": 1280})
    first = Sweep(tmp_path, *COMMAND)
    first.wait_for("ended after")
    done, going_on = set(), set()
    while not going_on:  # one trial has ended and one goes on, both for longer than Tune's records are apart
        first.wait_for("evaluation/")
        done, before = ended(first.output), evaluated(first.output)
        time.sleep(3)
        going_on = before - ended(first.output)
    first.kill()
    lines = {trial: len(results) for trial, results in trial_results(tmp_path / "run").items()}

    second = Sweep(tmp_path, *COMMAND)
    assert second.wait() == 0, second.output
    print(first.output, second.output, sep="--- kill -9, the same command again ---\n")
    assert "going on with the trials" in second.output
    results = trial_results(tmp_path / "run")
    assert len(results) == 4 and done
    assert "goes on" in second.output
    starts = [row for rows in results.values() for row in rows if row["iterations_since_restore"] == 1]
    assert any(row["training_iteration"] > 3 for row in starts)  # from a checkpoint, not from nothing
    assert not done & started(second.output)  # what had ended is not run again
    assert all(len(results[trial]) == lines[trial] for trial in done)
    for rows in results.values():
        iterations = [row["training_iteration"] for row in rows]
        assert sorted(set(iterations)) == list(range(1, max(iterations) + 1))
    table = read_table(tmp_path)
    assert [row["trial"] for row in table if row["status"] == "failed"] == []
    assert {row["trial"] for row in table} == set(results)
    scores = [float(row[f"evaluation/{METRIC}"]) for row in table]
    assert scores == sorted(scores, reverse=True)
    assert {float(row["ppo.learning_rate"]) for row in table} == {rows[0]["config"]["lr"] for rows in results.values()}

    again = Sweep(tmp_path, *COMMAND)  # a sweep that has ended
    assert again.wait() == 0, again.output
    assert not started(again.output) and read_table(tmp_path) == table

    evaluation = Sweep(tmp_path, "evaluate", "run", "--episodes", "2", "--json")
    assert evaluation.wait() == 0, evaluation.output
    assert json.loads(evaluation.output)["episodes"] == 2


def test_exploit_changes_every_optimiser(tmp_path):
    """What counts is what the optimisers work with after another trial's checkpoint has been restored."""
    pbt = {"perturbation_interval": 64, "quantile_fraction": 0.5, "resample_probability": 0.0}
    spaces = SPACES | {"ppo.entropy_coeff": {"uniform": [0.001, 0.1]}}
    write_sweep(tmp_path, {"scheduler": "pbt", "num_samples": 2, "pbt": pbt}, spaces, **{"stop.total_timesteps": 384})
    sweep = Sweep(tmp_path, *COMMAND)
    assert sweep.wait(500) == 0, sweep.output
    print(sweep.output)
    assert re.search(r"^exploit: \S+ \([\d.]+\) takes over from \S+", sweep.output, flags=re.MULTILINE)
    rates = "vae [0-9.e-]+, mdn_rnn [0-9.e-]+, policy [0-9.e-]+"
    assert re.search(f"effective learning rates: {rates}", sweep.output)

    exploits = [json.loads(line) for line in (tmp_path / "run/trials/pbt_global.txt").read_text().splitlines()]
    old, new = exploits[0][4:]
    names = ("vae_lr", "mdn_lr", "lr", "entropy_coeff")
    assert all(
        new[name] == pytest.approx(old[name] * 1.2) or new[name] == pytest.approx(old[name] * 0.8) for name in names
    )
    every_row = [row for rows in trial_results(tmp_path / "run").values() for row in rows]
    rows = [row for row in every_row if all(row["config"][name] == new[name] for name in names)]
    assert rows and min(row[STEPS] for row in rows) > 64  # nobody had these values before
    for row in rows:
        found = row["learning_rates"]
        assert found["vae"] == pytest.approx(new["vae_lr"] * 0.3)  # the mixed phase's fraction
        assert found["mdn_rnn"] == pytest.approx(new["mdn_lr"])
        assert found["policy"] == pytest.approx(new["lr"])
        coefficient = row["learners"]["default_policy"]["curr_entropy_coeff"]
        assert coefficient == pytest.approx(new["entropy_coeff"])


def test_ctrl_c_prints_how_to_go_on(tmp_path):
    write_sweep(tmp_path, ASHA, SPACES)
    sweep = Sweep(tmp_path, *COMMAND[:-2])
    sweep.wait_for("steps 156/512")  # the checkpoint of the evaluation before is written: a trial waits for it
    sweep.process.send_signal(signal.SIGINT)
    assert sweep.wait(120) == 130, sweep.output
    print(sweep.output)
    [command] = re.findall(r"to go on: python -m wm_rllib (.*)", sweep.output)
    assert "Traceback" not in sweep.output
    second = Sweep(tmp_path, *command.split())
    assert second.wait() == 0, second.output
    assert "goes on" in second.output and len(read_table(tmp_path)) == 4


def test_optuna(tmp_path):
    pytest.importorskip("optuna")
    search = {"scheduler": "none", "searcher": "optuna", "num_samples": 3, "max_concurrent_trials": 2}
    write_sweep(tmp_path, search, SPACES, **{"stop.total_timesteps": 128})
    sweep = Sweep(tmp_path, *COMMAND)
    assert sweep.wait() == 0, sweep.output
    assert len(read_table(tmp_path)) == 3
    assert "Error" not in sweep.output
