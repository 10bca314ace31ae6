"""The benchmark's measure, store, figures and report, with scripted contenders; no Ray."""

import json
import math
import re
import time
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from fake_contenders import Constant, Learner

from wm_rllib.benchmark.aggregation import (
    Bound,
    bounded_quantile,
    first,
    group_results,
    quantile,
    return_at,
    spread,
    steps_to_threshold,
)
from wm_rllib.benchmark.contenders import CONTENDERS, find_contender
from wm_rllib.benchmark.job import Job, Measure
from wm_rllib.benchmark.measuring import FAILED, SOLVED, STEP_LIMIT, TIME_LIMIT, Point, measure, untouched_generators
from wm_rllib.benchmark.plot import common_grid
from wm_rllib.benchmark.running import pending_jobs, run_jobs
from wm_rllib.benchmark.store import Result, Store, plain, slug
from wm_rllib.benchmark.suite import Wishes, make_jobs
from wm_rllib.cli.main import main
from wm_rllib.environments.pixels import PixelSettings
from wm_rllib.runs.errors import CommandError
from wm_rllib.settings.settings import SettingError

RULE = Measure(interval=100, episodes=3, confirm_episodes=7, threshold=25.0, max_steps=500, budgets=(200, 400))


def a_job(contender="fake_contenders:LEARNER", seed=0, **changes):
    return Job("suite", "fake_contenders:Say", contender, seed, replace(RULE, **changes))


def a_result(means, seed=0, contender="a", status=SOLVED, step=100, confirm=True, load=1.0, **changes):
    """A result whose evaluations have these means, one every `step` steps and half as many seconds."""
    job = a_job(contender, seed, **changes)
    curve = [
        Point(step * n, step * n / 2, 1.0, [mean] * 3, [mean if confirm else 0.0] * 7 if mean >= 25.0 else None)
        for n, mean in enumerate(means, 1)
    ]
    origin = {
        "command": "python -m wm_rllib benchmark run",
        "git_commit": "0123456789abcdef",
        "git_dirty": False,
        "hardware": {"cpu": "a cpu", "usable_cores": 2, "memory_bytes": 2**33, "gpu": None},
        "versions": {"torch": "2", "stable-baselines3": None},
        "num_threads": 1,
        "load_average": [load, 1.0, 1.0],
    }
    return Result(job, status, tuple(curve), {"lr": 0.1}, 1.5, {"resident": 5}, origin)


