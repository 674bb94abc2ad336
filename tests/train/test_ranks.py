"""What each rank has of its own, when a training goes on."""

import copy

import pytest
import torch
from espnet2.train.distributed_utils import DistributedOption

from espnet2_lamer.train.run import TrainingRun

OWN = {
    "routing": {
        "batches": 3,
        "frames": torch.ones(2),
        "sums": [torch.ones(1, 2, 9)],
        "routers": [[[0, "ffn"]]],
    },
    "languages": {"sums": torch.ones(2, 3)},
}


@pytest.mark.parametrize(("saved", "goes_on"), [(1, True), (2, False)])
def test_statistics_go_on_where_every_rank_has_its_own_or_nowhere(
    make_parts, saved, goes_on
):
    parts = make_parts()
    run = TrainingRun(
        parts.model,
        parts.optimizer,
        None,
        parts.train,
        parts.valid,
        parts.options,
        DistributedOption(),
    )
    state = run.state(None)
    state["ranks"] = [copy.deepcopy(state["ranks"][0] | OWN) for _ in range(saved)]
    run.store.save(state, 1)
    run._resume()
    # Else some ranks would be due for a reading before others, and wait for them.
    assert (run.model.routing_statistics._batches == 3) == goes_on
    assert bool(run.model.routing_statistics.state()) == goes_on
    assert bool(run.model.language_statistics.state()) == goes_on
    assert (run.resumed["random"] is not None) == goes_on
