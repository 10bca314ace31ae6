"""Checkpoints that survive a kill at any moment, the run folder, and the run loop on a scripted algorithm."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_algorithm import FakeAlgorithm

from wm_rllib.cli.train import train
from wm_rllib.metrics import progress_row
from wm_rllib.runs import checkpoints
from wm_rllib.runs.checkpoints import CheckpointMeta, read_meta
from wm_rllib.runs.console import Console, format_duration
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.loop import End
from wm_rllib.runs.memory import MemoryMonitor
from wm_rllib.runs.plan import RunPlan
from wm_rllib.runs.resolving import resolve
from wm_rllib.runs.run_folder import RunFolder
from wm_rllib.runs.signals import StopSignals


@pytest.fixture
def folder(tmp_path):
    run_folder = RunFolder(tmp_path / "run")
    run_folder.open()
    yield run_folder
    run_folder.close()


def write(folder, name, iteration, text="state"):
    meta = CheckpointMeta(iteration, iteration * 100, 1.0)
    return checkpoints.write(folder, name, meta, {}, lambda path: (path / "state").write_text(text))


# Checkpoints


class Killed(BaseException):
    """Stands for kill -9: nothing cleans up after it."""


@pytest.mark.parametrize("kill_at", range(11))
def test_a_kill_at_any_file_operation_keeps_a_finished_checkpoint(tmp_path, monkeypatch, kill_at):
    write(tmp_path, "last", 1)
    calls = {"count": 0}

    def guarded(function):
        def call(*args, **kwargs):
            if calls["count"] == kill_at:
                raise Killed
            calls["count"] += 1
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for module, name in ((os, "rename"), (os, "replace"), (shutil, "rmtree"), (Path, "mkdir")):
            patch.setattr(module, name, guarded(getattr(module, name)))
        try:
            write(tmp_path, "last", 2)
        except Killed:
            pass
    found = checkpoints.find(tmp_path, "last")
    assert found is not None and read_meta(found).training_iteration in (1, 2)
    checkpoints.recover(tmp_path, "last")
    assert read_meta(tmp_path / "last").training_iteration in (1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    write(tmp_path, "last", 3)
    assert read_meta(tmp_path / "last").training_iteration == 3


def test_failed_save_keeps_the_one_before(tmp_path):
    write(tmp_path, "last", 1)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.write(tmp_path, "last", CheckpointMeta(2, 200, 1.0), {}, lambda path: _fail())
    assert read_meta(checkpoints.find(tmp_path, "last")).training_iteration == 1


def _fail():
    raise OSError("disk full")


def test_copy_keeps_content_and_meta(tmp_path):
    source = write(tmp_path, "last", 4, "four")
    copied = checkpoints.copy(source, tmp_path, "best")
    assert (copied / "state").read_text() == "four"
    assert read_meta(copied) == read_meta(source)


def test_resolve_takes_checkpoints_and_run_folders(tmp_path):
    run = tmp_path / "run"
    last = write(run / "checkpoints", "last", 1)
    assert resolve(last, ("best", "last")) == last
    assert resolve(run, ("best", "last")) == last
    best = write(run / "checkpoints", "best", 1)
    assert resolve(run, ("best", "last")) == best
    assert resolve(run / "checkpoints", ("last", "best")) == last


def test_resolve_refuses_what_is_none(tmp_path):
    with pytest.raises(CommandError, match="does not exist"):
        resolve(tmp_path / "none", ("last",))
    with pytest.raises(CommandError, match="no checkpoint of wm_rllib"):
        resolve(tmp_path, ("last",))


def test_other_formats_are_refused(tmp_path):
    path = write(tmp_path, "last", 1)
    content = json.loads((path / checkpoints.META_FILE).read_text())
    (path / checkpoints.META_FILE).write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(CommandError, match="format 99"):
        read_meta(path)


# The folder


def test_used_folder_is_refused_and_an_empty_one_is_not(folder):
    folder.refuse_if_used()
    folder.progress.write_text("")
    with pytest.raises(CommandError, match="in use: it holds progress"):
        folder.refuse_if_used()


def test_second_process_is_refused_until_the_first_has_ended(folder, processes_without_ray):
    code = (
        "import sys; from wm_rllib.runs.run_folder import RunFolder\n"
        "from wm_rllib.runs.errors import CommandError\n"
        f"try: RunFolder({str(folder.path)!r}).open()\n"
        "except CommandError as error: print(error); sys.exit(2)"
    )
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert refused.returncode == 2, refused.stderr
    assert f"in use by the running process {os.getpid()}" in refused.stdout
    folder.close()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CommandError, match="cannot be written"):
        RunFolder(tmp_path / "file").open()
    assert (tmp_path / "file").read_text() == "mine"


def write_progress(folder, iterations, end=""):
    rows = [json.dumps({"training_iteration": iteration}) + "\n" for iteration in iterations]
    folder.progress.write_text("".join(rows) + end)


def iterations_of(folder):
    return [json.loads(line)["training_iteration"] for line in folder.progress.read_text().splitlines()]


def test_cut_back_drops_later_and_half_written_lines(folder):
    last = write(folder.checkpoints, "last", 3)
    write_progress(folder, range(1, 6), end='{"training_iter')
    folder.cut_back(last)
    assert iterations_of(folder) == [1, 2, 3]


def test_cut_back_to_an_older_checkpoint_replaces_the_newer_last(folder):
    write(folder.checkpoints, "last", 9)
    best = write(folder.checkpoints, "best", 4, "four")
    write_progress(folder, range(1, 10))
    folder.cut_back(best)
    assert iterations_of(folder) == [1, 2, 3, 4]
    assert read_meta(folder.newest_checkpoint()).training_iteration == 4
    assert (folder.checkpoints / "last" / "state").read_text() == "four"


def test_cut_back_to_nothing(folder):
    write_progress(folder, range(1, 4))
    folder.cut_back(None)
    assert iterations_of(folder) == []


# The loop


def plan_for(folder, source=None, total=500, goal=None, frequency=2):
    start = read_meta(source) if source else CheckpointMeta(0, 0, 0.0)
    values = {"stop.total_timesteps": total, "stop.return": goal}
    config = SimpleNamespace(checkpoint_frequency=frequency, evaluation_duration=20)
    return RunPlan(folder, values, config, {"seed": 1}, source, start, {})


def run(folder, algorithm, **options):
    plan = plan_for(folder, **options)
    console = Console(io.StringIO(), plan.rule.total_timesteps)
    with StopSignals() as signals:
        return train(plan, folder, console, signals, lambda: algorithm, tensorboard=False)


def rows_of(folder):
    return [json.loads(line) for line in folder.progress.read_text().splitlines()]


def test_ends_at_the_steps_with_a_checkpoint(folder):
    algorithm = FakeAlgorithm()
    outcome = run(folder, algorithm)
    assert (outcome.end, outcome.checkpoint, algorithm.stopped) == (End.STEPS, folder.checkpoints / "last", True)
    assert iterations_of(folder) == [1, 2, 3, 4, 5]
    meta = read_meta(outcome.checkpoint)
    assert (meta.training_iteration, meta.num_env_steps, meta.finished) == (5, 500, True)
    assert rows_of(folder)[0]["evaluation/episode_return_mean"] is None


def test_ends_at_the_iterations_of_the_mixed_phase(folder):
    plan = replace(plan_for(folder, total=10_000), values={"stop.iterations": 2})
    with StopSignals() as signals:
        console = Console(io.StringIO(), None, total_iterations=2)
        outcome = train(plan, folder, console, signals, lambda: FakeAlgorithm(mixed_from=3), tensorboard=False)
    assert outcome.end is End.ITERATIONS
    assert [row["mixed_iterations"] for row in rows_of(folder)] == [None, None, 0, 1, 2]
    assert read_meta(outcome.checkpoint).finished


def test_the_console_counts_what_ends_the_run():
    stream = io.StringIO()
    console = Console(stream, None, total_iterations=1200)
    for mixed in (None, 0, 300):
        console.show(progress_row({"training_iteration": 5, "phase": "mixed", "mixed_iterations": mixed}))
    lines = stream.getvalue().splitlines()
    assert "iteration 5  " in lines[0] and "ETA -" in lines[0]
    assert "(0/1,200 mixed)" in lines[1] and "ETA -" in lines[1]
    assert "(300/1,200 mixed)" in lines[2] and "ETA 0s" in lines[2]


def test_return_ends_only_when_a_second_evaluation_confirms_it(folder):
    algorithm = FakeAlgorithm(returns={2: 480.0, 4: 476.0}, confirmations=[470.0, 477.0])
    outcome = run(folder, algorithm, total=10_000, goal=475)
    assert (outcome.end, outcome.returns) == (End.RETURN, (476.0, 477.0))
    assert [row.get("evaluation/confirmation_return_mean") for row in rows_of(folder)] == [None, 470.0, None, 477.0]
    # What was confirmed is the best, though an evaluation before it was higher.
    assert outcome.checkpoint == folder.checkpoints / "best"
    assert read_meta(outcome.checkpoint).training_iteration == 4
    assert read_meta(folder.checkpoints / "last").training_iteration == 4


def test_best_keeps_the_first_of_equals(folder):
    outcome = run(folder, FakeAlgorithm(returns={1: 10.0, 2: 30.0, 3: 30.0, 4: 20.0}))
    assert outcome.checkpoint == folder.checkpoints / "best"
    assert json.loads((outcome.checkpoint / "state.json").read_text()) == 2
    assert json.loads((folder.checkpoints / "last" / "state.json").read_text()) == 5


def test_signal_writes_a_checkpoint_after_the_iteration(folder):
    algorithm = FakeAlgorithm(on_train=lambda i: os.kill(os.getpid(), signal.SIGTERM) if i == 3 else None)
    outcome = run(folder, algorithm, frequency=100)
    assert outcome.end is End.SIGNAL
    assert read_meta(folder.checkpoints / "last").training_iteration == 3
    assert not outcome.meta.finished
    assert iterations_of(folder) == [1, 2, 3]


def test_a_signal_in_the_last_iteration_leaves_the_run_to_be_gone_on_with(folder):
    """Cut short, that iteration owes its fit, its updates and its evaluation."""
    algorithm = FakeAlgorithm(on_train=lambda i: os.kill(os.getpid(), signal.SIGTERM) if i == 5 else None)
    outcome = run(folder, algorithm, total=500, frequency=100)
    assert outcome.end is End.SIGNAL and not outcome.meta.finished
    again = run(folder, FakeAlgorithm(), total=500, source=folder.checkpoints / "last", frequency=100)
    assert again.end is End.STEPS and again.meta.finished and iterations_of(folder) == [1, 2, 3, 4, 5, 6]


def test_after_a_signal_nothing_is_confirmed_before_the_checkpoint(folder):
    algorithm = FakeAlgorithm(
        returns={3: 480.0}, on_train=lambda i: os.kill(os.getpid(), signal.SIGTERM) if i == 3 else None
    )
    outcome = run(folder, algorithm, total=10_000, goal=475, frequency=100)
    assert outcome.end is End.SIGNAL and not outcome.meta.finished
    assert read_meta(folder.checkpoints / "best").best_return == 480.0
    assert read_meta(folder.checkpoints / "last").training_iteration == 3


def test_a_resume_finds_the_best_that_was_about_to_be_put_in_its_place(folder):
    run(folder, FakeAlgorithm(returns={1: 1.0}), total=100, frequency=100)
    shutil.rmtree(folder.checkpoints / "last")
    os.rename(folder.checkpoints / "best", folder.checkpoints / ".tmp-best")  # a kill between two renames
    source = folder.newest_checkpoint()
    assert source.name == ".tmp-best"
    outcome = run(folder, FakeAlgorithm(), source=source, total=300)
    assert outcome.meta.training_iteration == 3 and iterations_of(folder) == [1, 2, 3]


def test_second_signal_ends_at_once():
    asked = []
    with pytest.raises(SystemExit) as error, StopSignals() as signals, signals.held(lambda: asked.append(1)):
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [1] and signals.received == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
    assert error.value.code == 130 and asked == [1]


def test_a_signal_before_there_is_anything_to_save_ends_at_once():
    with pytest.raises(SystemExit) as error, StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert error.value.code == 143


def test_a_signal_cuts_the_iteration_short(folder):
    algorithm = FakeAlgorithm(on_train=lambda i: os.kill(os.getpid(), signal.SIGTERM) if i == 2 else None)
    run(folder, algorithm, frequency=100)
    assert (algorithm.iteration, algorithm.cut_short_in) == (2, [2])


def test_killed_and_resumed_run_has_no_gap_and_no_repeat(folder):
    def fail(iteration):
        if iteration == 4:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(folder, FakeAlgorithm(on_train=fail, returns={3: 9.0}))
    assert iterations_of(folder) == [1, 2, 3]
    last = folder.checkpoints / "last"
    assert read_meta(last).training_iteration == 2
    best_before = (folder.checkpoints / "best" / "state.json").stat().st_mtime_ns
    outcome = run(folder, FakeAlgorithm(returns={3: 9.0}), source=last)
    assert iterations_of(folder) == [1, 2, 3, 4, 5]
    assert outcome.meta.training_iteration == 5
    assert (folder.checkpoints / "best" / "state.json").stat().st_mtime_ns == best_before
    seconds = [row["seconds/total"] for row in rows_of(folder)]
    assert seconds == sorted(seconds)


def test_tensorboard_gets_the_rows(folder):
    plan = plan_for(folder, total=200)
    with StopSignals() as signals:
        train(plan, folder, Console(io.StringIO(), 200), signals, FakeAlgorithm, tensorboard=True)
    assert any(b"imagination/ratio" in path.read_bytes() for path in folder.tensorboard.iterdir())


# What it shows


class Terminal(io.StringIO):
    def isatty(self):
        return True


def row(steps=500):
    return {
        "training_iteration": 7,
        "phase": "mixed",
        "num_env_steps_sampled_lifetime": steps,
        "imagination/ratio": 0.9,
        "evaluation/episode_return_mean": 123.4,
        "env_runners/episode_return_mean": None,
    }


def test_pipe_gets_one_plain_line_an_iteration():
    stream = io.StringIO()
    console = Console(stream, 1000)
    console.show(row())
    console.show(row(600))
    console.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    for part in ("mixed", "steps 500/1,000", "return -", "evaluation 123.4", "imagination 0.900", "steps/s", "ETA "):
        assert part in lines[0]
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_terminal_gets_one_live_line():
    stream = Terminal()
    console = Console(stream, 1000)
    console.show(row())
    console.show(row(600))
    console.say("done")
    assert stream.getvalue().count("\n") == 1
    assert "[############........]" in stream.getvalue()


def test_console_without_an_end():
    stream = io.StringIO()
    Console(stream, None).show(row())
    assert "ETA -" in stream.getvalue()


def test_durations():
    assert [format_duration(s) for s in (5.9, 65, 3700)] == ["5s", "1m05s", "1h01m"]


def test_memory_peak_holds_this_process():
    monitor = MemoryMonitor(interval_s=0.01)
    monitor.start()
    deadline = time.monotonic() + 30
    while not monitor.peak.proportional and time.monotonic() < deadline:
        time.sleep(0.01)
    peak = monitor.stop()
    assert 1e7 < peak.proportional <= peak.resident
    assert "GB resident" in str(peak)