class TestMeasure:
    def measured(self, **changes):
        points = []
        trainer = Learner(None, {})
        status = measure(trainer, a_job(**changes), points.append)
        return status, points

    def test_evaluates_with_the_first_call_that_crosses_a_multiple(self):
        # 30, 70, 110*, 150, 190, 230*, 270, 310*, ... : steps reach 100, 200, 300 with these calls
        status, points = self.measured(threshold=None, max_steps=310)
        assert status == STEP_LIMIT
        assert [point.steps for point in points] == [110, 230, 310]
        assert [point.mean for point in points] == [11.0, 23.0, 31.0]
        assert all(len(point.returns) == 3 and point.confirmation is None for point in points)

    def test_evaluates_after_each_call_that_is_longer_than_the_interval(self):
        _, points = self.measured(threshold=None, interval=10, max_steps=150)
        assert [point.steps for point in points] == [30, 70, 110, 150]

    def test_the_end_is_evaluated_too(self):
        _, points = self.measured(threshold=None, max_steps=180)
        assert [point.steps for point in points] == [110, 190]

    def test_ends_when_fresh_episodes_confirm_the_threshold(self):
        status, points = self.measured()
        assert status == SOLVED
        assert [point.steps for point in points] == [110, 230, 310]
        assert points[-1].confirmation == [pytest.approx(31.0)] * 7

    def test_goes_on_if_asked_to_and_confirms_once(self):
        status, points = self.measured(stop_when_solved=False)
        assert status == STEP_LIMIT
        assert [point.steps for point in points] == [110, 230, 310, 430, 510]
        assert [point.confirmation is not None for point in points] == [False, False, True, False, False]

    def test_environment_arguments_reach_the_evaluation(self):
        points = []
        measure(Learner(None, {}), replace(a_job(max_steps=110), env_config={"offset": 5.0}), points.append)
        assert points[0].mean == pytest.approx(16.0)

    def test_pixel_settings_reach_the_evaluation(self):
        points = []
        job = replace(a_job(max_steps=110), env_id="custom_envs:Cinema", pixels=PixelSettings("screen", frame_skip=5))
        measure(Learner(None, {}), job, points.append)  # its images have a channel axis, and twelve frames pay 1 each
        assert points[0].mean == 12.0
        assert Job.from_dict(json.loads(json.dumps(job.to_dict()))) == job

    def test_seconds_leave_evaluation_out(self, monkeypatch):
        act = Constant.act
        monkeypatch.setattr(Constant, "act", lambda *arguments: time.sleep(0.3) or act(*arguments))
        _, points = self.measured(threshold=None, max_steps=310)
        assert points[0].train_seconds < points[-1].train_seconds < 0.5 * points[-1].evaluate_seconds
        assert 0 < points[0].evaluate_seconds < points[-1].evaluate_seconds

    def test_evaluation_draws_nothing_from_the_training(self):
        np.random.seed(0)
        expected = np.random.rand(2)
        np.random.seed(0)
        one = np.random.rand()
        with untouched_generators():
            np.random.rand(10)
        assert [one, np.random.rand()] == list(expected)


class TestStore:
    def test_round_trip(self, tmp_path):
        store = Store(tmp_path)
        result = replace(a_result([1.0, 30.0]), error="no\nproblem")
        path = store.write(result)
        assert path == tmp_path / "suite" / slug("fake_contenders:Say") / "a" / "seed0.json"
        assert store.read(result.job) == result
        assert [store.read_suite("suite")[0]] == [result]

    def test_what_json_has_no_form_for(self, tmp_path):
        result = replace(a_result([1.0]), settings={"clip": math.inf, "small": 1e-9, "class": int})
        path = Store(tmp_path).write(result)
        settings = json.loads(path.read_text())["settings"]
        assert settings == {"clip": "inf", "small": 1e-9, "class": "<class 'int'>"}

    def test_different_contenders_have_different_files(self):
        assert slug("wm@ppo.gamma=0.9") == "wm@ppo.gamma=0.9"
        specs = ("wm@a=[1,2]", "wm@a=(1,2)", "wm@a=-1,2-")
        assert len({slug(spec) for spec in specs}) == 3

    def test_errors_name_file_and_fix(self, tmp_path):
        store = Store(tmp_path)
        with pytest.raises(CommandError, match=r"no results of suite 'none'.*Fix"):
            store.read_suite("none")
        path = store.write(a_result([1.0]))
        path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
        with pytest.raises(CommandError, match=r"format 2.*reads 1.*Fix"):
            store.read_suite("suite")
        path.write_text("{")
        with pytest.raises(CommandError, match=r"seed0.json is no benchmark result.*Fix"):
            store.read_suite("suite")

    @pytest.mark.parametrize(
        ("status", "skipped"), [(SOLVED, True), (TIME_LIMIT, True), (FAILED, False), ("running", False)]
    )
    def test_complete_results_are_kept(self, tmp_path, status, skipped):
        store, lines = Store(tmp_path), []
        result = a_result([1.0], contender="random", status=status)
        store.write(result)
        pending = pending_jobs([result.job], store, force=False, say=lines.append)
        assert pending == ([] if skipped else [result.job])
        assert bool(lines) == skipped
        assert pending_jobs([result.job], store, force=True, say=lines.append) == [result.job]

    def test_says_when_a_kept_result_was_measured_otherwise(self, tmp_path):
        store, lines = Store(tmp_path), []
        store.write(a_result([1.0], contender="random", budgets=()))
        jobs = [a_job("random"), a_job("random", interval=50)]
        assert not pending_jobs(jobs, store, force=False, say=lines.append)
        assert "other settings" not in lines[0] and "other settings" in lines[1]

    def test_says_when_defaults_have_changed_since(self, tmp_path):
        job = replace(a_job("wm@ppo.gamma=0.9"), env_id="CartPole-v1")
        contender, values = find_contender(job.contender)
        now = plain(contender.resolve(job, values))
        before = {**now, "ppo": {**now["ppo"], "num_epochs": 99, "clip_param": 5.0}}
        for settings, words in ((now, ""), (before, "ppo.clip_param 5.0, now 0.2 and 1 more")):
            store, lines = Store(tmp_path), []
            store.write(Result(job, SOLVED, settings=settings))
            assert pending_jobs([job], store, force=False, say=lines.append) == []
            assert words in lines[0] and ("other settings" in lines[0]) == bool(words)

    def test_a_result_stays_until_there_is_a_new_one(self, tmp_path):
        store = Store(tmp_path)
        old = a_result([1.0])
        store.write(old)
        running = replace(old, status="running", curve=())
        store.write(running)
        assert store.read(old.job) == old and store.read_partial(old.job) == running
        assert store.read_suite("suite") == [old]
        new = a_result([2.0])
        store.write(new)
        assert store.read(old.job) == new and store.read_partial(old.job) is None

    def test_one_process_measures_a_suite(self, tmp_path):
        store = Store(tmp_path)
        with store.writing("suite"):
            with (
                pytest.raises(CommandError, match=r"written by another `benchmark run`. Fix: "),
                store.writing("suite"),
            ):
                pass
            with store.writing("another"):
                pass
        with store.writing("suite"):
            pass


