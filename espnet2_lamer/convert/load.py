"""``load_hubert``: one entry for every checkpoint format."""

import re
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from torchaudio.models import Wav2Vec2Model

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.foreign import clear_errors

CONFIG_FILES = ["*.json"]
WEIGHT_FILES = ["*.safetensors", "pytorch_model.bin"]
_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# Files that look like a checkpoint and are not one, and what to do.
NOT_ALONE = {
    ".bin": "found a file of a Hugging Face directory, give the directory",
    ".safetensors": "found a file of a Hugging Face directory, give the directory",
    ".yaml": "found a file of an ESPnet experiment, give the directory",
    ".zip": "found a packed model, load it with espnet2_lamer.load_model",
}


def local_directory(
    source: str | Path, weights: bool = True, fetch: bool = True
) -> Path:
    """Return the local directory of a Hugging Face checkpoint, fetching an id once.

    Args:
        source: Directory or id.
        weights: Without, only the configuration of an id is fetched.
        fetch: Without, an id is looked for in Hugging Face's cache only.

    Raises:
        RecipeError: Neither a directory nor an id that can be fetched.
    """
    path = Path(source)
    if path.is_dir():
        return path
    name = str(source)
    if not _ID.fullmatch(name):
        raise RecipeError(
            f"{source}: no such directory; expected a Hugging Face HuBERT directory "
            "(config.json, model.safetensors) or an id such as "
            "facebook/hubert-large-ll60k, a torchaudio bundle such as HUBERT_LARGE, a "
            "fairseq .pt file, or an ESPnet experiment directory (config.yaml)"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=CONFIG_FILES + (WEIGHT_FILES if weights else []),
                local_files_only=not fetch,
            )
        )
    except Exception as error:
        raise RecipeError(
            f"{source}: neither a local directory nor a model that could be fetched "
            f"({error})"
        ) from error


def _locate(
    source: str | Path, weights: bool = True, fetch: bool = True
) -> tuple[ModuleType | SimpleNamespace, Any]:
    """Return the module that reads this format and where it finds the checkpoint.

    Each of them has ``read_architecture``, ``load`` and ``weights_file``.
    """
    from espnet2_lamer.convert import (
        espnet_experiment,
        fairseq,
        huggingface,
        torchaudio_bundle,
    )

    name, path = str(source), Path(source)
    bundle = name.removeprefix(torchaudio_bundle.PREFIX)
    if bundle != name or (
        not path.exists() and re.fullmatch("HUBERT_[A-Z0-9_]+", name)
    ):
        if weights and not fetch:
            torchaudio_bundle.require_cached(bundle)
        return torchaudio_bundle, bundle
    if path.is_file():
        if path.suffix in NOT_ALONE:
            raise RecipeError(f"{source}: {NOT_ALONE[path.suffix]}")
        return fairseq, path
    directory = local_directory(source, weights, fetch)
    if (directory / "config.json").is_file():
        return huggingface, directory
    if (directory / espnet_experiment.CONFIG).is_file():
        return SimpleNamespace(
            read_architecture=partial(
                espnet_experiment.read_architecture, of_base=_named_base
            ),
            load=partial(espnet_experiment.load, of_base=_named_base),
            weights_file=espnet_experiment.weights_file,
        ), directory
    raise RecipeError(
        f"{directory}: no config.json; expected a Hugging Face HuBERT directory, or an "
        f"ESPnet experiment with {espnet_experiment.CONFIG}"
    )


def load_hubert(source: str | Path) -> Wav2Vec2Model:
    """Load a HuBERT as a torchaudio model in eval mode, without dropout.

    Nothing that a checkpoint holds is run.

    Args:
        source: Hugging Face directory or id; torchaudio bundle (``HUBERT_LARGE`` or
            ``torchaudio:HUBERT_LARGE``); fairseq ``.pt`` file, fairseq itself not
            needed; or ESPnet experiment directory of a plain HuBERT
            (``torchaudio_hubert``, or ``lamer_hubert`` without experts).

    Returns:
        A ``Wav2Vec2Model`` that normalises waveforms itself where the checkpoint asks
        for it, with ``architecture``, ``normalize_waveform``, ``extractor_mode`` and
        ``mask_embedding`` (``[D]`` or ``None``) as attributes.

    Raises:
        RecipeError: Not found, damaged, or keys that do not match.
    """
    reader, where = _locate(source)
    with clear_errors(source):
        return reader.load(where).eval()


def read_architecture(source: str | Path, fetch: bool = True) -> dict[str, Any]:
    """Describe a checkpoint's network without loading weights, as a dry run needs.

    Args:
        source: As for :func:`load_hubert`; only an id's configuration is fetched.
        fetch: Without, not even that.

    Returns:
        Arguments of :func:`espnet2_lamer.convert.architecture.build_hubert`.

    Raises:
        RecipeError: Not found, damaged, or not a HuBERT.
    """
    reader, where = _locate(source, weights=False, fetch=fetch)
    with clear_errors(source):
        return reader.read_architecture(where)


def _named_base(name: str) -> dict[str, Any]:
    """Describe the base that an experiment names; it decides no fetching."""
    return read_architecture(name, fetch=False)


def source_sha256(source: str | Path) -> str:
    """SHA-256 of the weights file behind ``source``: its identity in metadata."""
    from espnet2_lamer.fileio.hashing import sha256_file

    reader, where = _locate(source)
    return sha256_file(reader.weights_file(where))


def local_source(source: str | Path, fetch: bool = True) -> str:
    """Return what names the same checkpoint from now on, fetching an id once.

    An id becomes the directory it was fetched to; anything else stays as it is.

    Args:
        source: As for :func:`load_hubert`.
        fetch: Without, it must be on this machine: for names that a file of others
            gives.

    Raises:
        RecipeError: Not found.
    """
    from espnet2_lamer.convert import huggingface

    reader, where = _locate(source, fetch=fetch)
    return str(where if reader is huggingface else source)
