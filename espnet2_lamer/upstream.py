"""``load_model``: a trained model as a frozen feature extractor with L + 1 states."""

import re
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from espnet2_lamer.asr.upstream import S3prlUpstream, Upstream
from espnet2_lamer.convert import load_hubert
from espnet2_lamer.convert.espnet_experiment import CONFIG, STOCK, read_config
from espnet2_lamer.convert.packed import unpack_model
from espnet2_lamer.convert.state import read_state
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.foreign import parse_yaml
from espnet2_lamer.fileio.trust import S3PRL_PREFIX, protect, trusting_s3prl_files
from espnet2_lamer.tasks.pretrained import (
    as_upstream,
    load_adapter,
    load_experiment,
    restore_pretraining_model,
)


def load_model(
    source: str | Path, base: str | Path | None = None, trust_s3prl_files: bool = False
) -> nn.Module:
    """Load a trained model for feature extraction.

    Args:
        source: An experiment directory of ``hubert_train`` (``config.yaml`` and its
            best model), one of its ``.pth`` files, a packed zip, an adapter file
            (``.safetensors``), a plain HuBERT: anything that
            :func:`espnet2_lamer.convert.load_hubert` takes, or ``s3prl:NAME``
            (``s3prl:NAME:FILE`` where the upstream wants a path or URL).
        base: Where the frozen base is now; default is ``encoder_conf.base``, for an
            adapter file the name in it; a base that is named in a file is looked for
            on this machine only.
        trust_s3prl_files: Let S3PRL read FILE, which runs code that it may hold.

    Returns:
        An ``Upstream``, or for ``s3prl:`` an ``S3prlUpstream`` with the same interface.

    Raises:
        RecipeError: Not found, damaged, or not the base it was trained on.
    """
    protect()
    if str(source).startswith(S3PRL_PREFIX):
        with trusting_s3prl_files(trust_s3prl_files):
            return S3prlUpstream(str(source))
    path = Path(source)
    if path.is_file() and path.suffix == ".zip":
        return _load_zip(path, base)
    if path.is_file() and path.suffix == ".safetensors":
        return as_upstream(load_adapter(path, base))
    if path.suffix == ".pth" and path.is_file() and (path.parent / CONFIG).is_file():
        return load_experiment(path.parent, base, path.name)
    if (path / CONFIG).is_file() and read_config(path).get("encoder") != STOCK:
        return load_experiment(path, base)
    return Upstream(load_hubert(source))


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