class TestFigures:
    def test_quantile_is_numpys(self):
        values = [3.0, 1.0, 10.0, 4.0]
        for share in (0, 0.25, 0.5, 0.75, 0.9, 1):
            assert quantile(values, share) == pytest.approx(np.quantile(values, share))

    def test_unsolved_seeds_count_as_more_than_any(self):
        # Unsolved after 400 steps, although another seed needed 900: it is not the fastest.
        values = [Bound(500.0), Bound(900.0), Bound(400.0, is_exact=False)]
        assert bounded_quantile(values, 0.5) == Bound(900.0)
        assert bounded_quantile(values, 0.25) == Bound(700.0)
        # The upper quartile lies between 900 and the unsolved one: all that is known is where it would be without it.
        assert bounded_quantile(values, 0.75) == Bound(700.0, is_exact=False)

    def test_a_median_of_unsolved_seeds_is_a_bound(self):
        values = [Bound(500.0), Bound(2000.0, is_exact=False), Bound(2000.0, is_exact=False)]
        assert spread(values).median == Bound(2000.0, is_exact=False)
        assert spread(values).low == Bound(1250.0, is_exact=False)

    def test_first_and_confirmed(self):
        result = a_result([1.0, 30.0, 10.0, 26.0])
        lucky = replace(
            result, curve=(result.curve[0], replace(result.curve[1], confirmation=[0.0] * 7), *result.curve[2:])
        )
        assert first(lucky, confirmed=False).steps == 200
        assert first(lucky, confirmed=True).steps == 400
        assert steps_to_threshold(lucky, confirmed=True) == Bound(400.0)
        assert steps_to_threshold(a_result([1.0, 2.0]), confirmed=False) == Bound(200.0, is_exact=False)
        assert steps_to_threshold(a_result([]), confirmed=False) == Bound(0.0, is_exact=False)

    def test_return_at_a_budget(self):
        result = a_result([1.0, 2.0, 3.0])
        assert return_at(result, 200) == 2.0
        assert return_at(result, 250) == 2.0
        assert return_at(result, 50) is None  # no evaluation yet
        assert return_at(result, 301) is None  # it ended before

    def test_groups_are_ordered_by_steps(self):
        results = [
            *(a_result([1.0] * 3, seed, "never") for seed in (0, 1)),
            *(a_result([1.0, 30.0], seed, "soon") for seed in (1, 0)),
            a_result([30.0], 0, "at once"),
        ]
        groups = group_results(results)["fake_contenders:Say"]
        assert [group.contender for group in groups] == ["at once", "soon", "never"]
        assert [result.job.seed for result in groups[1].results] == [0, 1]

    def test_curves_on_a_common_grid_hold_their_last_evaluation(self):
        grid, returns = common_grid([a_result([1.0, 2.0]), a_result([3.0], step=400)])
        assert grid.tolist() == [400]
        assert returns.tolist() == [[2.0], [3.0]]
        grid, returns = common_grid([a_result([1.0, 2.0, 5.0]), a_result([4.0])])
        assert returns[0, 0] == 1.0 and returns[0, -1] == 5.0
        assert (returns[1] == 4.0).all()
        assert returns[0][grid.tolist().index(200)] == 2.0
        assert returns[0][grid.tolist().index(199)] == 1.0


