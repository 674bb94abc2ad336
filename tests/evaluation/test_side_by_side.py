"""Heads that share a GPU are the heads that train one after the other."""

import pytest
import torch
import yaml

from espnet2_lamer.convert.state import read_state
from espnet2_lamer.evaluation import downstream
from espnet2_lamer.evaluation.head_decoding import decode
from espnet2_lamer.gpus import run_on_gpus
from espnet2_lamer.upstream import build_upstream
from tests.evaluation.tiny_head import CONFIG, GREEDY, TINY, write_set
from tests.without_gpu import Plain

SHORT = CONFIG | {"max_epoch": 2, "num_iters_per_epoch": 3}
SEEDS = (0, 1, 2)


@pytest.fixture
def data(tmp_path):
    write_set(tmp_path / "train", "train", 6, 1)
    write_set(tmp_path / "dev", "dev", 3, 2)
    (tmp_path / "head.yaml").write_text(yaml.safe_dump(SHORT))
    (tmp_path / "decode.yaml").write_text(yaml.safe_dump(GREEDY))
    return tmp_path


def train(root, name, seed):
    """Train a head and decode with it; returns what it wrote, for the parent."""
    torch.manual_seed(0)
    upstream = build_upstream(TINY)
    final = downstream.train_head(
        upstream,
        root / "train",
        root / "dev",
        root / f"store_{name}",
        root / f"{name}_{seed}",
        root / "head.yaml",
        downstream.HeadOptions(seed=seed),
    )
    (text,) = decode(
        final, root / "dev" / "wav.scp", {final: False}, root / "decode.yaml"
    )
    return text.read_text()


def test_heads_of_processes_side_by_side_are_those_of_one_after_the_other(data):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of two processes has
    try:
        alone = [train(data, "alone", seed) for seed in SEEDS]
    finally:
        torch.set_num_threads(threads)
    calls = [(data, "beside", seed) for seed in SEEDS]
    assert run_on_gpus(train, calls, 2, 1, "heads", memory=Plain()) == alone
    weights = [
        [read_state(data / f"{name}_{seed}" / "final" / "model.pth") for seed in SEEDS]
        for name in ("alone", "beside")
    ]
    for one, other in zip(*weights, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    key = "ctc.ctc_lo.weight"
    assert not torch.equal(weights[0][0][key], weights[0][1][key])


def test_a_head_that_ran_out_of_memory_begins_anew(data, monkeypatch):
    train(data, "undisturbed", 0)
    run = downstream.run_espnet

    def full(task, program, command, log):
        run(task, program, [*command, "--max_epoch", "1"], log)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(downstream, "run_espnet", full)
        with pytest.raises(torch.OutOfMemoryError):
            train(data, "again", 0)
    train(data, "again", 0)
    log = (data / "again_0" / "train.log").read_text()
    assert "1epoch results" in log and "resumed" not in log
    one, other = (
        read_state(data / f"{name}_0" / "final" / "model.pth")
        for name in ("undisturbed", "again")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
