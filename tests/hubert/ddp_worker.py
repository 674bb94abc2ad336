"""Two gloo ranks against one process; started by test_distributed.py, prints JSON."""

import json
import multiprocessing
import os
import sys
from pathlib import Path

import torch
from espnet2.torch_utils.recursive_op import recursive_average
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from espnet2_lamer.asr.encoder.lamer_hubert import LamerHubertEncoder
from espnet2_lamer.hubert.espnet_model import LamerHubertPretrainModel
from tests.hubert.conftest import UNITS
from tests.tiny_hubert import ARCHITECTURE

CASES = {
    "loss": ({"allocation": "2,4", "rank": 2}, {"balance_weight": 0.5}),
    "mean": (
        {"allocation": "4,4", "rank": 2, "top_k": 1, "router": "projection"},
        {"balance_weight": 0.5, "balance_reduction": "mean"},
    ),
    "importance": (
        {"allocation": 3, "rank": 2, "top_k": None, "balance": "importance"},
        {"balance_weight": 0.5},
    ),
    "bias": ({"allocation": "4,4", "rank": 2, "balance": "bias"}, {}),
    "unmasked": ({"allocation": "0,1", "rank": 2}, {"unmasked_weight": 0.7}),
    "full": (None, {"feature_penalty": 10.0}),
    "no masked frame on one rank": (
        {"allocation": "2,4", "rank": 2},
        {"balance_weight": 0.5},
    ),
    "checkpointing": ({"allocation": "2,4", "rank": 2}, {"balance_weight": 0.5}),
}
FRAMES = (9, 6, 7)
# Utterances of rank 0 and rank 1: of unequal number and length.
SHARES = ((0,), (1, 2))
STEPS = 3


def build(case):
    lamer, conf = CASES[case]
    torch.manual_seed(0)
    encoder = LamerHubertEncoder(
        num_classes=UNITS,
        lamer=lamer,
        final_dim=8,
        gradient_checkpointing=case == "checkpointing",
        **ARCHITECTURE,
    )
    for name, parameter in encoder.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.3)
    tokens = [*map(str, range(UNITS)), "<unk>", "<sos/eos>"]
    model = LamerHubertPretrainModel(encoder, tokens, **conf)
    model.routing_statistics.interval = STEPS
    return model.train()


def batch(case, step, rows):
    """The utterances ``rows`` of a seeded batch, padded to the longest of them."""
    generator = torch.Generator().manual_seed(100 + step)
    speech = torch.randn(3, 80 + 320 * max(FRAMES), generator=generator)
    text = torch.randint(0, UNITS, (3, max(FRAMES)), generator=generator)
    mask = torch.rand(3, max(FRAMES), generator=generator) < 0.5
    mask[:, 0] = True
    if case == "no masked frame on one rank":
        mask[0] = False
    longest = max(FRAMES[row] for row in rows)
    indices = torch.full((len(rows), longest), -1)
    for number, row in enumerate(rows):
        speech[row, 80 + 320 * FRAMES[row] :] = 0.0
        text[row, FRAMES[row] :] = -1
        mask[row, FRAMES[row] :] = False
        found = mask[row].nonzero().flatten()
        indices[number, : len(found)] = found
    rows = list(rows)
    frames = torch.tensor([FRAMES[row] for row in rows])
    return {
        "speech": speech[rows, : 80 + 320 * longest],
        "speech_lengths": 80 + 320 * frames,
        "text": text[rows, :longest],
        "text_lengths": frames,
        "mask_indices": indices,
    }


def train(case, rows, world_size):
    """A few updates as ESPnet's trainer makes them; losses, figures, last state."""
    model = build(case)
    wrapped = model if world_size == 1 else DistributedDataParallel(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    losses, figures = [], {}
    for step in range(STEPS):
        loss, stats, weight = wrapped(**batch(case, step, rows))
        if world_size > 1:
            loss = (loss * weight.type(loss.dtype)).sum()
            stats, weight = recursive_average(stats, weight, True)
            loss = loss / weight * world_size
        optimizer.zero_grad()
        loss.backward()
        losses.append(float(stats["loss"]))
        figures = {name: float(value) for name, value in stats.items()}
        if step < STEPS - 1:
            optimizer.step()
    state = {
        f"{n}.grad": p.grad for n, p in model.named_parameters() if p.grad is not None
    }
    state |= {n: b for n, b in model.named_buffers() if n.endswith(("bias", "load"))}
    return losses, figures, state


def rank_main(rank, directory):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2
    )
    found = {case: train(case, SHARES[rank], 2) for case in CASES}
    distributed.destroy_process_group()
    if rank == 0:
        torch.save(found, f"{directory}/two.pt")


def main():
    directory = Path(sys.argv[1])
    # Forked after the imports, which take longer than everything else here.
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=rank_main, args=(r, directory)) for r in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        sys.exit("a rank failed")
    torch.set_num_threads(1)
    two = torch.load(directory / "two.pt", weights_only=True)
    report = {}
    for case in CASES:
        losses, figures, state = train(case, (0, 1, 2), 1)
        other_losses, other_figures, other = two[case]
        assert state.keys() == other.keys() and figures.keys() == other_figures.keys()
        report[case] = {
            "losses": [losses, other_losses],
            "figures": [figures, other_figures],
            "difference": max((state[k] - other[k]).abs().max().item() for k in state),
            "gradient": max(v.abs().max().item() for v in state.values()),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main()