class TestContenders:
    def test_names_and_their_settings(self):
        assert find_contender("wm")[1] == {}
        assert find_contender("wm-untrained-m-no-imagination")[1] == {
            "world_model.mdn_rnn.frozen": True,
            "world_model.training.imagination_ratio": 0.0,
        }
        assert all(contender.description for contender in CONTENDERS.values())

    def test_any_setting_makes_a_contender(self):
        spec = "wm-z@world_model.vae.hidden_dims=[32,16],ppo.gamma=0.9"
        assert find_contender(spec)[1] == {
            "world_model.training.controller_inputs": "z",
            "world_model.vae.hidden_dims": [32, 16],
            "ppo.gamma": 0.9,
        }

    @pytest.mark.parametrize(
        ("spec", "expected"),
        [
            ("wm-no-imaginatio", "did you mean wm-no-imagination"),
            ("xyzzy", "use one of wm, "),
            ("rllib-ppo@ppo.gamma=0.9", "takes no settings"),
            ("wm@ppo.gamma", "'ppo.gamma' has no value"),
            ("wm@ppo.gama=0.9", "did you mean ppo.gamma?"),
            ("wm@ppo.gamma=2", "ppo.gamma is 2, but must be a number from 0 to 1. Fix"),
            ("wm@seed=3", "seed is set by the benchmark"),
            ("wm@stop.return=3", "stop.return is set by the benchmark"),
            ("wm@env.frame_skip=4", "env.frame_skip is set by the benchmark"),
            ("no_such_module:X", "cannot be imported"),
            ("json:dumps", "must be a wm_rllib.benchmark.trainer.Contender"),
        ],
    )
    def test_mistakes_in_a_spec(self, spec, expected):
        with pytest.raises(SettingError, match=re.escape(expected)):
            find_contender(spec)


CONFIG = """
suite: tiny
seeds: [0, 1]
contenders: [a, "fake_contenders:LEARNER"]
measure: {episodes: 5, max_steps: 100}
environments:
  fake_contenders:Say: {interval: 10, budgets: [50], config: {offset: 1.0}, contenders: ["fake_contenders:LEARNER"]}
limits:
  fake_contenders:LEARNER: {max_steps: 30}
"""


