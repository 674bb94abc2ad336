"""Files of an epoch's model: the mean of the best, and ESPnet's own with checksums."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from espnet2.train.reporter import Reporter
from espnet2.train.trainer import Trainer, TrainerOptions

from espnet2_lamer.convert.state import read_state
from espnet2_lamer.fileio.atomic import link
from espnet2_lamer.fileio.checksum import SUFFIX, check_file, checked_file
from espnet2_lamer.train.checkpoint import LATEST


def average_best_models(
    reporter: Reporter,
    output_dir: Path,
    criteria: Sequence[Sequence[str]],
    numbers: Sequence[int],
) -> None:
    """Write ``<part>.<key>.ave_<n>best.pth`` and the link ``<part>.<key>.ave.pth``.

    Floating-point tensors are averaged; others (counters, the base's hash) are those
    of the best epoch, where ESPnet's own function would add them up. ``criteria`` are
    ``(part, key, "min" or "max")``, ``numbers`` how many epochs to average, each.
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
    first, *others = epochs
    best = read_state(output_dir / f"{first}epoch.pth")
    floats = {k: v.double() for k, v in best.items() if v.is_floating_point()}
    for epoch in others:
        state = read_state(output_dir / f"{epoch}epoch.pth")
        for name, total in floats.items():
            total += state[name]
    means = {k: (v / len(epochs)).to(best[k].dtype) for k, v in floats.items()}
    return best | means


class CheckedTrainer(Trainer):
    """Trains as ESPnet does; a kill or a full disk leaves no half-written file.

    ESPnet writes ``checkpoint.pth`` in place and the epoch's model after it: a
    training that ended between the two, or within one, could not go on.
    """

    @classmethod
    def run(cls, *args: Any, trainer_options: TrainerOptions, **kwargs: Any) -> None:
        """Train; a file that is read and not what was written is a ``RecipeError``."""
        with _checked_files():
            super().run(*args, trainer_options=trainer_options, **kwargs)
        # Of models that ESPnet removed.
        for path in Path(trainer_options.output_dir).glob(f"*epoch.pth{SUFFIX}"):
            if not path.with_suffix("").exists():
                path.unlink()


@contextmanager
def _checked_files() -> Iterator[None]:
    """Let ``torch.save`` and ``torch.load`` of a path keep checksums.

    ESPnet's trainer is one function that calls them by name.
    """
    save, load = torch.save, torch.load
    held: list[tuple[Any, Path]] = []

    def save_checked(state: Any, path: Any) -> None:
        held.append((state, Path(path)))
        if Path(path).name == LATEST:
            # Last, so that it never counts an epoch whose model is not there.
            return
        while held:
            state, path = held.pop()
            with checked_file(path) as stream:
                save(state, stream)

    def load_checked(path: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(path, str | Path):
            check_file(path)
        return load(path, *args, **kwargs)

    torch.save, torch.load = save_checked, load_checked
    try:
        yield
    finally:
        torch.save, torch.load = save, load
