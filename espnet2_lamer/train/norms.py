"""Norms of experts and routers along a training: ``norms.jsonl`` and its summary."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from espnet2_lamer.fileio.atomic import append_text
from espnet2_lamer.hubert.statistics import KINDS, keep_json_lines
from espnet2_lamer.layers.norms import Entry, frozen_norms, norm_vector, read_norms
from espnet2_lamer.train.figures import Figures
from espnet2_lamer.train.norm_guard import NormGuard


class NormLog:
    """Writes a line every ``norms_interval`` updates, and at the end of each epoch.

    Norms are computed on the device after an update and read with the other figures of
    the steps (:class:`~espnet2_lamer.train.figures.Figures`): nothing waits for them,
    no random number is drawn and no weight is touched. A line has the update and epoch,
    the update's learning rate, the rates of all updates added up, what
    :func:`~espnet2_lamer.layers.norms.norms_of` gives, and per router the ``entropy``
    of its probabilities as last read for ``routing.jsonl``, over that of a uniform
    choice (None before).

    Lines after the updates that ``run``, a
    :class:`~espnet2_lamer.train.run.TrainingRun`, has behind it are forgotten: a
    resumed training writes them once more.
    """

    def __init__(self, run: Any) -> None:
        self.run = run
        self.path = Path(run.options.output_dir) / "norms.jsonl"
        self.guard = NormGuard(run.health)
        #: Figures of the last line, for the epoch's log.
        self.figures: dict[str, float] = {}
        # Once, before the first update.
        self._frozen = frozen_norms(run.model)
        for line in keep_json_lines(self.path, "update", run.updates):
            self.guard.remember(line["rate_sum"], self._summary(line))

    def updated(self, figures: Figures, rate: float, ends: bool) -> None:
        """Measure after an update with this rate, if a line is due.

        One is where the update ``ends`` the epoch.
        """
        run = self.run
        if run.updates % run.options.norms_interval and not ends:
            return
        head = {"update": run.updates, "epoch": run.epoch}
        head |= {"rate": rate, "rate_sum": run.rate_sum}
        entropies = routing_entropies(run.model.routing_statistics.latest)
        entries, values = norm_vector(run.model)
        read = partial(self._read, head, entropies, entries)
        figures.slot("norms").fill(read, values)

    def _read(
        self,
        head: Mapping[str, Any],
        entropies: Mapping[str, float],
        entries: Sequence[Entry],
        values: Tensor,
    ) -> tuple[dict[str, float], None]:
        line = {**head, **read_norms(entries, values, self._frozen)}
        for key, router in line["routers"].items():
            router["entropy"] = entropies.get(key)
        line = _short(line)
        append_text(self.path, json.dumps(line) + "\n")
        self.guard.look(line, self._summary(line))
        # The epoch's figures are those of its last line, no mean over lines.
        return {}, None

    def _summary(self, line: Mapping[str, Any]) -> dict[str, float]:
        found = summary(line)
        self.figures = {f"norms_{key}": value for key, value in found.items()}
        return found


def build_norms(run: Any) -> NormLog | None:
    """Build the log of a training, in its first rank.

    ``None`` where it is off, or where the model has no experts.
    """
    on = run.is_first and run.options.norms_interval > 0
    return NormLog(run) if on and norm_vector(run.model)[0] else None


def summary(line: Mapping[str, Any]) -> dict[str, float]:
    """What a line says in short.

    ``share`` and ``mean_share`` over all experts (without frozen norms absent),
    ``router``, the largest row, where there are routers.
    """
    shares = [x for one in line["experts"].values() for x in one.get("share", ())]
    rows = [x for one in line["routers"].values() for x in one["row"]]
    found = {}
    if shares:
        found = {"share": max(shares), "mean_share": sum(shares) / len(shares)}
    return found | ({"router": max(rows)} if rows else {})


def routing_entropies(reading: Mapping[str, Any]) -> dict[str, float]:
    """Mean entropy of each router's probabilities over log N, of a routing reading."""
    frames = reading.get("frames", {})
    every = sum(frames.values())
    return {
        f"{row['layer']}.{row['router']}": sum(
            frames[kind] * row[kind]["entropy"] for kind in KINDS
        )
        / (every * math.log(row["experts"]))
        for row in reading.get("routers", ())
        if every
    }


def _short(value: Any) -> Any:
    """Round floats to six digits, wherever they are."""
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_short(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
