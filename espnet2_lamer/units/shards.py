"""Resumable sharded work: each shard is a file and a marker with its hash."""

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path, write_json
from espnet2_lamer.fileio.hashing import sha256_file
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


def run_shards(
    directory: Path,
    plan: str,
    parts: Sequence,
    work: Work,
    suffix: str,
    nj: int,
    description: str,
) -> list[dict[str, Any]]:
    """Make one file per part in ``directory``, in parallel, and go on where one left.

    A shard counts as done when its marker names this ``plan`` and the file still has
    the hash in the marker. The engine is joblib's current backend: local processes, or
    a Dask cluster inside :func:`espnet2_lamer.parallel.workers`.

    Args:
        directory: Holds ``00000<suffix>`` and its marker ``00000.done.json`` and so on.
        plan: Hash of all that determines the content of the shards.
        parts: What to do in each shard.
        work: ``work(part, path)`` writes ``path`` and returns facts for the marker,
            among them ``audio`` and ``forward``: seconds of speech, and seconds that
            the teacher took.
        suffix: File name suffix of the shards.
        nj: Number of processes.
        description: Label of the progress bar and of the throughput that is logged.

    Returns:
        The markers in the order of ``parts``: ``file``, ``sha256`` and the facts.

    Raises:
        RecipeError: ``nj`` is 0, or another run writes there.
    """
    from joblib import Parallel, delayed
    from tqdm import tqdm

    check_processes(nj)
    directory.mkdir(parents=True, exist_ok=True)
    names = [f"{number:05d}" for number in range(len(parts))]
    markers = {name: _done(directory, name, plan) for name in names}
    todo = [(n, part) for n, part in zip(names, parts, strict=True) if not markers[n]]
    if 0 < len(todo) < len(parts):
        logging.info("%s: %d shards to go", directory, len(todo))
    calls = (delayed(_run_one)(directory, n, plan, p, work, suffix) for n, p in todo)
    started = time.perf_counter()
    # All at once: workers that a batch system starts later find work too.
    parallel = Parallel(n_jobs=nj, return_as="generator_unordered", pre_dispatch="all")
    done = parallel(calls)
    bar = tqdm(
        done,
        desc=description,
        total=len(parts),
        initial=len(parts) - len(todo),
        disable=not sys.stderr.isatty(),
    )
    for name, marker in bar:
        markers[name] = marker
    for name in names:
        _check_marker(directory, name, plan)
    made = [markers[name] for name, _ in todo]
    if made:
        logging.info(
            "%s: %s", description, throughput(made, time.perf_counter() - started)
        )
    return [{k: v for k, v in markers[n].items() if k != "plan"} for n in names]


def throughput(markers: Sequence[dict[str, Any]], seconds: float) -> str:
    """Speed of finished shards, beside that of the teacher's forward alone.

    Args:
        markers: Of the shards.
        seconds: Wall-clock time in which they were made.
    """
    audio, forward, work = (
        sum(marker[key] for marker in markers)
        for key in ("audio", "forward", "seconds")
    )
    return (
        f"{audio / 3600:.2f} h of speech in {seconds:.1f} s, "
        f"{audio / seconds:.1f} s per second; {forward / work:.1%} of the work was the "
        f"teacher's forward (alone {audio / forward:.1f} s per second and process)"
    )


def _marker_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.done.json"


def _check_marker(directory: Path, name: str, plan: str) -> None:
    path = _marker_path(directory, name)
    marker = json.loads(path.read_text(encoding="utf-8"))
    if marker["plan"] != plan:
        raise RecipeError(
            f"{path}: another run with other inputs or options writes there, such as a "
            "worker that outlived a killed run; wait for its end, then run the same "
            "command again"
        )


def _done(directory: Path, name: str, plan: str) -> dict[str, Any] | None:
    try:
        marker = json.loads(_marker_path(directory, name).read_text(encoding="utf-8"))
        if marker["plan"] != plan:
            return None
        whole = sha256_file(directory / marker["file"]) == marker["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return marker if whole else None


def _run_one(directory, name, plan, part, work, suffix):
    file = name + suffix
    started = time.perf_counter()
    with atomic_path(directory / file) as temporary:
        facts = work(part, temporary)
        sha256 = sha256_file(temporary)
    seconds = time.perf_counter() - started
    marker = {"plan": plan, "file": file, "sha256": sha256, "seconds": seconds, **facts}
    write_json(_marker_path(directory, name), marker)
    return name, marker


def remove_unlisted(directory: Path, keep: set[str]) -> None:
    """Delete what :func:`run_shards` left: markers, temporaries, shards no longer used.

    Other files in the directory are not touched.
    """
    ours = re.compile(r"\d{5,}\.[a-z.]+|\.\d{5,}\..+\.tmp")
    for path in directory.iterdir():
        if path.name not in keep and ours.fullmatch(path.name):
            path.unlink(missing_ok=True)
