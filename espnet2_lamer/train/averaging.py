"""The mean of the best epochs' models, as ESPnet names it."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from espnet2.train.reporter import Reporter

from espnet2_lamer.fileio.atomic import atomic_path


def link(path: Path, target: str) -> None:
    """Make ``path`` a symbolic link to ``target``, replacing an old one at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, path)


def average_best_models(
    reporter: Reporter,
    output_dir: Path,
    criteria: Sequence[Sequence[str]],
    numbers: Sequence[int],
) -> None:
    """Write ``<part>.<key>.ave_<n>best.pth`` and the link ``<part>.<key>.ave.pth``.

    Floating-point tensors are averaged; others (counters, the base's hash) are those
    of the best epoch, where ESPnet's own function would add them up.

    Args:
        reporter: Knows which epochs were best.
        output_dir: Holds ``<epoch>epoch.pth``.
        criteria: ``(part, key, "min" or "max")`` each.
        numbers: How many best epochs to average; several are allowed.
    """
    for part, key, mode in criteria:
        if not reporter.has(part, key):
            continue
        epochs = reporter.sort_epochs(part, key, mode)
        wanted = sorted({min(n, len(epochs)) for n in numbers if n > 0}) or [1]
        for number in wanted:
            output = output_dir / f"{part}.{key}.ave_{number}best.pth"
            if number == 1:
                link(output, f"{epochs[0]}epoch.pth")
            else:
                state = _mean(output_dir, epochs[:number])
                with atomic_path(output) as temporary:
                    torch.save(state, temporary)
        link(
            output_dir / f"{part}.{key}.ave.pth",
            f"{part}.{key}.ave_{wanted[-1]}best.pth",
        )


def _mean(output_dir: Path, epochs: Sequence[int]) -> dict[str, torch.Tensor]:
    mean: dict[str, torch.Tensor] = {}
    for epoch in epochs:
        state = torch.load(
            output_dir / f"{epoch}epoch.pth", map_location="cpu", weights_only=True
        )
        for name, value in state.items():
            if not value.is_floating_point():
                mean.setdefault(name, value)
            elif name not in mean:
                mean[name] = value.double()
            else:
                mean[name] += value
    for name, value in mean.items():
        if value.dtype == torch.float64:
            mean[name] = (value / len(epochs)).to(state[name].dtype)
    return mean
