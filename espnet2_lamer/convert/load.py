"""``load_hubert``: one entry for every checkpoint format, and what names one."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torchaudio.models import Wav2Vec2Model

from espnet2_lamer.compat import before_espnet, patch_torchaudio_for_s3prl
from espnet2_lamer.convert import (
    espnet_experiment,
    fairseq,
    huggingface,
    torchaudio_bundle,
)
from espnet2_lamer.convert.state import fill_hubert
from espnet2_lamer.errors import RecipeError, short_reason
from espnet2_lamer.fileio.foreign import clear_errors
from espnet2_lamer.fileio.hashing import sha256_file, sha256_tensors, sha256_value
from espnet2_lamer.fileio.trust import protect, split_s3prl

_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_BUNDLE = re.compile(f"({re.escape(torchaudio_bundle.PREFIX)})?HUBERT_[A-Z0-9_]+")
# Where huggingface_hub keeps what it fetched.
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")
# Files that look like a checkpoint and are not one, and what to do.
NOT_ALONE = {
    ".bin": "found a file of a Hugging Face directory, give the directory",
    ".safetensors": "found a file of a Hugging Face directory, give the directory",
    ".yaml": "found a file of an ESPnet experiment, give the directory",
    ".zip": "found a packed model, load it with espnet2_lamer.load_model",
}


def _local_directory(source: str | Path, weights: bool, fetch: bool) -> Path:
    """Return the local directory of a Hugging Face checkpoint, fetching an id once."""
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

    files = ["*.json", *(["*.safetensors", "pytorch_model*.bin"] if weights else [])]
    try:
        found = snapshot_download(
            name, allow_patterns=files, local_files_only=not fetch
        )
        return Path(found)
    except Exception as error:
        raise RecipeError(
            f"{source}: neither a local directory nor a model that could be fetched "
            f"({error})"
        ) from error


def _locate(
    source: str | Path, weights: bool = True, fetch: bool = True
) -> tuple[ModuleType, Any]:
    """Return the module that reads this format and where it finds the checkpoint.

    Each of them has ``read_architecture``, ``read_dropouts``, ``read_weights``,
    ``weights_file``, a table ``NAMES`` from its names to torchaudio's, and
    ``MASK_EMBEDDING``, a name in it.
    """
    name, path = str(source), Path(source)
    bundle = name.removeprefix(torchaudio_bundle.PREFIX)
    if bundle != name or (_BUNDLE.fullmatch(name) and not path.exists()):
        if weights and not fetch:
            torchaudio_bundle.weights_file(bundle, fetch=False)
        return torchaudio_bundle, bundle
    if path.is_file():
        if path.suffix in NOT_ALONE:
            raise RecipeError(f"{source}: {NOT_ALONE[path.suffix]}")
        return fairseq, path
    directory = _local_directory(source, weights, fetch)
    if (directory / "config.json").is_file():
        return huggingface, directory
    if (directory / espnet_experiment.CONFIG).is_file():
        return espnet_experiment, directory
    raise RecipeError(
        f"{directory}: no config.json; expected a Hugging Face HuBERT directory, or an "
        f"ESPnet experiment with {espnet_experiment.CONFIG}"
    )


def load_hubert(
    source: str | Path, dropouts: Mapping[str, float] | None = None
) -> Wav2Vec2Model:
    """Load a HuBERT as a torchaudio model in eval mode.

    Nothing that a checkpoint holds is run.

    Args:
        source: Hugging Face directory or id; torchaudio bundle (``HUBERT_LARGE`` or
            ``torchaudio:HUBERT_LARGE``); fairseq ``.pt`` file, fairseq itself not
            needed; or ESPnet experiment directory of a plain HuBERT
            (``torchaudio_hubert``, or ``lamer_hubert`` without experts).
        dropouts: Dropouts and layer drop of a training by torchaudio's names, which no
            checkpoint decides; without, there are none.

    Returns:
        A ``Wav2Vec2Model`` that normalises waveforms itself where the checkpoint asks
        for it, with ``architecture``, ``normalize_waveform``, ``extractor_mode`` and
        ``mask_embedding`` (``[D]`` or ``None``) as attributes.

    Raises:
        RecipeError: Not found, damaged, or keys that do not match.
    """
    reader, where = _locate(source)
    with clear_errors(source):
        model = fill_hubert(
            _describe(reader, where) | dict(dropouts or {}),
            reader.read_weights(where),
            reader.NAMES,
            reader.MASK_EMBEDDING,
            reader.weights_file(where),
        )
        return model.eval()


def read_architecture(source: str | Path, fetch: bool = True) -> dict[str, Any]:
    """Describe a checkpoint's network for ``build_hubert``, without loading weights.

    Only an id's configuration is fetched; without ``fetch`` not even that.
    """
    reader, where = _locate(source, weights=False, fetch=fetch)
    with clear_errors(source):
        return _describe(reader, where)


def read_dropouts(source: str | Path) -> dict[str, float]:
    """Return what a checkpoint's training dropped, by its configuration.

    By the names of :data:`~espnet2_lamer.convert.architecture.DROPOUTS`: layer drop is
    no part of it.

    Raises:
        RecipeError: Not found, or a value that is no probability.
    """
    reader, where = _locate(source, weights=False)
    with clear_errors(source):
        found = reader.read_dropouts(where)
    for key, value in found.items():
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise RecipeError(
                f"{source}: {key}: found {value!r}, expected a probability below 1"
            )
    return {key: float(value) for key, value in found.items()}


def _describe(reader: ModuleType, where: Any) -> dict[str, Any]:
    architecture = reader.read_architecture(where)
    if "base" not in architecture:
        return architecture
    try:
        # An experiment may name its base; it decides no fetching.
        return read_architecture(architecture["base"], fetch=False)
    except RecipeError as error:
        path = where / espnet_experiment.CONFIG
        raise RecipeError(f"{path}: encoder_conf.base: {error}") from error


def source_sha256(source: str | Path) -> str:
    """SHA-256 of the weights behind ``source``: its identity in metadata.

    It is the file's, of a model in several files that of their SHA-256s.
    """
    reader, where = _locate(source)
    path = reader.weights_file(where)
    if not path.name.endswith(huggingface.INDEX):
        return sha256_file(path)
    return sha256_value([*map(sha256_file, huggingface.weights_files(path))])


def tensors_sha256(source: str | Path) -> str:
    """SHA-256 of a checkpoint's tensors, whatever the file they are in."""
    model = load_hubert(source)
    mask = {} if model.mask_embedding is None else {"mask": model.mask_embedding}
    return sha256_tensors(model.state_dict() | mask)


