"""The pretended GPU refuses what a GPU refuses, and counts what makes the host wait."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.pretended_gpu import pretended_gpu

OTHER_DEVICE = "Expected all tensors to be on the same device"


@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: there + here,
        lambda here, there: torch.cat([there, here]),
        lambda here, there: there.index_add_(0, torch.zeros(3, dtype=torch.long), here),
        lambda here, there: here[there > 0],
        lambda here, there: there[here > 0],
        lambda here, there: F.linear(there[None], here[None]),
        lambda here, there: torch.stack([there.sum(), here.sum()]),
    ],
)
def test_tensors_of_two_places_are_refused(mix):
    here = torch.randn(3)
    with pretended_gpu(), pytest.raises(RuntimeError, match=OTHER_DEVICE):
        mix(here, here.to("cuda"))


def test_what_a_gpu_allows_is_allowed():
    with pretended_gpu():
        there = torch.arange(3.0, device="cuda")
        scaled = there * torch.tensor(2.0)  # a scalar of the host
        assert scaled.device == torch.device("cuda", 0) and scaled.is_cuda
        assert scaled[[0, 2]].tolist() == [0.0, 4.0]
        here = torch.zeros(3)
        here.copy_(there)
        assert here.tolist() == [0.0, 1.0, 2.0] and not here.is_cuda
        made = [there.new_zeros(2), there.new_tensor([1.0]), torch.zeros_like(there)]
        made += [torch.tensor([1], device="cuda"), torch.as_tensor(1.0, device="cuda")]
        assert all(tensor.is_cuda for tensor in made)


@pytest.mark.parametrize("turn", [lambda x: x.numpy(), np.asarray, np.array])
def test_an_array_of_the_devices_memory_is_refused(turn):
    with pretended_gpu(), pytest.raises(TypeError, match="can't convert cuda:0"):
        turn(torch.zeros(2, device="cuda"))


def test_a_generator_of_the_cpu_and_a_file_without_a_place_are_refused(tmp_path):
    with pretended_gpu():
        with pytest.raises(RuntimeError, match="'cuda' device type for generator"):
            torch.zeros(2, device="cuda").normal_(generator=torch.Generator())
        torch.save(torch.ones(2, device="cuda"), tmp_path / "x.pt")
        with pytest.raises(RuntimeError, match="without map_location"):
            torch.load(tmp_path / "x.pt")
        for place in ("cpu", "cuda"):
            found = torch.load(tmp_path / "x.pt", map_location=place)
            assert found.device.type == place and found.sum() == 2


def test_the_device_has_random_numbers_of_its_own():
    with pretended_gpu():
        torch.manual_seed(0)
        ones = torch.ones(8, device="cuda")
        first = F.dropout(ones, 0.5).tolist()
        here = torch.rand(1).item()
        torch.manual_seed(0)
        assert torch.rand(1).item() == here
        state = torch.cuda.get_rng_state()
        assert F.dropout(ones, 0.5).tolist() == first
        torch.cuda.set_rng_state(state)
        assert F.dropout(ones, 0.5).tolist() == first


def test_a_network_trains_there_as_on_the_cpu():
    def train(device):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        model = model.to(device)
        optimizer = torch.optim.AdamW(model.parameters(), 0.1)
        for step in range(3):
            x = torch.full((5, 3), float(step)).to(device)
            F.cross_entropy(model(x), torch.arange(5, device=device) % 2).backward()
            optimizer.step()
            optimizer.zero_grad()
        return {name: value.cpu() for name, value in model.state_dict().items()}

    expected = train("cpu")
    with pretended_gpu():
        found = train("cuda")
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_reads_are_counted_by_the_function_that_waits():
    from espnet2.train.reporter import Reporter

    from espnet2_lamer.train.figures import Figures, to_host_later

    with pretended_gpu() as gpu, torch.inference_mode():
        values = torch.arange(3.0, device="cuda")
        figures = Figures(Reporter().start_epoch("train", 1))
        figures.slot("a").fill(lambda v: ({"a": v[2].item()}, None), values)
        figures.next()
        figures.flush()
        assert gpu.reads == {"train.figures.Figures.flush": 1}
        # A copy that nobody waits for yet is none.
        assert to_host_later(values)().tolist() == [0.0, 1.0, 2.0]
        assert gpu.reads.total() == 1
        values[values > 1]
        float(values.sum())
        values.cpu()
        assert gpu.reads["elsewhere"] == 3