class TestSuite:
    def wishes(self, **changes):
        return replace(Wishes(suite=None, envs=None, contenders=None, seeds=None, measure={}), **changes)

    def test_file_limits_and_flags(self, tmp_path):
        path = tmp_path / "a.yaml"
        path.write_text(CONFIG)
        jobs = make_jobs(str(path), self.wishes())
        assert [(job.suite, job.contender, job.seed) for job in jobs] == [
            ("tiny", "fake_contenders:LEARNER", 0),
            ("tiny", "fake_contenders:LEARNER", 1),
        ]
        rule = jobs[0].measure
        assert (rule.interval, rule.episodes, rule.max_steps, rule.budgets) == (10, 5, 30, (50,))
        assert jobs[0].env_config == {"offset": 1.0}
        jobs = make_jobs(str(path), self.wishes(seeds=[7, 7], measure={"max_steps": 20}))
        assert [(job.seed, job.measure.max_steps) for job in jobs] == [(7, 20)]

    def test_pixel_settings(self, tmp_path):
        path = tmp_path / "a.yaml"
        path.write_text(
            "environments:\n  custom_envs:Cinema: {pixels: {key: screen, size: [4, 4]}, frame_skip: 3}\n"
            "contenders: [random]\n"
        )
        (job,) = make_jobs(str(path), self.wishes())
        assert job.pixels == PixelSettings(key="screen", size=(4, 4), frame_skip=3)
        old = job.to_dict()
        del old["pixels"]
        assert Job.from_dict(old).pixels.is_neutral

    def test_gymnasiums_threshold_is_the_default(self):
        jobs = make_jobs(None, self.wishes(envs=["CartPole-v1"], contenders=["fake_contenders:LEARNER"]))
        assert [(job.suite, job.seed, job.measure.threshold) for job in jobs] == [("adhoc", 0, 475.0)]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("intervall: 3", "unknown key intervall"),
            ("environments: {CartPol-v1: {}}", "did you mean CartPole-v1"),
            ("environments: {CartPole-v1: {intervall: 3}}", "did you mean interval?"),
            ("environments: {CartPole-v1: {interval: 0}}\ncontenders: [wm]", "environments.CartPole-v1.interval is 0"),
            ("environments: {CartPole-v1: {}}\ncontenders: wm", "contenders is 'wm'"),
            ("environments: {CartPole-v1: {}}\ncontenders: [wm]\nseeds: [-1]", "seeds is [-1]"),
            ("environments: {CartPole-v1: {}}\ncontenders: [wm]\nlimits: {wm: {interval: 1}}", "unknown key interval"),
            (
                "environments: {CartPole-v1: {pixels: {size: 64}}}\ncontenders: [wm]",
                "environments.CartPole-v1.pixels.size is 64",
            ),
            (
                "environments: {CartPole-v1: {frame_skip: 0}}\ncontenders: [wm]",
                "environments.CartPole-v1.frame_skip is 0",
            ),
            ("environments: {CartPole-v1: {pixels: {sise: [1, 1]}}}\ncontenders: [wm]", "did you mean size?"),
            ("environments: {CartPole-v1: {pixels: {size: [1, 1]}}}\ncontenders: [random]", "env.pixels needs images"),
            ("seeds: [1]", "no environment"),
        ],
    )
    def test_mistakes_in_the_file(self, tmp_path, capsys, text, expected):
        path = tmp_path / "a.yaml"
        path.write_text(text)
        assert main(["benchmark", "run", "--config", str(path), "--results", str(tmp_path / "results")]) == 2
        assert expected in capsys.readouterr().err
        assert not (tmp_path / "results").exists()

    @pytest.mark.parametrize(
        ("flags", "expected"),
        [
            ([], "no environment"),
            (["--env", "CartPole-v1"], "contenders is None"),
            (["--env", "CartPole-v1", "--contender", "wn"], "unknown contender 'wn'"),
            (["--env", "CartPole-v1", "--contender", "wm", "--interval", "0"], "--interval is 0"),
            (["--env", "CartPole-v1", "--contender", "wm", "--seeds", "0,x"], "--seeds is 'x'"),
            (["--env", "CartPole-v1", "--contender", "wm", "--jobs", "0"], "--jobs is '0'"),
            (["--env", "Blackjack-v1", "--contender", "wm"], "Blackjack-v1"),
            (["--env", "Acrobot-v1", "--contender", "wm-tuned", "--time-limit", "-1"], "--time-limit is -1"),
        ],
    )
    def test_mistakes_in_flags(self, tmp_path, capsys, flags, expected):
        assert main(["benchmark", "run", *flags, "--results", str(tmp_path / "results")]) == 2
        assert expected in capsys.readouterr().err
        assert not (tmp_path / "results").exists()


