"""Model zips of the ESPnet model zoo: what they may ask for, checked, then unpacked.

Building a model from a config, ESPnet fetches and opens what its parts ask for: S3PRL
upstreams, Hugging Face and fairseq models, Whisper by name, statistics, token lists. A
packed model is another's file, so only parts that are known to read nothing are let
through, and files only where they are members of the zip.
"""

import logging
import zipfile
from collections.abc import Container, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import yaml

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.archive import COMPLETE, META, check_zip
from espnet2_lamer.fileio.atomic import write_text
from espnet2_lamer.fileio.checksum import changed_files, checksums
from espnet2_lamer.fileio.foreign import (
    check_weights,
    clear_errors,
    parse_yaml,
    replace_texts,
)
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.fileio.locks import exclusive
from espnet2_lamer.fileio.system import check_space
from espnet2_lamer.fileio.trust import protect

# What meta.yaml may name: the config of which task, and weights.
_CONFIGS = {
    "asr_train_config": "asr",
    "ssl_train_config": "ssl",
    "lm_train_config": "lm",
}
_WEIGHTS = ("asr_model_file", "ssl_model_file", "lm_file")
# Where one machine kept its training files; building and using a model needs none.
TRAINING_KEYS = (
    "config output_dir init_param monitor_control expand_from train_shape_file "
    "train_data_path_and_name_and_type valid_data_path_and_name_and_type "
    "valid_shape_file rir_scp noise_scp non_linguistic_symbols feature_cache_dir"
).split()


def _none_or(words: str) -> tuple[str | None, ...]:
    return (None, *words.split())


_COMMON: dict[str, tuple[Any, ...]] = {
    "specaug": (None, "specaug"),
    "normalize": (None, "utterance_mvn", "global_mvn"),
    # LoRA of ESPnet's own; it looks its targets up by evaluating text.
    "use_adapter": (None, False),
    "use_lora": (None, False),
}
# Per task and key of the config: the names of ESPnet 202511 and ours whose classes
# open nothing but what _FILES lists. Keys that are not here choose no class.
_PARTS: dict[str, dict[str, tuple[Any, ...]]] = {
    "asr": _COMMON
    | {
        "frontend": _none_or("default sliding_window wav2vec_cnn lamer_upstream"),
        "preencoder": _none_or("sinc linear"),
        "encoder": _none_or(
            "conformer transformer transformer_multispkr contextual_block_transformer "
            "contextual_block_conformer vgg_rnn rnn branchformer e_branchformer "
            "multiconv_conformer torchaudiohubert whisper_lora"
        ),
        "postencoder": _none_or("length_adaptor"),
        "decoder": _none_or(
            "transformer lightweight_conv lightweight_conv2d dynamic_conv "
            "dynamic_conv2d rnn transducer mlm s4 linear_decoder whisper_lora"
        ),
        "model": (None, "espnet", "maskctc", "pit_espnet", "whisper_lora"),
        "preprocessor": (None, "default", "multi"),
        # The others fetch a tokenizer or a dictionary by name.
        "token_type": _none_or("bpe char word whisper_en whisper_multilingual"),
    },
    "ssl": _COMMON
    | {
        "frontend": (None, "default", "sliding_window"),
        "preencoder": (None, "sinc"),
        "encoder": ("lamer_hubert", "torchaudio_hubert"),
        "model": ("lamer", "torchaudio"),
    },
    "lm": {
        "lm": ("seq_rnn", "transformer"),
        "model": (None, "lm", "lm_multitask"),
        "token_type": (None, "bpe", "char", "word"),
    },
}
# Keys that name a checkpoint, and where our classes would read or write.
_NULL = (
    ("encoder_conf", "base"),
    ("encoder_conf", "whisper"),
    ("decoder_conf", "whisper"),
    ("frontend_conf", "upstream"),
    ("model_conf", "experts"),
    ("model_conf", "teacher_cache"),
)
# Keys whose value is a file; ESPnet's own Whisper vocabularies are names.
_FILES = ("token_list", "bpemodel")
_NAMES = ("whisper_en", "whisper_multilingual")


def unpack_model(archive: str | Path, cachedir: str | Path) -> dict[str, str]:
    """Check a zip of the model zoo and unpack it below ``cachedir``, once per content.

    What the zip holds decides nothing else: ESPnet's loaders find in the returned files
    only parts that fetch, open and run nothing, and weights without pickled objects.
    ``ModelDownloader`` keys its cache by the archive's path, so that a zip packed anew
    under the same name loads the old model; here the key is the content.

    Returns:
        Paths by ESPnet's argument names: ``asr_train_config``, ``asr_model_file`` ...

    Raises:
        RecipeError: As :func:`~espnet2_lamer.fileio.archive.check_zip` and
            :func:`check_packed_config`, or the weights hold more than tensors.
    """
    protect()
    meta = check_zip(archive)
    for key, known in (("yaml_files", _CONFIGS), ("files", _WEIGHTS)):
        for option in meta[key]:
            if option not in known:
                # ESPnet's classes would get it as another argument than a model's.
                raise RecipeError(
                    f"{archive}: {META}: {key}: found {option!r}, expected some of "
                    f"{', '.join(known)}"
                )
    # Absolute: ESPnet writes these paths into the unpacked config.
    target = Path(cachedir).absolute() / sha256_file(archive)[:16]
    complete = target / COMPLETE
    with exclusive(target):
        changed = changed_files(target, complete) if complete.is_file() else None
        if changed:
            logging.warning(
                "%s: damaged since it was unpacked; unpacked again", changed[0]
            )
        if changed is None or changed:
            complete.unlink(missing_ok=True)
            with clear_errors(archive):
                _extract(archive, target, meta)
            for name in set(meta["files"].values()):
                try:
                    check_state_dict(target / name)
                except RecipeError as error:
                    reason = str(error).removeprefix(f"{target / name}: ")
                    raise RecipeError(f"{archive}: {name}: {reason}") from error
            write_text(complete, checksums(target))
    entries = {**meta["yaml_files"], **meta["files"]}
    return {option: str(target / name) for option, name in entries.items()}


