"""Run folders by URI: what outlasts a lost machine, on pyarrow's own filesystems, killed at every operation."""

import io
import json
import os
import shutil
from types import SimpleNamespace

import pyarrow.fs
import pytest
from fake_algorithm import FakeAlgorithm

from wm_rllib.cli.train import train
from wm_rllib.runs import checkpoints
from wm_rllib.runs.checkpoints import CheckpointMeta, read_meta
from wm_rllib.runs.console import Console
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.loop import End
from wm_rllib.runs.plan import RunPlan
from wm_rllib.runs.remote_folder import RemoteFolder
from wm_rllib.runs.resolving import resolve
from wm_rllib.runs.run_folder import RunFolder
from wm_rllib.runs.signals import StopSignals

S3 = os.environ.get("WM_RLLIB_TEST_S3_URI")
"""Like s3://bucket/prefix?endpoint_override=127.0.0.1:5555&scheme=http: an S3 server to test with, if there is one."""


class Killed(BaseException):
    """Stands for kill -9: nothing cleans up after it."""


class Guarded:
    """A filesystem whose n-th changing operation kills the process instead; a RemoteFolder calls nothing else."""

    CHANGING = ("delete_file", "delete_dir", "copy_file", "move", "open_output_stream")

    def __init__(self, inner, kill_at):
        self.inner, self.kill_at, self.count = inner, kill_at, 0

    def __getattr__(self, name):
        if name in self.CHANGING:
            if self.count == self.kill_at:
                raise Killed
            self.count += 1
        return getattr(self.inner, name)


def mock_filesystem():
    return pyarrow.fs.FileSystem.from_uri("mock:///")[0]


def s3_filesystem():
    if S3 is None:
        pytest.skip("WM_RLLIB_TEST_S3_URI names no S3 server")
    filesystem, root = pyarrow.fs.FileSystem.from_uri(S3)
    filesystem.delete_dir_contents(root, missing_dir_ok=True)
    return pyarrow.fs.SubTreeFileSystem(root, filesystem)


@pytest.fixture(params=["subtree", "mock", "s3"])
def filesystem(request, tmp_path):
    if request.param == "mock":
        return mock_filesystem()
    if request.param == "s3":
        return s3_filesystem()
    (tmp_path / "store").mkdir()
    return pyarrow.fs.SubTreeFileSystem(str(tmp_path / "store"), pyarrow.fs.LocalFileSystem())


def folder_on(filesystem, pull=True):
    """What another process sees: nothing but what is on the filesystem."""
    remote = RemoteFolder("store://run", filesystem, "run")
    if pull:
        remote.pull()
    return RunFolder(remote.staging, remote)


def run(folder, algorithm, total=500, frequency=2):
    source = folder.newest_checkpoint()
    start = read_meta(source) if source else CheckpointMeta(0, 0, 0.0)
    values = {"stop.total_timesteps": total, "stop.return": None}
    config = SimpleNamespace(checkpoint_frequency=frequency, evaluation_duration=20)
    plan = RunPlan(folder, values, config, {"seed": 1}, source, start, {})
    folder.open()
    try:
        with StopSignals() as signals:
            return train(plan, folder, Console(io.StringIO(), total), signals, lambda: algorithm, tensorboard=False)
    finally:
        folder.close()


def rows_on(filesystem):
    with filesystem.open_input_stream("run/progress.jsonl") as stream:
        lines = stream.read().decode().splitlines()
    return [json.loads(line)["training_iteration"] for line in lines]


def files_on(filesystem):
    infos = filesystem.get_file_info(pyarrow.fs.FileSelector("run", recursive=True))
    return {info.path for info in infos if info.type is pyarrow.fs.FileType.File}


def test_a_run_leaves_what_a_local_one_leaves(filesystem):
    outcome = run(folder_on(filesystem), FakeAlgorithm(returns={2: 5.0}))
    assert outcome.end is End.STEPS
    assert rows_on(filesystem) == [1, 2, 3, 4, 5]
    checkpoint = {"state.json", "config.yaml", "wm_rllib.json"}
    expected = {f"run/checkpoints/{name}/{file}" for name in ("last", "best") for file in checkpoint}
    assert files_on(filesystem) == {"run/config.yaml", "run/progress.jsonl", "run/.owner", *expected}


def test_another_machine_goes_on(filesystem):
    def fail(iteration):
        if iteration == 4:
            raise Killed

    with pytest.raises(Killed):
        run(folder_on(filesystem), FakeAlgorithm(on_train=fail))
    assert rows_on(filesystem) == [1, 2], "rows are shared with the checkpoint that needs them"
    second = folder_on(filesystem)
    assert read_meta(second.newest_checkpoint()).training_iteration == 2
    outcome = run(second, FakeAlgorithm())
    assert outcome.meta.training_iteration == 5
    assert rows_on(filesystem) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kill_at", range(0, 60, 3))