class TestProcesses:
    """Real worker processes of scripted contenders."""

    def test_run_and_resume(self, tmp_path, capsys, processes_without_ray):
        """One that succeeds and is not run again, and one that fails, with its reason."""
        names = [f"fake_contenders:{name}" for name in ("LEARNER", "BROKEN")]
        argv = ["benchmark", "run", "--env", "fake_contenders:Say", "--seeds", "3", "--interval", "100"]
        argv += ["--threshold", "25", "--jobs", "2", "--episodes", "3", "--results", str(tmp_path)]
        assert main([*argv, *(word for name in names for word in ("--contender", name))]) == 1
        assert "solved at 310 steps" in capsys.readouterr().out
        found = {result.job.contender: result for result in Store(tmp_path).read_suite("adhoc")}
        learner, broken = (found[name] for name in names)
        assert (learner.job.seed, learner.status) == (3, SOLVED)
        assert [point.steps for point in learner.curve] == [110, 230, 310]
        assert learner.settings == {"stride": 40, "clip": "inf"}
        assert learner.provenance["command"].startswith("python -m wm_rllib benchmark run --env")
        assert learner.provenance["versions"]["torch"] and learner.provenance["hardware"]["cpu"]
        assert broken.status == FAILED and "ValueError: the dog ate the weights" in broken.error
        before = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.json"))]
        assert main([*argv, "--contender", names[0]]) == 0
        out = capsys.readouterr().out
        assert out.count("skipped") == 1 and "0 of 1 runs to do" in out
        assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.json"))] == before

    def test_time_limit_ends_the_process_and_all_of_its_children(self, tmp_path, monkeypatch):
        store, job = Store(tmp_path), a_job("fake_contenders:SLEEPER", time_limit_s=600.0)

        def child():
            return (
                re.search(r"child (\d+)\n", store.log_path(job).read_text()) if store.log_path(job).exists() else None
            )

        # However long the process takes to start: its time is over when its child runs.
        clock = SimpleNamespace(sleep=time.sleep, monotonic=lambda: 601.0 if child() else 0.0)
        monkeypatch.setattr("wm_rllib.benchmark.running.time", clock)
        (result,) = run_jobs([job], store, command="c", num_parallel=1, say=print)
        assert result.status == TIME_LIMIT and store.read(job) == result
        assert [point.steps for point in result.curve] == [100]
        pid = int(child().group(1))
        deadline = time.monotonic() + 30.0  # killed, but a busy machine may take its time to end it
        with suppress(psutil.NoSuchProcess):
            while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline
                time.sleep(0.05)


BEGIN, END = "<!-- benchmark:tables:begin -->", "<!-- benchmark:tables:end -->"


