"""`benchmark speed gpu` on the CPU, at tiny sizes: every row is there, and what fails is recorded."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from wm_rllib.benchmark import device_cells, speed_gpu
from wm_rllib.benchmark.device_clock import (
    FLOAT32,
    TF32,
    OutOfTimeError,
    count_bytes,
    count_flops,
    float32_products,
    time_limit,
)
from wm_rllib.benchmark.device_dreams import HORIZON, Dreams, StepwiseDreams, captured
from wm_rllib.benchmark.device_work import MdnRnnTraining, Setup, VaeEncoding, paper_world_model
from wm_rllib.benchmark.dream_flops import lstm_flops, step_flops

CPU = torch.device("cpu")
EAGER_ONLY = (" eager",)


@pytest.fixture
def tiny(monkeypatch):
    """Batches of two, and no ceilings: a product of 1024 takes longer than all the rest."""
    rows = tuple(dataclasses.replace(row, small_batch=2) for row in device_cells.ROWS)
    monkeypatch.setattr(device_cells, "ROWS", rows)
    monkeypatch.setattr(speed_gpu, "ROWS", rows)
    monkeypatch.setattr(speed_gpu, "product_rate", lambda *_: 1e11)
    monkeypatch.setattr(speed_gpu, "copy_rate", lambda *_: 1e10)
    return rows


def run(lines=None, **kwargs):
    lines = [] if lines is None else lines
    return speed_gpu.run(CPU, **{"only": EAGER_ONLY, "sample_s": 0.0, "say": lines.append, **kwargs})


def test_every_row_is_measured(tiny):
    lines, saved = [], []
    result = run(lines, save=lambda result: saved.append(json.loads(json.dumps(result))))
    assert [cell["error"] for cell in result["cells"]] == [None] * len(result["cells"])
    assert not result["errors"]
    assert {cell["row"] for cell in result["cells"]} == {row.name for row in tiny}
    assert len(saved) == len(result["cells"])
    for cell in result["cells"]:
        assert cell["rate"] == pytest.approx(cell["items"] / cell["median_s"])
        assert cell["compute_fraction"] > 0 and cell["memory_fraction"] > 0 and cell["growth"] > 0 and cell["bound"]
    table = [line for line in lines if line.startswith("| ")]
    assert len(table) == 2 + len(result["cells"])
    assert {line.count("|") for line in table} == {1 + len(speed_gpu.HEAD)}
    assert lines[lines.index(table[0]) - 2].startswith("cpu, ")


def test_what_fails_is_recorded(tiny, monkeypatch):
    def broken(setup):
        raise RuntimeError("no such | kernel\nand more")

    rows = tuple(dataclasses.replace(row, make=broken) if row.name == "PPO update" else row for row in tiny)
    monkeypatch.setattr(device_cells, "ROWS", rows)
    monkeypatch.setattr(speed_gpu, "ROWS", rows)
    lines = []
    result = run(lines, only=("PPO update | 2 | float32 | eager", "M training | 2 | float32 | eager"))
    errors = {cell["row"]: cell["error"] for cell in result["cells"]}
    assert errors == {"M training": None, "PPO update": "RuntimeError: no such | kernel and more"}
    assert any("| RuntimeError: no such / kernel and more |" in line for line in lines)
    assert list(result["errors"]) == ["operations of PPO update"]


def test_no_cell_is_begun_after_the_time_limit(tiny):
    result = run(limit_s=0.0)
    assert all(cell["error"].startswith("OutOfTimeError") for cell in result["cells"])


def test_ceilings_that_fail_leave_fractions_out(tiny, monkeypatch):
    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(speed_gpu, "product_rate", broken)
    result = run(only=("V encoding | 2 | float32 | eager",))
    assert result["errors"]["product in float32"] == "RuntimeError: out of memory"
    assert result["cells"][0]["compute_fraction"] is None and result["cells"][0]["rate"] > 0


def test_the_time_limit_ends_what_runs():
    with pytest.raises(OutOfTimeError), time_limit(0.05):
        while True:
            pass
    with time_limit(60.0):
        pass


def test_the_time_limit_leaves_gradients_on():
    """The alarm may ring inside of `no_grad`, between its switch and the block that would put it back."""
    with pytest.raises(OutOfTimeError), time_limit(0.05):
        torch.set_grad_enabled(False)
        while True:
            pass
    assert torch.is_grad_enabled()


def test_precision_is_put_back():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for precision, allowed in ((FLOAT32, False), (TF32, True)):
        with float32_products(precision):
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_cells_on_a_gpu():
    cells = device_cells.all_cells(torch.device("cuda"))
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names)
    for row in device_cells.ROWS:
        assert {cell.setup.batch for cell in cells if cell.row is row} == set(row.batches)
    modes = [cell.setup.mode for cell in cells]
    assert modes == sorted(modes, key=["eager", "CUDA graph", "compiled"].index)


def test_operations_are_those_counted_by_hand():
    config = paper_world_model(CPU).config.mdn_rnn
    dream = step_flops(config, [256, 128], 2)
    for make in (Dreams, StepwiseDreams):
        work = make(Setup(CPU, 2))
        assert count_flops(work) == dream * work.items
        assert work.items == 2 * HORIZON
    # Training takes the forward pass and two more of its size, but for the gradient of inputs.
    work = MdnRnnTraining(Setup(CPU, 2))
    assert 2.5 * lstm_flops(config) < count_flops(work) / work.items < 4.0 * dream
    frames = VaeEncoding(Setup(CPU, 2))
    sizes = ((3, 32, 32), (32, 64, 16), (64, 128, 8), (128, 256, 4))
    convolutions = sum(2 * wide * following * 16 * side**2 for wide, following, side in sizes)
    assert count_flops(frames) == 2 * (convolutions + 2 * 256 * 16 * 64)


def test_bytes_are_those_of_each_operation():
    a, b = torch.ones(10, 20), torch.ones(20, 30)
    assert count_bytes(lambda: (a @ b).t().relu()) == 4 * (200 + 600 + 300) + 4 * (300 + 300)


@pytest.mark.parametrize(
    ("compute", "memory", "growth", "expected"),
    [
        (0.6, 0.2, 4.0, "compute"),
        (0.2, 0.6, 4.0, "memory"),
        (0.9, 0.9, 1.1, "launches"),
        (0.1, 0.2, 3.0, "none, most memory"),
        (0.6, None, 4.0, "compute"),
        (0.6, 0.2, None, ""),
        (None, 0.2, 4.0, ""),
    ],
)
def test_bound(compute, memory, growth, expected):
    assert device_cells.bound(compute, memory, growth) == expected


def test_it_runs_without_ray(tmp_path):
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from wm_rllib.benchmark import speed_gpu\n"
        "assert 'wm_rllib.algorithm' not in sys.modules\n"
        "sys.exit(speed_gpu.main(['--device', 'cpu', '--only', 'no such cell', '--time-limit', '0', '--commit', 'abc',"
        f" '--json', {str(tmp_path / 'gpu.json')!r}]))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["provenance"]["git_commit"]
    assert result["cells"] == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_dreams_the_same_and_goes_on():
    work = Dreams(Setup(torch.device("cuda"), 64))  # its own check runs where it is made as a graph
    Dreams(Setup(torch.device("cuda"), 64, mode="CUDA graph"))()
    replay, result = captured(work._dream, torch.device("cuda"))
    replay()
    first = result.features.clone()
    replay()
    assert not torch.equal(first, result.features)
