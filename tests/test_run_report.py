"""`report`: one file that loads nothing, on runs in every state, and one clear message on what is no run."""

from __future__ import annotations

import argparse
import html.parser
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from look_run import row, write_checkpoint, write_run
from tensorboardX.proto.event_pb2 import Event

from wm_rllib.acting.policy import load_policy
from wm_rllib.cli.main import main
from wm_rllib.look.run import read_run
from wm_rllib.runs.agents import load_agent

EVALUATED = {"evaluation/episode_return_mean": 120.5, "evaluation/episode_return_std": 3.0}
ROWS = [row(1), row(2), row(3, **{"imagination/ratio": 0.9, "mdn/nll": -3.0}), row(4, **EVALUATED), row(5)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended, with a checkpoint."""
    run = write_run(tmp_path_factory.mktemp("runs") / "cartpole", ROWS)
    write_checkpoint(run, "last", finished=True)
    return run


class Page(html.parser.HTMLParser):
    """What a page loads, and its text by heading."""

    def __init__(self, content: str):
        super().__init__()
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster", "background"):
                self.loads.append(value or "")
            if name == "style" and value:
                self.loads += re.findall(r"url\((.*?)\)", value)

    def handle_data(self, data: str) -> None:
        self.text += data


def report(run: Path, *flags: str) -> tuple[int, Page]:
    """The exit code, and the page that was written."""
    code = main(["report", str(run), *flags])
    return code, Page((run / "report.html").read_text())


def check_alone(run: Path, page: Page) -> None:
    """That the page asks nobody for anything: all it refers to lies in itself."""
    content = (run / "report.html").read_text()
    assert all(value.startswith(("data:", "#")) for value in page.loads)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "video", "audio", "base", "form"}
    assert not re.findall(r"@import|@font-face", content)
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", content))
    # What is left are names of XML vocabularies, which nobody fetches.
    addresses = set(re.findall(r"https?://[^\"'<> ]+", content))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "Content-Security-Policy" in content and "default-src 'none'" in content


def test_a_report_with_its_dream(trained: Path, capsys: pytest.CaptureFixture[str]):
    code, page = report(trained, "--episodes", "3", "--tensorboard")
    printed = capsys.readouterr().out
    assert code == 0
    check_alone(trained, page)
    for heading in ("Learning", "Real against dreamed", "How far ahead it predicts", "What it promises", "Settings"):
        assert heading in page.text
    assert re.search(r"It predicts \d+ of 5 steps ahead better than standing still", page.text)
    assert re.search(r"It expects [\d.]+ ends where \d+ came, in \d+ real steps", page.text)
    assert re.search(r"(promises|A single start)", page.text)
    assert "checkpoints/last (iteration 5, 500 steps)" in page.text
    assert re.search(r"0\.0% to 0\.1%\s*[\d,]+0\.00%", page.text)
    assert "120.5" in page.text and "ended" in page.text
    assert printed.splitlines()[0] in page.text
    assert "img" in page.tags  # CartPole has pictures
    (events,) = (trained / "tensorboard" / "report").iterdir()
    assert {"open_loop_error/policy", "return_gap/horizon", "real_above_dreamed"} <= tags_of(events)


def tags_of(path: Path) -> set[str]:
    """Tags in an event file: records of a length, its checksum, an Event, and a checksum of that."""
    data, tags = path.read_bytes(), set()
    while data:
        size = int.from_bytes(data[:8], "little")
        tags |= {value.tag for value in Event.FromString(data[12 : 12 + size]).summary.value}
        data = data[16 + size :]
    return tags


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], ["No iteration has ended yet", "none yet"]),
        (ROWS[:3], ["none yet", "not ended"]),
        (
            [*ROWS, row(6, **{"faults/resumes": 2, "restarts/dreamers": 3})],
            ["resumed", "2 times", "restarts/dreamers: 3"],
        ),
    ],
    ids=["empty", "not evaluated", "resumed"],
)
def test_runs_in_every_state(tmp_path: Path, rows: list[dict[str, Any]], expected: list[str]):
    run = write_run(tmp_path / "run", rows)
    code, page = report(run, "--episodes", "2")
    assert code == 0
    check_alone(run, page)
    assert "The run has no checkpoint yet." in page.text
    assert "Whether this dream can be trusted is not known." in page.text
    for words in expected:
        assert words in page.text


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path):
    run = write_run(tmp_path / "run", ROWS)
    with (run / "progress.jsonl").open("a") as stream:
        stream.write(json.dumps(row(6, **{"evaluation/episode_return_mean": 499.0}))[:-20])
    found = read_run(str(run))
    assert [line["training_iteration"] for line in found.rows] == [1, 2, 3, 4, 5]
    assert found.phases == [("random", 0.0, 100.0), ("pretrain", 100.0, 200.0), ("mixed", 200.0, 500.0)]


def test_what_a_run_says_is_text(tmp_path: Path):
    run = write_run(tmp_path / "<b>run&", [row(1, phase="<script>alert(1)</script>")])
    _, page = report(run, "--no-dream")
    check_alone(run, page)
    assert "<script>alert(1)</script> up to 100" in page.text and "<b>run&" in page.text


def test_a_checkpoint_that_cannot_be_loaded_is_a_reason_not_an_end(tmp_path: Path, trained: Path):
    run = write_run(tmp_path / "run", [])
    shutil.copytree(trained / "checkpoints", run / "checkpoints")
    shutil.rmtree(run / "checkpoints" / "last" / "learner_group")
    code, page = report(run, "--episodes", "2")
    assert code == 0 and "is not a checkpoint of WorldModelPPO" in page.text


# Mistakes


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one message of a command that ends with exit code 2."""
    assert main([*arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("wm_rllib: error: ") and captured.err.count("\n") == 1
    return captured.err


def test_what_is_no_run_folder_is_named(tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "trials").mkdir()
    for place, words in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path, "is a sweep's"),
        (trained / "checkpoints" / "last", f"is a checkpoint; give its run folder, {trained}"),
        ("s3://bucket/run", "is a URI"),
    ):
        assert words in refused(capsys, "report", str(place))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--episodes", "1"], "--episodes is 1, but must be a whole number from 2 to 200"),
        (["--episodes", "many"], "--episodes is many"),
        (["--seed", "x"], "--seed"),
        (["--output", "{tmp}/none/r.html"], "does not exist"),
        (["--output", "{tmp}"], "is a folder"),
    ],
)
def test_wrong_values_are_named(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
):
    assert words in refused(capsys, "report", str(trained), *(flag.replace("{tmp}", str(tmp_path)) for flag in flags))


def test_a_broken_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_run(tmp_path / "run", ROWS)
    (run / "progress.jsonl").write_text("{broken\n")
    assert "has a line that is no JSON" in refused(capsys, "report", str(run))


@pytest.mark.parametrize("command", ["report", "dream"])
def test_without_matplotlib_the_extra_is_named(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 'pip install "wm_rllib[look]"' in refused(capsys, command, str(trained))


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run that is going on puts the next one in its place: nobody gets C of one and V and M of the other."""
    write_checkpoint(tmp_path / "run", "best", iteration=3)
    calls: list[Path] = []

    def replaced_meanwhile(path: Path) -> Any:
        calls.append(path)
        loaded = load_policy(path)
        if len(calls) == 1:
            write_checkpoint(tmp_path / "run", "best", iteration=5)
        return loaded

    monkeypatch.setattr("wm_rllib.acting.policy.load_policy", replaced_meanwhile)
    agent = load_agent(argparse.Namespace(checkpoint=str(tmp_path / "run"), env=None))
    assert len(calls) == 2 and agent.meta is not None and agent.meta.training_iteration == 5
