"""Figures that ESPnet's reporter logged, and those of the head-only control.

Units are new to the base: what its frozen features give is what the head alone reaches
on the same data after as many updates, and not what it was before training.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from espnet2_lamer.compat import reporter_types
from espnet2_lamer.convert.state import read_tensors
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.train.labels import beside

_KEYS = re.compile(r"acc_m(_\w+)?|bits_m_\w+|loss_m_bits")


def read_curves(experiment: Path) -> list[dict[str, float | int | str]]:
    """Read the reporter in ``checkpoint.pth`` of an ESPnet experiment.

    Returns:
        One row per epoch and phase (``train``, ``valid``) with every numeric figure.
    """
    with torch.serialization.safe_globals(reporter_types()):
        state = read_tensors(experiment / "checkpoint.pth")
    rows = []
    for epoch, phases in sorted(state["reporter"]["stats"].items()):
        for phase in ("train", "valid"):
            figures = {
                key: float(value)
                for key, value in phases[phase].items()
                if isinstance(value, int | float) or hasattr(value, "dtype")
            }
            rows.append({"epoch": epoch, "phase": phase, **figures})
    return rows


def read_control(experiment: str | Path) -> dict[int, dict[str, float]]:
    """Read the validation figures that a head-only control logged at each epoch.

    Raises:
        RecipeError: There is no training.
    """
    path = Path(experiment) / "checkpoint.pth"
    if not path.is_file():
        raise RecipeError(
            f"monitor_control: found no {path}, expected the experiment of a head-only "
            "control (allocation 0) on the same data; train it first, or leave the "
            "option out"
        )
    return {
        row["epoch"]: {key: row[key] for key in row if _KEYS.fullmatch(key)}
        for row in read_curves(Path(experiment))
        if row["phase"] == "valid"
    }


def beside_control(
    figures: Mapping[str, Any], control: Mapping[str, float]
) -> dict[str, Any]:
    """Put ``control_<name>`` behind each figure that the control has, too."""
    return beside(figures, {k: {f"control_{k}": v} for k, v in control.items()})
