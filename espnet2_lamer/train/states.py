"""States that exact resume needs, as plain values that load without unpickling."""

import datetime
import logging
import random
from typing import Any

import numpy as np
import torch
from espnet2.train.reporter import Average, Reporter, SubReporter, WeightedAverage


def random_state(device: str) -> dict[str, Any]:
    """State of Python's, NumPy's and torch's generators.

    Args:
        device: Where the model is. With ``"cuda"`` the state of this process's GPU is
            kept too, and of no other: a later process may see more or fewer.
    """
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position],
        "numpy_gauss": [has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if device == "cuda" else [],
    }


def set_random_state(state: dict[str, Any], device: str) -> None:
    """Undo everything drawn since :func:`random_state`.

    Args:
        state: On the CPU.
        device: Where the model is now; a warning says if it was on the other one.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position = state["numpy"]
    has_gauss, cached = state["numpy_gauss"]
    np.random.set_state(
        (name, keys.numpy().astype(np.uint32), position, has_gauss, cached)
    )
    torch.set_rng_state(state["torch"])
    before = "cuda" if state["cuda"] else "cpu"
    if before != device:
        logging.warning(
            "saved on %s and resumed on %s: dropout draws other random numbers",
            *(before, device),
        )
    elif device == "cuda":
        torch.cuda.set_rng_state(state["cuda"][0])


def reporter_state(reporter: Reporter) -> dict[str, Any]:
    """ESPnet's per-epoch results; durations as seconds."""
    return {
        "epoch": reporter.epoch,
        "stats": {
            epoch: {
                part: {
                    key: value.total_seconds()
                    if isinstance(value, datetime.timedelta)
                    else _plain(value)
                    for key, value in stats.items()
                }
                for part, stats in parts.items()
            }
            for epoch, parts in reporter.stats.items()
        },
    }


def set_reporter_state(reporter: Reporter, state: dict[str, Any]) -> None:
    """Inverse of :func:`reporter_state`."""
    reporter.epoch = state["epoch"]
    reporter.stats = {
        epoch: {
            part: {
                key: datetime.timedelta(seconds=value) if key == "time" else value
                for key, value in stats.items()
            }
            for part, stats in parts.items()
        }
        for epoch, parts in state["stats"].items()
    }


def sub_reporter_state(reporter: SubReporter) -> dict[str, Any]:
    """What an epoch has collected so far: one row per step and figure."""
    stats = {}
    for key, values in reporter.stats.items():
        # An epoch has 10^5 values: dataclasses.astuple would take seconds.
        if isinstance(values[0], WeightedAverage):
            rows = [[float(v.value), float(v.weight)] for v in values]
        else:
            rows = [[float(v.value)] for v in values]
        stats[key] = torch.tensor(rows, dtype=torch.float64)
    return {
        "count": reporter.count,
        "total_count": reporter.total_count,
        "stats": stats,
    }


def set_sub_reporter_state(reporter: SubReporter, state: dict[str, Any]) -> None:
    """Inverse of :func:`sub_reporter_state`."""
    reporter.count = state["count"]
    reporter.total_count = state["total_count"]
    for key, rows in state["stats"].items():
        kind = Average if rows.shape[1] == 1 else WeightedAverage
        reporter.stats[key] = [kind(*row) for row in rows.tolist()]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
