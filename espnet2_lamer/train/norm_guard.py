"""Say when norms leave the range of trainings that were measured, or run away."""

import csv
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.metrics.growth import fit_growth

#: Norms along the trainings that were measured; ``analyze --norms`` writes it.
SEEN = "norms_seen.csv"
#: A prediction is exceeded where the norm is above its interval and by so much.
RUNAWAY = 1.5
ADVICE = (
    "Training goes on. Look at loss_m, masked accuracy and forgetting.jsonl: where "
    "they get worse, train anew with a lower peak rate (optim_conf.lr) or with more "
    "audio in fewer updates (update_bins), as in "
    "conf/tuning/train_ssl_lamer_large_updates.yaml"
)
_WHAT = {
    "share": "the largest update of an expert, as a share of its frozen weight,",
    "router": "the largest norm of an expert's row of a router's weight",
}


@dataclass(frozen=True)
class Seen:
    """The largest value of a norm over measured trainings, and where it was."""

    value: float
    run: str
    update: int


@cache
def largest_seen() -> dict[str, Seen]:
    """Read the committed range: per kind (``share``, ``router``) its upper end."""
    text = files("espnet2_lamer.train").joinpath(SEEN).read_text(encoding="utf-8")
    found: dict[str, Seen] = {}
    for row in csv.DictReader(text.splitlines()):
        for kind in _WHAT:
            value = float(row[kind])
            if kind not in found or value > found[kind].value:
                found[kind] = Seen(value, row["run"], int(row["update"]))
    return found


class NormGuard:
    """Warns once per kind, and notes it in ``health.json`` under ``norms``.

    ``share`` and ``router`` above all that was seen; ``growth``: the largest share is
    above what its own growth up to half of the rate sum allows. ``health`` is the
    training's :class:`~espnet2_lamer.train.health.Health`, whose report tells what
    was said before the training was resumed.
    """

    def __init__(self, health: Any) -> None:
        self.health = health
        self._course: list[tuple[float, float]] = []

    def remember(self, rate_sum: float, found: Mapping[str, float]) -> None:
        """Take an earlier line's summary, of which all was said."""
        if "share" in found:
            self._course.append((rate_sum, found["share"]))

    def look(self, line: Mapping[str, Any], found: Mapping[str, float]) -> None:
        """Compare a new line, and its summary, with what is known."""
        for kind, seen in largest_seen().items():
            if found.get(kind, 0.0) > seen.value:
                limit = (
                    f"above the {seen.value:.3g} of the trainings in norms_seen.csv "
                    f"({seen.run}, update {seen.update})"
                )
                self._warn(kind, _WHAT[kind], line, found[kind], seen.value, limit)
        self.remember(line["rate_sum"], found)
        if (allowed := self._allowed()) and found["share"] > allowed:
            limit = (
                f"above the {allowed:.3g} that its growth up to half of the learning "
                "rates allows"
            )
            self._warn("growth", _WHAT["share"], line, found["share"], allowed, limit)

    def _allowed(self) -> float | None:
        """The most that the course up to half of the rate sum lets one expect now."""
        if not self._course:
            return None
        now = self._course[-1][0]
        past = [point for point in self._course if point[0] <= now / 2]
        growth = fit_growth(*zip(*past, strict=True)) if past else None
        if growth is None:
            return None
        return max(growth.interval(now)[1], RUNAWAY * growth.at(now))

    def _warn(
        self,
        kind: str,
        what: str,
        line: Mapping[str, Any],
        value: float,
        limit: float,
        why: str,
    ) -> None:
        report = self.health.report.setdefault("norms", {})
        if kind in report:
            return
        report[kind] = {"update": line["update"], "found": value, "limit": limit}
        write_json(self.health.path, self.health.report)
        logging.warning(
            f"norms after update {line['update']}: {what} is {value:.3g}, {why}. "
            f"{ADVICE}; see docs/training.md. Said once (health.json: norms.{kind})"
        )
