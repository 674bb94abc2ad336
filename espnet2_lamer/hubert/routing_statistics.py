"""What the routers did in training: load, probability, entropy, idle experts."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from espnet2_lamer.fileio.atomic import append_text, write_text
from espnet2_lamer.hubert.balance import by_expert_count
from espnet2_lamer.hubert.distributed import global_sums, is_distributed
from espnet2_lamer.layers.feed_forward import RoutingRecord

# Frames of a batch are counted apart: at test time none is masked.
KINDS = ("masked", "unmasked")
# An expert below this share of its fair load counts as dead.
DEAD_SHARE = 0.01


class RoutingStatistics:
    """Adds up routing on the device and reads it once per interval.

    Args:
        interval: Training batches between two readings.
        path: JSON-lines file that gets every reading in full, per router; ``None``
            writes none.
    """

    def __init__(self, interval: int = 100, path: Path | None = None) -> None:
        self.interval = interval
        self.path = path
        self._batches = 0
        self._frames: Tensor | None = None
        # One entry per number of experts N: [routers, 2, 2 N + 1].
        self._sums: list[Tensor] = []
        self._routers: list[list[tuple[int, str]]] = []

    @torch.no_grad()
    def add(self, record: RoutingRecord, real: Tensor, mask: Tensor) -> None:
        """Add one batch; nothing is copied to the host.

        Args:
            record: Routing of the batch.
            real: Frames that are not padding ``[B, T]``.
            mask: Masked frames ``[B, T]``.
        """
        groups = by_expert_count(record)
        if not groups:
            return
        kinds = torch.stack([real & mask, real & ~mask]).flatten(1).float()  # [2, F]
        sums = []
        for group in groups:
            probs = torch.stack([routing.probs.flatten(0, 1) for routing in group])
            gates = torch.stack([routing.gates.flatten(0, 1) for routing in group])
            probs = probs.masked_fill(~real.flatten()[:, None], 0.0)
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
        """Go on from :meth:`state`; forget readings that are made once more.

        Args:
            state: Of this rank.
            batches: Training batches at the time of the checkpoint.
        """
        if state:
            self._batches = state["batches"]
            self._frames, self._sums = state["frames"], list(state["sums"])
            self._routers = [[(r[0], r[1]) for r in rs] for rs in state["routers"]]
        if self.path is not None and self.path.is_file() and _is_first():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if _batches_of(line) <= batches]
            write_text(self.path, "".join(kept))

    def read(self, batches: Tensor | None = None) -> dict[str, float]:
        """Read and reset the sums, over all ranks, in one transfer to the host.

        Args:
            batches: Number of training batches so far, for the file.

        Returns:
            Figures for the log: entropy of the routing probabilities (1 = uniform,
            mean over routers), largest and smallest load (1 = an equal share, over
            all routers), number of dead experts.
        """
        device = self._frames.device
        count = torch.zeros((), device=device) if batches is None else batches.float()
        totals = global_sums([self._frames, *self._sums])
        flat = torch.cat([count.reshape(1), *(t.reshape(-1) for t in totals)]).tolist()
        number, frames, values = int(flat[0]), flat[1:3], flat[3:]
        rows: list[dict[str, Any]] = []
        for routers, sums in zip(self._routers, self._sums, strict=True):
            width = sums.shape[-1]
            for layer, name in routers:
                pair = [values[:width], values[width : 2 * width]]
                values = values[2 * width :]
                rows.append({"layer": layer, "router": name, **_row(pair, frames)})
        rows.sort(key=lambda row: row["layer"])
        self._frames, self._sums, self._batches = None, [], 0
        if self.path is not None and _is_first():
            line = {
                "batches": number,
                "frames": dict(zip(KINDS, map(int, frames), strict=True)),
                "routers": rows,
            }
            append_text(self.path, json.dumps(line) + "\n")
        return _summary(rows)


def _is_first() -> bool:
    return not is_distributed() or torch.distributed.get_rank() == 0


def _batches_of(line: str) -> float:
    try:
        return json.loads(line)["batches"]
    except (ValueError, KeyError):
        # The half of a line that a killed process left.
        return math.inf


def _row(pair: list[list[float]], frames: list[float]) -> dict[str, Any]:
    """One router's figures from its sums over masked and unmasked frames."""
    num_experts = (len(pair[0]) - 1) // 2
    row: dict[str, Any] = {"experts": num_experts}
    counts = [0.0] * num_experts
    for kind, sums, count in zip(KINDS, pair, frames, strict=True):
        used = sums[num_experts:-1]
        dispatched = max(sum(used), 1.0)
        row[kind] = {
            "probability": [p / max(count, 1.0) for p in sums[:num_experts]],
            "load": [n / dispatched for n in used],
            "entropy": sums[-1] / max(count, 1.0),
        }
        counts = [a + b for a, b in zip(counts, used, strict=True)]
    fair = sum(counts) / num_experts
    row["dead"] = [k for k, n in enumerate(counts) if n < DEAD_SHARE * fair]
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