def test_a_kill_at_any_operation_leaves_no_gap_and_no_repeat(tmp_path, kill_at, monkeypatch):
    """Three attempts are killed at operations of their own; the fourth finishes."""
    (tmp_path / "store").mkdir()
    inner = pyarrow.fs.SubTreeFileSystem(str(tmp_path / "store"), pyarrow.fs.LocalFileSystem())
    monkeypatch.setattr(RemoteFolder, "_upload", _upload_by_stream)
    monkeypatch.setattr(RemoteFolder, "_download", _download_by_stream)
    reached = 0
    for attempt in range(3):
        guard = Guarded(inner, kill_at + attempt)
        folder = folder_on(guard)
        newest = folder.newest_checkpoint()
        iteration = read_meta(newest).training_iteration if newest else 0
        assert iteration >= reached, "a kill lost a finished checkpoint"
        reached = iteration
        try:
            run(folder, FakeAlgorithm(returns={1: 1.0, 3: 2.0}), frequency=1)
            assert guard.count <= guard.kill_at
        except Killed:
            pass
    run(folder_on(inner), FakeAlgorithm(returns={1: 1.0, 3: 2.0}), frequency=1)
    rows = rows_on(inner)
    assert rows == list(range(1, len(rows) + 1)) and len(rows) >= 5
    assert not [path for path in files_on(inner) if ".tmp" in path]


def _upload_by_stream(self, path, name):
    self._write(name, path.read_bytes())


def _download_by_stream(self, place, target):
    for name in self._list(place):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._read(f"{place}/{name}"))


def test_going_back_to_an_older_checkpoint_cuts_the_lasting_rows_too(filesystem):
    run(folder_on(filesystem), FakeAlgorithm(returns={2: 5.0}), total=600)
    folder = folder_on(filesystem)
    shutil.rmtree(folder.checkpoints / "last")  # resume from best, of iteration 2
    folder.open()
    folder.cut_back(folder.newest_checkpoint())
    folder.share()
    assert rows_on(filesystem) == [1, 2]
    assert read_meta(folder_on(filesystem).newest_checkpoint()).training_iteration == 2


def test_the_later_of_two_processes_wins_and_the_earlier_writes_nothing_more(filesystem):
    earlier, later = folder_on(filesystem), None

    def take_over(iteration):
        nonlocal later
        if iteration == 3:
            later = folder_on(filesystem)
            later.open()

    with pytest.raises(CommandError, match=r"taken over by process \d+"):
        run(earlier, FakeAlgorithm(on_train=take_over))
    assert rows_on(filesystem) == [1, 2]
    later.share()


def test_who_loses_the_folder_during_an_upload_finishes_nothing(filesystem, monkeypatch):
    run(folder_on(filesystem), FakeAlgorithm(), total=200)
    earlier, uploads = folder_on(filesystem), []
    upload = RemoteFolder._upload

    def take_over(self, path, name):
        uploads.append(name)
        if len(uploads) == 1:
            folder_on(filesystem).open()
        upload(self, path, name)

    monkeypatch.setattr(RemoteFolder, "_upload", take_over)
    with pytest.raises(CommandError, match=r"taken over by process \d+"):
        run(earlier, FakeAlgorithm())
    monkeypatch.undo()
    third = folder_on(filesystem)
    assert read_meta(third.newest_checkpoint()).training_iteration == 2
    assert json.loads((third.newest_checkpoint() / "state.json").read_text()) == 2
    third.open()
    assert not [path for path in files_on(filesystem) if ".tmp" in path]


def replace_during_the_first_download(monkeypatch, make_folder):
    """Has a run go on in the folder while a checkpoint of it is read; returns what was read, filled as it happens."""
    download, downloads = RemoteFolder._download, []

    def replaced_meanwhile(self, place, target):
        download(self, place, target)
        downloads.append(place)
        if len(downloads) == 1:
            monkeypatch.setattr(RemoteFolder, "_download", download)
            run(make_folder(), FakeAlgorithm())
            monkeypatch.setattr(RemoteFolder, "_download", replaced_meanwhile)

    monkeypatch.setattr(RemoteFolder, "_download", replaced_meanwhile)
    return downloads


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(filesystem, monkeypatch):
    run(folder_on(filesystem), FakeAlgorithm(), total=200)
    downloads = replace_during_the_first_download(monkeypatch, lambda: folder_on(filesystem))
    reader = folder_on(filesystem)
    newest = reader.newest_checkpoint()
    assert len(downloads) == 2
    assert read_meta(newest).training_iteration == 5
    assert json.loads((newest / "state.json").read_text()) == 5


