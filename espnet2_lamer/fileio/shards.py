"""Work cut into shards that a killed run goes on with: every store is made so."""

import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path, write_json
from espnet2_lamer.fileio.hashing import sha256_file, sha256_value
from espnet2_lamer.fileio.system import bytes_of, check_space
from espnet2_lamer.parallel import check_processes

# Shards of a small corpus, at least.
FEWEST = 32
Work = Callable[[Any, Path], dict[str, Any]]


def shard_size(items: int, most: int) -> int:
    """Items in a shard: at most ``most``; fewer of few, so that many can work on them.

    It does not depend on how many do: whoever goes on finds the same shards.
    """
    return max(1, min(most, -(-items // FEWEST)))


def split(items: Sequence, size: int) -> list[Sequence]:
    """Cut ``items`` into consecutive parts of ``size``, the last one shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def plan_of(made_by: str, part: Sequence) -> str:
    """Hash of what a shard is made of: all but its part, and the rows of that."""
    return sha256_value([made_by, part])


def is_whole(directory: Path, shard: dict[str, Any]) -> bool:
    """Whether the ``file`` of a shard is there and has its ``sha256``."""
    path = directory / shard["file"]
    return path.is_file() and sha256_file(path) == shard["sha256"]


@dataclass(frozen=True)
class Shards:
    """Files of a directory, one per part of the work, and a marker beside each.

    A shard counts as done when its marker names this plan and its part, and the file
    still has the hash in the marker: one changed row makes one shard anew.
    """

    directory: Path  # of 00000<suffix>, its marker 00000.done.json and so on
    plan: str  # hash of what determines the content of the shards beside their part
    suffix: str

    def check_space(self, needed: float, what: str, way_out: str) -> None:
        """:func:`~espnet2_lamer.fileio.system.check_space`, less finished shards."""
        there = bytes_of(self.directory.glob(f"*{self.suffix}"))
        check_space(self.directory, needed - there, what, way_out)

    def found(self, parts: Sequence) -> list[dict[str, Any]] | None:
        """Return the markers of :meth:`make`, or None unless all shards are done."""
        plans = {f"{n:05d}": plan_of(self.plan, part) for n, part in enumerate(parts)}
        markers = (self._done(name, plan) for name, plan in plans.items())
        made = list(takewhile(bool, markers))
        return made if len(made) == len(parts) else None

    def make(
        self, parts: Sequence, work: Work, nj: int, description: str
    ) -> list[dict[str, Any]]:
        """Make one file per part, in parallel, and go on where one left.

        The engine is joblib's current backend: local processes, or a Dask cluster
        inside :func:`espnet2_lamer.parallel.workers`. ``work(part, path)`` writes
        ``path`` and returns facts for the marker, among them ``audio`` and ``forward``:
        seconds of speech, and seconds that the network took; ``heard``, seconds of
        speech that it heard, where that is not all.

        Returns:
            The markers in the order of ``parts``: ``file``, ``sha256``, ``plan`` and
            the facts.

        Raises:
            RecipeError: ``nj`` is 0, or another run writes there.
        """
        check_processes(nj)
        self.directory.mkdir(parents=True, exist_ok=True)
        names = [f"{number:05d}" for number in range(len(parts))]
        plans = {
            name: plan_of(self.plan, part)
            for name, part in zip(names, parts, strict=True)
        }
        markers = {name: self._done(name, plan) for name, plan in plans.items()}
        todo = [(n, p) for n, p in zip(names, parts, strict=True) if not markers[n]]
        if 0 < len(todo) < len(parts):
            logging.info("%s: %d shards to go", self.directory, len(todo))
        started = time.perf_counter()
        # The library reads what is there and needs no workers for that.
        from joblib import Parallel, delayed

        # All at once: workers that a batch system starts later find work too.
        parallel = Parallel(
            n_jobs=nj, return_as="generator_unordered", pre_dispatch="all"
        )
        calls = ((name, plans[name], part, work) for name, part in todo)
        made = parallel(delayed(self._make_one)(*call) for call in calls)
        counts = {"total": len(parts), "initial": len(parts) - len(todo)}
        markers |= dict(tqdm(made, desc=description, disable=None, **counts))
        for name in names:
            if self._read(name)["plan"] != plans[name]:
                raise RecipeError(
                    f"{self._marker(name)}: another run with other inputs or options "
                    "writes there, such as a worker that outlived a killed run; wait "
                    "for its end, then run the same command again"
                )
        if todo:
            made = [markers[name] for name, _ in todo]
            speed = throughput(made, time.perf_counter() - started)
            logging.info("%s: %s", description, speed)
        return [markers[name] for name in names]

    def remember(self, made: Sequence[dict[str, Any]]) -> None:
        """Put back markers that were cleaned away: shards as good as ever are kept."""
        for marker in made:
            if Path(marker["file"]).name == marker["file"]:
                write_json(self._marker(Path(marker["file"]).stem), marker)

    def clean(self, keep: set[str]) -> None:
        """Delete what work on shards left, but ``keep``; files of others stay."""
        ours = re.compile(r"\d{5,}\.[a-z.]+|\.\d{5,}\..+\.tmp")
        for path in self.directory.iterdir():
            if path.name not in keep and ours.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def _marker(self, name: str) -> Path:
        return self.directory / f"{name}.done.json"

    def _read(self, name: str) -> dict[str, Any]:
        return json.loads(self._marker(name).read_text(encoding="utf-8"))

    def _done(self, name: str, plan: str) -> dict[str, Any] | None:
        try:
            marker = self._read(name)
            same = marker["plan"] == plan
            return marker if same and is_whole(self.directory, marker) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _make_one(
        self, name: str, plan: str, part: Any, work: Work
    ) -> tuple[str, dict[str, Any]]:
        file = name + self.suffix
        started = time.perf_counter()
        with atomic_path(self.directory / file) as temporary:
            facts = work(part, temporary)
            sha256 = sha256_file(temporary)
        marker = {
            "plan": plan,
            "file": file,
            "sha256": sha256,
            "seconds": time.perf_counter() - started,
            **facts,
        }
        write_json(self._marker(name), marker)
        return name, marker


def throughput(markers: Sequence[dict[str, Any]], seconds: float) -> str:
    """Speed of shards finished in ``seconds``, beside that of the forward alone."""
    audio, forward, work = (
        sum(marker[key] for marker in markers)
        for key in ("audio", "forward", "seconds")
    )
    heard = sum(marker.get("heard", marker["audio"]) for marker in markers)
    speed = (
        f"{audio / 3600:.2f} h of speech in {seconds:.1f} s, "
        f"{audio / seconds:.1f} s per second"
    )
    if not forward:
        return f"{speed}; the network heard none of it"
    return (
        f"{speed}; {forward / work:.1%} of the work was the network's forward (alone "
        f"{heard / forward:.1f} s per second and process)"
    )
