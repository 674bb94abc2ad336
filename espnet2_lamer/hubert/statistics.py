"""Sums over ranks, and figures of a training: per step, per language, per router."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from espnet2_lamer.fileio.atomic import append_text, write_text
from espnet2_lamer.layers.feed_forward import RoutingRecord

# Frames of a batch are counted apart: at test time none is masked.
KINDS = ("masked", "unmasked")
# An expert below this share of its fair load counts as dead.
DEAD_SHARE = 0.01


# Whether this process does for a while as if it were the only one.
_alone = False


def is_distributed() -> bool:
    """Whether this process is one of several ranks."""
    distributed = torch.distributed
    return (
        not _alone
        and distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def rank_and_ranks() -> tuple[int, int]:
    """The number of this process among the ranks, and how many there are."""
    if not is_distributed():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


@contextmanager
def alone() -> Iterator[None]:
    """Exchange nothing with other ranks meanwhile: each may fail on its own."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def gather(value: Any) -> list[Any]:
    """Give every rank the values of all, in their order."""
    if not is_distributed():
        return [value]
    every: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, value)
    return every


def global_sums(values: list[Tensor]) -> list[Tensor]:
    """Add floating-point tensors up over all ranks, in one message, without gradient.

    Every rank gives tensors of the same shapes; in a run of one process the sums are
    the values themselves.
    """
    values = [value.detach() for value in values]
    if not is_distributed():
        return values
    flat = torch.cat([value.float().reshape(-1) for value in values])
    torch.distributed.all_reduce(flat)
    parts = flat.split([value.numel() for value in values])
    return [
        part.reshape(value.shape) for part, value in zip(parts, values, strict=True)
    ]


def figure_sums(
    figures: dict[str, Tensor | float | None], weight: Tensor
) -> tuple[list[str], Tensor]:
    """Weigh a batch's scalars, so that those of batches and ranks can be added up.

    Returns:
        Names of the F figures that are not ``None``; ``[2 F + 1]`` on the weight's
        device: values times weight, weights (0 for NaN), and the weight itself.
    """
    weight = weight.detach().reshape(()).float()
    named = {
        key: torch.as_tensor(value, dtype=torch.float32, device=weight.device)
        for key, value in figures.items()
        if value is not None
    }
    values = torch.stack([value.reshape(()) for value in named.values()])
    known = ~values.isnan()
    parts = [values.masked_fill(~known, 0.0) * weight, known * weight, weight[None]]
    return list(named), torch.cat(parts)


def figure_means(
    batches: Sequence[Sequence[str]], sums: Tensor
) -> tuple[dict[str, float], float]:
    """Read the :func:`figure_sums` of one or several batches, one behind the other.

    ``batches`` are the names of each; ``sums`` are on the host.

    Returns:
        Means over the batches (NaN where nothing has a value), and the whole weight.
    """
    found: dict[str, np.ndarray] = {}
    total = np.float32(0.0)
    numbers, start = sums.numpy(), 0
    for names in batches:
        end = start + 2 * len(names)
        pairs = numbers[start:end].reshape(2, len(names))
        for index, name in enumerate(names):
            found[name] = found.get(name, np.float32(0.0)) + pairs[:, index]
        total += numbers[end]
        start = end + 1
    with np.errstate(invalid="ignore"):
        means = {name: float(value / weight) for name, (value, weight) in found.items()}
    return means, float(total)


def keep_json_lines(path: Path, key: str, last: int) -> list[dict[str, Any]]:
    """Forget the lines after ``last``, which a resumed training writes once more.

    Returns what the others hold.
    """
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            found = json.loads(line)
            if found[key] <= last:
                kept.append((line, found))
        except (ValueError, KeyError):
            # The half of a line that a killed process left.
            continue
    write_text(path, "".join(line for line, _ in kept))
    return [found for _, found in kept]


class LanguageStatistics:
    """Adds up masked frames, right answers and nats per language on the device.

    Args:
        names: Languages by their number in the data ``lang``; empty: nothing is done.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = list(names)
        self._sums: Tensor | None = None

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, languages: Tensor) -> None:
        """Add masked frames: logits ``[M, K]``, units ``[M]``, languages ``[M]``."""
        if not self.names:
            return
        nats = F.cross_entropy(logits, labels, reduction="none")
        right = (logits.argmax(-1) == labels).to(nats.dtype)
        rows = torch.stack([torch.ones_like(nats), right, nats], -1)  # [M, 3]
        if self._sums is None:
            self._sums = rows.new_zeros(len(self.names), 3)
        self._sums.index_add_(0, languages, rows)

    def read(self) -> dict[str, float]:
        """Read and reset, over all ranks, in one transfer.

        Returns:
            ``acc_m_<lang>`` and ``bits_m_<lang>`` of the languages that occurred.
        """
        if self._sums is None:
            return {}
        (sums,) = global_sums([self._sums])
        self._sums = None
        figures = {}
        for name, (frames, right, nats) in zip(self.names, sums.tolist(), strict=True):
            if frames:
                figures[f"acc_m_{name}"] = right / frames
                figures[f"bits_m_{name}"] = nats / frames / math.log(2.0)
        return figures

    def state(self) -> dict[str, Any]:
        """This rank's sums so far, for a checkpoint."""
        return {} if self._sums is None else {"sums": self._sums}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self._sums = state.get("sums")