def test_what_was_written_between_pull_and_claim_leaves_no_gap(filesystem):
    """The later process goes on from what it pulled, and the lasting checkpoint is that one again."""
    run(folder_on(filesystem), FakeAlgorithm(), total=200)
    later = folder_on(filesystem)
    run(folder_on(filesystem), FakeAlgorithm(), total=400)
    later.open()
    later.cut_back(later.newest_checkpoint())
    later.share()
    assert rows_on(filesystem) == [1, 2]
    assert read_meta(folder_on(filesystem).newest_checkpoint()).training_iteration == 2


def test_a_first_checkpoint_between_pull_and_claim_is_not_left_beside_other_rows(filesystem):
    """The later process found nothing and begins anew: that checkpoint's rows are not its own."""
    later = folder_on(filesystem)
    run(folder_on(filesystem), FakeAlgorithm(), total=400)
    later.open()
    (later.path / "progress.jsonl").write_text(json.dumps({"training_iteration": 1}) + "\n")
    later.share()
    assert rows_on(filesystem) == [1]
    assert folder_on(filesystem).newest_checkpoint() is None


@pytest.mark.parametrize("place", ["run", "run/checkpoints", "run/checkpoints/last"])
def test_a_uri_whose_checkpoint_was_not_put_in_its_place_means_the_finished_one(tmp_path, place):
    run(RunFolder.at(f"file://{tmp_path}/run", pull=True), FakeAlgorithm())
    last = tmp_path / "run" / "checkpoints" / "last"
    shutil.copytree(last, last.with_name(".tmp-last-of-a-killed-process"))
    (last / checkpoints.META_FILE).unlink()
    copied = resolve(f"file://{tmp_path}/{place}", ("last",))
    assert read_meta(copied).training_iteration == 5
    assert json.loads((copied / "state.json").read_text()) == 5


def test_a_uri_whose_checkpoint_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    uri = f"file://{tmp_path}/run"
    run(RunFolder.at(uri, pull=True), FakeAlgorithm(), total=200)
    downloads = replace_during_the_first_download(monkeypatch, lambda: RunFolder.at(uri, pull=True))
    copied = resolve(f"{uri}/checkpoints/last", ("last",))
    assert len(downloads) == 2
    assert read_meta(copied).training_iteration == 5
    assert json.loads((copied / "state.json").read_text()) == 5


def test_a_uri_that_no_run_of_the_command_line_wrote(tmp_path):
    (tmp_path / "tune").mkdir()
    (tmp_path / "tune" / checkpoints.RLLIB_META_FILE).write_text("{}")
    copied = resolve(f"file://{tmp_path}/tune", ("last",))
    assert (copied / checkpoints.RLLIB_META_FILE).read_text() == "{}"
    with pytest.raises(CommandError, match=f"file://{tmp_path} is no checkpoint of wm_rllib"):
        resolve(f"file://{tmp_path}", ("last",))


def test_used_folder_is_refused_by_its_uri(filesystem):
    folder_on(filesystem, pull=False).refuse_if_used()
    run(folder_on(filesystem), FakeAlgorithm())
    with pytest.raises(CommandError, match="run folder store://run is in use"):
        folder_on(filesystem, pull=False).refuse_if_used()


def test_a_uri_names_what_it_shares(tmp_path):
    folder = RunFolder.at(f"file://{tmp_path}/run/", pull=True)
    assert str(folder) == f"file://{tmp_path}/run/"
    assert folder.name_of(folder.checkpoints / "last") == f"file://{tmp_path}/run/checkpoints/last"
    run(folder, FakeAlgorithm())
    assert checkpoints.find(tmp_path / "run" / "checkpoints", "last") is not None
    copied = resolve(f"file://{tmp_path}/run/checkpoints/last", ("last",))
    assert read_meta(copied).training_iteration == 5 and tmp_path not in copied.parents


def test_unusable_uris_are_one_message(tmp_path):
    with pytest.raises(CommandError, match="nonsense://x cannot be used"):
        RunFolder.at("nonsense://x", pull=False)
    with pytest.raises(CommandError, match="cannot be read"):
        resolve(f"file://{tmp_path}/none", ("last",))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CommandError, match=r"run folder file://.* cannot be written"):
        RunFolder.at(f"file://{tmp_path}/file", pull=True).open()
    assert (tmp_path / "file").read_text() == "mine"