class TestReport:
    @pytest.fixture
    def folder(self, tmp_path):
        store = Store(tmp_path / "results")
        for seed, means in enumerate(([1.0, 30.0], [1.0, 2.0, 40.0, 40.0], [1.0, 2.0])):
            store.write(a_result(means, seed, "fast", SOLVED if means[-1] > 25 else TIME_LIMIT))
        store.write(a_result([1.0] * 5, 0, "slow", STEP_LIMIT))
        (tmp_path / "README.md").write_text(f"# Before\n{BEGIN}\nold\n{END}\nafter\n")
        return tmp_path

    def report(self, folder):
        argv = ["--suite", "suite", "--results", str(folder / "results"), "--into", str(folder / "README.md")]
        return main(["benchmark", "report", *argv, "--plot", str(folder / "docs" / "plot.png")])

    def test_table_by_hand(self, folder, capsys):
        assert self.report(folder) == 0
        text = (folder / "README.md").read_text()
        assert text.startswith(f"# Before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n")
        assert "\nold\n" not in text
        assert "![learning curves](docs/plot.png)" in text
        assert "Threshold 25; 3 greedy episodes every 100 real steps, confirmed by 7 fresh ones; seeds 0, 1, 2." in text
        rows = [line for line in text.splitlines() if line.startswith("| `")]
        assert rows == [
            # 200, 300, and unsolved after 200: the median is 300, its upper quartile above what the bounds give.
            "| `fast` | 200, 300, >200 | 300 [250, >250] | 300 [250, >250] | 150 | 2.0 | 40.0 (1 of 3) "
            "| 2 solved, 1 time limit |",
            "| `slow` | >500 | >500 [>500, >500] | >500 [>500, >500] | >250 | 1.0 | 1.0 | 1 step limit |",
        ]
        assert "a cpu, 2 cores, 8 GiB, no GPU, 1 thread a run, commit 0123456789, torch 2, by:" in text
        assert "| `fast` |" in capsys.readouterr().out

    def test_summary_by_hand(self, folder):
        """Beside the tables, or alone: a file gets what its markers ask for."""
        begin, end = (marker.replace("tables", "summary") for marker in (BEGIN, END))
        (folder / "README.md").write_text(f"{begin}\n{end}\n{BEGIN}\n{END}\n")
        assert self.report(folder) == 0
        summary, _, tables = (folder / "README.md").read_text().partition(end)
        assert summary.splitlines() == [
            begin,
            "| contender | fake_contenders:Say, 25 |",
            "| --- | --- |",
            "| `fast` | 300 [250, >250], 3 seeds |",
            "| `slow` | >500 [>500, >500], 1 seed |",
            "",
            "![learning curves](docs/plot.png)",
        ]
        assert "| `slow` | >500 |" in tables

    def test_says_that_the_machine_was_busy(self, folder):
        assert self.report(folder) == 0
        assert "busy" not in (folder / "README.md").read_text()
        Store(folder / "results").write(a_result([30.0], 9, "fast", load=20.4))
        assert self.report(folder) == 0
        assert "**1 of 5 runs started on a busy machine** (load average up to 20)" in (folder / "README.md").read_text()

    def test_incomplete_runs_are_named_and_not_counted(self, folder):
        Store(folder / "results").write(a_result([99.0], 9, "fast", FAILED))
        assert self.report(folder) == 0
        text = (folder / "README.md").read_text()
        assert "Left out, since incomplete: fake_contenders:Say  fast  seed 9 (failed)." in text
        assert "| `fast` | 200, 300, >200 |" in text

    def test_same_results_same_bytes(self, folder):
        assert self.report(folder) == 0
        first_time = (folder / "README.md").read_bytes(), (folder / "docs" / "plot.png").read_bytes()
        assert first_time[1].startswith(b"\x89PNG")
        assert self.report(folder) == 0
        assert first_time == ((folder / "README.md").read_bytes(), (folder / "docs" / "plot.png").read_bytes())

    def test_needs_markers(self, folder, capsys):
        (folder / "README.md").write_text("# Without\n")
        assert self.report(folder) == 2
        assert "Fix: add them" in capsys.readouterr().err
        assert (folder / "README.md").read_text() == "# Without\n" and not (folder / "docs").exists()


def test_list_names_every_contender(capsys):
    assert main(["benchmark", "list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in CONTENDERS)


def test_contenders_with_many_settings_have_names_that_fit_and_differ():
    one, other = (slug("wm@" + "ppo.gamma=0.99," * 30 + f"ppo.lambda=0.{last}") for last in (8, 9))
    assert len(one) < 140 and len(other) < 140 and one != other