class RoutingLog:
    """Adds up routing on the device and reads it once per ``interval`` of batches.

    The JSON-lines file ``path``, if given, gets every reading in full, per router.
    """

    def __init__(self, interval: int = 100, path: Path | None = None) -> None:
        self.interval = interval
        self.path = path
        self._batches = 0
        self._frames: Tensor | None = None
        # One entry per number of experts N: [routers, 2, 2 N + 1].
        self._sums: list[Tensor] = []
        self._routers: list[list[tuple[int, str]]] = []
        #: The last reading, as a line of the file; empty where none is known.
        self.latest: dict[str, Any] = {}

    @torch.no_grad()
    def add(self, record: RoutingRecord, real: Tensor, mask: Tensor) -> None:
        """Add one batch: routing, real frames and masked frames ``[B, T]``."""
        groups = record.by_expert_count()
        if not groups:
            return
        real, mask = map(record.rows_of, (real, mask))
        kinds = torch.stack([real & mask, real & ~mask]).float()  # [2, R]
        sums = []
        for group in groups:
            probs = torch.stack([routing.probs for routing in group])
            gates = torch.stack([routing.gates for routing in group])
            if record.packing is None:
                probs = probs.masked_fill(~real[:, None], 0.0)
            entropy = torch.special.entr(probs).sum(-1, keepdim=True)
            values = torch.cat([probs, (gates > 0).to(probs.dtype), entropy], -1)
            sums.append(kinds @ values)  # [routers, 2, 2 N + 1]
        routers = [[(r.layer, r.name) for r in group] for group in groups]
        if self._frames is None or routers != self._routers:
            self._routers, self._sums = routers, sums
            self._frames = kinds.sum(1)
            self._batches = 1
        else:
            for total, new in zip(self._sums, sums, strict=True):
                total += new
            self._frames += kinds.sum(1)
            self._batches += 1

    @property
    def due(self) -> bool:
        """Whether an interval is complete."""
        return self._batches >= self.interval

    def state(self) -> dict[str, Any]:
        """This rank's sums so far, for a checkpoint."""
        if self._frames is None:
            return {}
        return {
            "batches": self._batches,
            "frames": self._frames,
            "sums": self._sums,
            "routers": [[list(r) for r in routers] for routers in self._routers],
        }

    def set_state(self, state: dict[str, Any], batches: int) -> None:
        """Go on from :meth:`state` after ``batches``; forget later readings."""
        if state:
            self._batches = state["batches"]
            self._frames, self._sums = state["frames"], list(state["sums"])
            self._routers = [[(r[0], r[1]) for r in rs] for rs in state["routers"]]
        if self.path is not None and rank_and_ranks()[0] == 0:
            kept = keep_json_lines(self.path, "batches", batches)
            self.latest = kept[-1] if kept else {}

    def read(self, batches: Tensor | None = None) -> dict[str, float]:
        """Read and reset the sums, over all ranks, in one transfer to the host.

        Returns:
            Figures for the log: entropy of the routing probabilities (1 = uniform,
            mean over routers), largest and smallest load (1 = an equal share, over
            all routers), number of dead experts.
        """
        device = self._frames.device
        count = torch.zeros((), device=device) if batches is None else batches.float()
        totals = global_sums([self._frames, *self._sums])
        flat = torch.cat([count.reshape(1), *(t.reshape(-1) for t in totals)])
        flat = flat.double().cpu().numpy()
        number, frames, values = int(flat[0]), flat[1:3].tolist(), flat[3:]
        rows: list[dict[str, Any]] = []
        for routers, sums in zip(self._routers, self._sums, strict=True):
            pairs = values[: sums.numel()].reshape(sums.shape)
            values = values[sums.numel() :]
            for (layer, name), pair in zip(routers, pairs, strict=True):
                rows.append({"layer": layer, "router": name, **_row(pair, frames)})
        rows.sort(key=lambda row: row["layer"])
        self._frames, self._sums, self._batches = None, [], 0
        self.latest = {
            "batches": number,
            "frames": dict(zip(KINDS, map(int, frames), strict=True)),
            "routers": rows,
        }
        if self.path is not None and rank_and_ranks()[0] == 0:
            append_text(self.path, json.dumps(self.latest) + "\n")
        return _summary(rows)


def _row(pair: np.ndarray, frames: list[float]) -> dict[str, Any]:
    """One router's figures from its sums over masked and unmasked frames."""
    num_experts = pair.shape[1] // 2
    probs, used, entropy = np.split(pair, [num_experts, 2 * num_experts], axis=1)
    row: dict[str, Any] = {"experts": num_experts}
    for index, kind in enumerate(KINDS):
        count = max(frames[index], 1.0)
        row[kind] = {
            "probability": (probs[index] / count).tolist(),
            "load": (used[index] / max(used[index].sum(), 1.0)).tolist(),
            "entropy": float(entropy[index, 0] / count),
        }
    counts = used.sum(0)
    row["dead"] = np.flatnonzero(counts < DEAD_SHARE * counts.mean()).tolist()
    return row


def _summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    summary: dict[str, float] = {}
    for kind in KINDS:
        entropies = [row[kind]["entropy"] / math.log(row["experts"]) for row in rows]
        loads = [row["experts"] * f for row in rows for f in row[kind]["load"]]
        summary[f"routing_entropy_{kind}"] = sum(entropies) / len(entropies)
        summary[f"max_load_{kind}"] = max(loads)
        summary[f"min_load_{kind}"] = min(loads)
    summary["dead_experts"] = float(sum(len(row["dead"]) for row in rows))
    return summary
