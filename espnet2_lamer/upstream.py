"""``load_model``: a trained model as a frozen feature extractor with L + 1 states."""

import re
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from espnet2_lamer.asr.upstream import S3prlUpstream, Upstream
from espnet2_lamer.convert import load_hubert
from espnet2_lamer.convert.espnet_experiment import CONFIG, STOCK, read_config
from espnet2_lamer.convert.hub import fetch_model
from espnet2_lamer.convert.lamer_directory import (
    holds_experts,
    languages_of,
    read_lamer_directory,
)
from espnet2_lamer.convert.load import is_hub_id
from espnet2_lamer.convert.packed import unpack_model
from espnet2_lamer.convert.state import read_state
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.archive import write_archive
from espnet2_lamer.fileio.foreign import parse_yaml
from espnet2_lamer.fileio.trust import S3PRL_PREFIX, protect, trusting_s3prl_files
from espnet2_lamer.tasks.pretrained import (
    as_upstream,
    load_adapter,
    load_experiment,
    restore_pretraining_model,
)


def load_model(
    source: str | Path,
    base: str | Path | None = None,
    trust_s3prl_files: bool = False,
    *,
    revision: str | None = None,
    file: str | None = None,
) -> nn.Module:
    """Load a trained model for feature extraction.

    Args:
        source: An experiment directory of ``hubert_train`` (``config.yaml`` and its
            best model), one of its ``.pth`` files, a packed zip, an adapter file
            (``.safetensors``), a directory of ``bin.export --kind hf``, a Hugging Face
            id ``user/repo`` with any of these, a plain HuBERT: anything that
            :func:`espnet2_lamer.convert.load_hubert` takes, or ``s3prl:NAME``
            (``s3prl:NAME:FILE`` where the upstream wants a path or URL).
        base: Where the frozen base is now; default is ``encoder_conf.base``, for an
            adapter file the name in it. A base that a file on this machine names is
            looked for on this machine only; one that an adapter from the Hub names is
            fetched from there, if its name is a plain id: a warning says so, and its
            weights must be those of the training, by their SHA-256.
        trust_s3prl_files: Let S3PRL read FILE, which runs code that it may hold.
        revision: Branch, tag or commit of a Hugging Face id.
        file: Zip or adapter file of a Hugging Face id, if it has several.

    Returns:
        An ``Upstream``, or for ``s3prl:`` an ``S3prlUpstream`` with the same interface.

    Raises:
        RecipeError: Not found, damaged, or not the base it was trained on.
    """
    protect()
    path = Path(source)
    hub = is_hub_id(str(source)) and not path.exists()
    for key, value in (("revision", revision), ("file", file)):
        if value is not None and not hub:
            raise RecipeError(
                f"{key}: found {value!r} for {str(source)!r}, which is no Hugging Face "
                "id that is to be fetched; leave it out"
            )
    if hub:
        return _load_repository(str(source), base, revision, file)
    if str(source).startswith(S3PRL_PREFIX):
        with trusting_s3prl_files(trust_s3prl_files):
            return S3prlUpstream(str(source))
    if path.is_file() and path.suffix == ".zip":
        return _load_zip(path, base)
    if path.is_file() and path.suffix == ".safetensors":
        return as_upstream(load_adapter(path, base))
    if path.suffix == ".pth" and path.is_file() and (path.parent / CONFIG).is_file():
        return load_experiment(path.parent, base, path.name)
    if (path / CONFIG).is_file() and read_config(path).get("encoder") != STOCK:
        return load_experiment(path, base)
    return _load_whole(source)


def _load_whole(source: str | Path) -> Upstream:
    """Load what has no base beside it: with experts if it is ours, a plain HuBERT."""
    path = Path(source)
    if holds_experts(path):
        upstream = Upstream(*read_lamer_directory(path))
    else:
        upstream = Upstream(load_hubert(source), checkpoint=source)
    upstream.languages = languages_of(path)
    return upstream


def _load_repository(
    repo: str, base: str | Path | None, revision: str | None, file: str | None
) -> Upstream:
    directory, choice = fetch_model(repo, revision, file)
    path = directory / choice.files[0]
    if choice.kind == "file" and path.suffix == ".safetensors":
        return as_upstream(load_adapter(path, base, fetch_base=True))
    if choice.kind == "file":
        return _load_zip(path, base)
    if choice.kind == "directory":
        return _load_whole(directory)
    with tempfile.TemporaryDirectory() as scratch:
        # The members of a zip: as a zip they meet all checks of one.
        packed = Path(scratch) / f"{repo.replace('/', '--')}.zip"
        write_archive(packed, {name: directory / name for name in choice.files})
        try:
            return _load_zip(packed, base)
        except RecipeError as error:
            raise RecipeError(str(error).replace(str(packed), repo)) from error


def _load_zip(path: Path, base: str | Path | None) -> Upstream:
    with tempfile.TemporaryDirectory() as directory:
        try:
            members = unpack_model(path, directory)
            if not {"ssl_train_config", "ssl_model_file"} <= members.keys():
                raise RecipeError(
                    f"{path}: found a zip with {sorted(members)}, expected a packed "
                    "pretraining model (ssl_train_config, ssl_model_file)"
                )
            config = parse_yaml(Path(members["ssl_train_config"]).read_bytes(), path)
            conf = config.get("encoder_conf")
            named = conf.get("base") if isinstance(conf, dict) else None
            if base is None and named is not None:
                # Whoever made the zip must not decide what else is read or fetched.
                raise RecipeError(
                    f"{path}: encoder_conf.base: found {named!r}, expected null: the "
                    "zip lacks the base; give it as the argument base, if you trust "
                    "its name"
                )
            state = read_state(Path(members["ssl_model_file"]))
            return as_upstream(restore_pretraining_model(config, state, base, path))
        except RecipeError as error:
            # Messages name files of a directory that is gone when they are read.
            text = re.sub(rf"{re.escape(directory)}/\w+", str(path), str(error))
            raise RecipeError(text) from error


def build_upstream(architecture: dict[str, Any]) -> nn.Module:
    """Build what ``architecture()`` of a loaded model described, weights to come."""
    if "s3prl" in architecture:
        return load_model(architecture["s3prl"])
    return Upstream.from_architecture(architecture)
