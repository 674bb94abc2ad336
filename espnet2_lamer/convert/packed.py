"""Model zips of the ESPnet model zoo: checked, then unpacked."""

import logging
from collections.abc import Container, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from espnet2_lamer.convert.packed_config import check_packed_config, without_training
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.archive import COMPLETE, META, check_zip, extract_zip
from espnet2_lamer.fileio.atomic import write_text
from espnet2_lamer.fileio.checksum import changed_files, checksums
from espnet2_lamer.fileio.foreign import check_weights
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.fileio.trust import protect

# What meta.yaml may name: the config of which task, and weights.
_CONFIGS = {
    "asr_train_config": "asr",
    "ssl_train_config": "ssl",
    "lm_train_config": "lm",
}
_WEIGHTS = ("asr_model_file", "ssl_model_file", "lm_file")


def unpack_model(archive: str | Path, cachedir: str | Path) -> dict[str, str]:
    """Check a model zip and unpack it below ``cachedir``, once per content.

    What the zip holds decides nothing else: ESPnet's loaders find in the returned
    files only parts that fetch, open and run nothing, and weights without pickled
    objects.

    ``ModelDownloader`` keys its cache by the archive's path, so that a zip packed
    anew under the same name loads the old model; here the key is the content.

    Args:
        archive: A zip that :func:`pack_model` or ``espnet2.bin.pack`` wrote.
        cachedir: Directory for unpacked models.

    Returns:
        Paths by ESPnet's argument names, e.g. ``asr_train_config``,
        ``asr_model_file``.

    Raises:
        RecipeError: As :func:`~espnet2_lamer.fileio.archive.check_zip` and
            :func:`~espnet2_lamer.convert.packed_config.check_packed_config`, or the
            weights hold more than tensors.
    """
    from filelock import FileLock

    protect()
    meta = check_zip(archive)
    _check_entries(archive, meta)
    # Absolute: ESPnet writes these paths into the unpacked config.
    target = Path(cachedir).absolute() / sha256_file(archive)[:16]
    target.parent.mkdir(parents=True, exist_ok=True)
    complete = target / COMPLETE
    with FileLock(f"{target}.lock"):
        changed = changed_files(target, complete) if complete.is_file() else None
        if changed:
            logging.warning(
                "%s: damaged since it was unpacked; unpacked again", changed[0]
            )
        if changed is None or changed:
            complete.unlink(missing_ok=True)
            extract_zip(archive, target, meta, partial(_checked, archive, meta))
            _check_weights(archive, target, meta)
            write_text(complete, checksums(target))
    entries = {**meta["yaml_files"], **meta["files"]}
    return {option: str(target / name) for option, name in entries.items()}


def _check_entries(archive: str | Path, meta: Mapping[str, Any]) -> None:
    """Refuse what ESPnet's classes would get as other arguments than a model's."""
    for key, known in (("yaml_files", _CONFIGS), ("files", _WEIGHTS)):
        for option in meta[key]:
            if option not in known:
                raise RecipeError(
                    f"{archive}: {META}: {key}: found {option!r}, expected some of "
                    f"{', '.join(known)}"
                )


def _checked(
    archive: str | Path,
    meta: Mapping[str, Any],
    name: str,
    settings: dict[str, Any],
    members: Container[str],
) -> dict[str, Any]:
    """Return a member's settings for unpacking, if all tasks that use it may."""
    for option, member in meta["yaml_files"].items():
        if member == name:
            check_packed_config(_CONFIGS[option], settings, archive, members)
    return without_training(settings, archive)


def _check_weights(archive: str | Path, target: Path, meta: Mapping[str, Any]) -> None:
    for name in set(meta["files"].values()):
        try:
            check_state_dict(target / name)
        except RecipeError as error:
            reason = str(error).removeprefix(f"{target / name}: ")
            raise RecipeError(f"{archive}: {name}: {reason}") from error


def check_state_dict(model_file: Path) -> None:
    """Refuse a file that holds anything but a state dict of tensors."""
    import torch

    state = check_weights(model_file)
    if not isinstance(state, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in state.values()
    ):
        raise RecipeError(
            f"{model_file}: expected a state dict of tensors; pack a model file, not a "
            "training checkpoint"
        )