def local_source(source: str | Path, fetch: bool = True) -> str:
    """Return the directory that an id is fetched to, once; other sources as they are.

    Without ``fetch`` it must be on this machine: for names that a file of others gives.
    """
    reader, where = _locate(source, fetch=fetch)
    return str(where if reader is huggingface else source)


def can_be_fetched(name: str) -> bool:
    """Whether a name may be a Hugging Face id or a torchaudio bundle.

    Names come from files of others: nothing else may decide what is read here.
    """
    return is_hub_id(name) or bool(_BUNDLE.fullmatch(name))


def is_hub_id(name: str) -> bool:
    """Whether a name is a plain Hugging Face id, ``user/repo``."""
    return bool(_ID.fullmatch(name))


def public_name(source: str) -> str:
    """Name a checkpoint without the directories of this machine.

    Public names (Hugging Face id, torchaudio bundle, ``s3prl:NAME``) stay, a directory
    in Hugging Face's cache gets its id, any other path its last part.
    """
    if source.startswith("s3prl:") or can_be_fetched(source):
        return source
    if cached := _CACHED.search(source):
        return "/".join(cached.groups())
    return source.rstrip("/").rpartition("/")[2]


def load_s3prl(source: str) -> Any:
    """Build an ``s3prl.nn.S3PRLUpstream`` of ``s3prl:NAME``.

    ``s3prl:NAME:FILE`` needs :func:`~espnet2_lamer.fileio.trust.trusting_s3prl_files`.
    """
    name, file = split_s3prl(source)
    protect()
    before_espnet()
    patch_torchaudio_for_s3prl()
    from s3prl.nn import S3PRLUpstream

    if name not in S3PRLUpstream.available_names():
        raise RecipeError(
            f"upstream {source!r}: S3PRL has no upstream {name!r}; s3prl.hub lists all"
        )
    # A head and its upstream must not share random numbers.
    with torch.random.fork_rng(devices=[]):
        try:
            return S3PRLUpstream(name, *file)
        except Exception as error:  # every upstream fails in its own way
            raise RecipeError(
                f"upstream {source!r}: S3PRL cannot load it ({short_reason(error)})"
            ) from error