def _extract(path: str | Path, target: Path, meta: Mapping[str, Any]) -> None:
    """Unpack as ESPnet's ``unpack`` does, but only settings that all users may have.

    In the YAML files that ``meta.yaml`` names, every string that is the name of a
    member becomes the path of the unpacked file. Keys that name training files are
    emptied: loading a model needs none of them, a training that starts from the config
    would read them.
    """
    with zipfile.ZipFile(path) as archive:
        needed = sum(info.file_size for info in archive.infolist())
        check_space(target, needed, "unpacked files", "name another folder")
        files = {PurePosixPath(name): str(target / name) for name in archive.namelist()}
        for name in archive.namelist():
            options = [key for key, m in meta["yaml_files"].items() if m == name]
            if not options:
                archive.extract(name, target)
                continue
            settings = parse_yaml(archive.read(name), f"{path}: {name}")
            if not isinstance(settings, dict):
                raise RecipeError(
                    f"{path}: {name}: found {type(settings).__name__}, expected a "
                    "mapping, as ESPnet writes it"
                )
            settings = replace_texts(
                settings, lambda text, _: files.get(PurePosixPath(text), text)
            )
            for option in options:
                check_packed_config(_CONFIGS[option], settings, path, {*files.values()})
            emptied = {
                key: [] if isinstance(value, list) else None
                for key, value in settings.items()
                if key in TRAINING_KEYS and value
            }
            if emptied:
                logging.info("%s: left out of the config: %s", path, ", ".join(emptied))
            write_text(target / name, yaml.safe_dump({**settings, **emptied}))


def check_state_dict(model_file: Path) -> None:
    """Refuse a file that holds anything but a state dict of tensors."""
    state = check_weights(model_file)
    if not isinstance(state, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in state.values()
    ):
        raise RecipeError(
            f"{model_file}: expected a state dict of tensors; pack a model file, not a "
            "training checkpoint"
        )


def check_packed_config(
    task: str, config: Mapping[str, Any], source: object, members: Container[str]
) -> None:
    """Refuse a config that makes ESPnet fetch, open or run more than its own zip.

    ``task`` is ``"asr"``, ``"ssl"`` or ``"lm"``; ``members`` name files of the zip.

    Raises:
        RecipeError: With the key, what was found and what is expected.
    """
    for key, allowed in _PARTS[task].items():
        found = config.get(key)
        # Not "in": 0 and False are equal, and a list is no key.
        if not any(type(found) is type(name) and found == name for name in allowed):
            names = ", ".join("null" if x is None else str(x) for x in allowed)
            why = ""
            if found == "stored_features":
                why = ", which reads features from disk; pack the final model"
            raise RecipeError(
                f"{source}: {key}: found {_short(found)}{why}; expected one of {names}:"
                " parts of a packed model that read no other file"
            )
    for section, key in _NULL:
        value = _section(config, section, source).get(key)
        if value is not None and value != {}:
            raise RecipeError(
                f"{source}: {section}.{key}: found {_short(value)}, expected null: the "
                "model would load another checkpoint; a packed model is self-contained"
            )
    upstream = _section(config, "frontend_conf", source).get("upstream_conf")
    if upstream is not None and not (
        isinstance(upstream, Mapping) and "s3prl" not in upstream
    ):
        raise RecipeError(
            f"{source}: frontend_conf.upstream_conf: found {_short(upstream)}, "
            "expected the architecture of one of this package's models: an S3PRL "
            "upstream is built by S3PRL, which fetches it"
        )
    for key in _FILES:
        value = config.get(key)
        if key == "token_list" and isinstance(value, list):
            continue
        known = isinstance(value, str) and (value in _NAMES or value in members)
        if value is not None and not known:
            raise _outside(source, key, value)

    def check(text: str, key: str) -> None:
        """What constructors get: their texts are names of methods, never places."""
        a_place = text.startswith(("~", ".", "s3prl:")) or "/" in text
        a_symbol = text.startswith("<")  # such as </s>
        of_a_file = key == "normalize_conf.stats_file"
        if text not in members and (of_a_file or (a_place and not a_symbol)):
            raise _outside(source, key, text)

    replace_texts({k: v for k, v in config.items() if k.endswith("_conf")}, check)


def _section(config: Mapping[str, Any], key: str, source: object) -> Mapping[str, Any]:
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RecipeError(f"{source}: {key}: found {_short(value)}, expected a mapping")
    return value


def _outside(source: object, key: str, value: Any) -> RecipeError:
    return RecipeError(
        f"{source}: {key}: found {_short(value)}, expected null or a file of the zip: "
        "a packed model reads nothing else"
    )


def _short(value: Any) -> str:
    return repr(value)[:80]
