"""ESPnet's own trainer, with files that appear whole and carry their checksum."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from espnet2.train.trainer import Trainer, TrainerOptions

from espnet2_lamer.fileio.checksum import SUFFIX, check_file, checked_file
from espnet2_lamer.train.checkpoint import LATEST


class CheckedTrainer(Trainer):
    """Trains as ESPnet does; a kill or a full disk leaves no half-written file.

    ESPnet writes ``checkpoint.pth`` in place and the epoch's model after it: a
    training that ended between the two, or within one, could not go on.
    """

    @classmethod
    def run(cls, *args: Any, trainer_options: TrainerOptions, **kwargs: Any) -> None:
        """Train.

        Raises:
            RecipeError: A file that is read is not what was written.
            OSError: A file cannot be written.
        """
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

    def write(state: Any, path: Path) -> None:
        with checked_file(path) as stream:
            save(state, stream)

    def save_checked(state: Any, path: Any) -> None:
        path = Path(path)
        if path.name == LATEST:
            # Last, so that it never counts an epoch whose model is not there.
            held.append((state, path))
            return
        write(state, path)
        while held:
            write(*held.pop())

    def load_checked(path: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(path, str | Path):
            check_file(path)
        return load(path, *args, **kwargs)

    torch.save, torch.load = save_checked, load_checked
    try:
        yield
    finally:
        torch.save, torch.load = save, load
