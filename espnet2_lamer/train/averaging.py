"""The mean of the best epochs' models, as ESPnet names it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from espnet2.train.reporter import Reporter

from espnet2_lamer.convert.state import read_state
from espnet2_lamer.fileio.atomic import link
from espnet2_lamer.fileio.checksum import checked_file


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
                with checked_file(output) as stream:
                    torch.save(state, stream)
        link(
            output_dir / f"{part}.{key}.ave.pth",
            f"{part}.{key}.ave_{wanted[-1]}best.pth",
        )


def _mean(output_dir: Path, epochs: Sequence[int]) -> dict[str, torch.Tensor]:
    mean: dict[str, torch.Tensor] = {}
    for epoch in epochs:
        state = read_state(output_dir / f"{epoch}epoch.pth")
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
