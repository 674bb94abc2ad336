"""ESPnet model zoo: one self-contained zip per trained model."""

import os
import platform
from collections.abc import Container, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import espnet
import torch
import yaml

from espnet2_lamer import __version__
from espnet2_lamer.convert.espnet_experiment import read_config
from espnet2_lamer.convert.packed import (
    TRAINING_KEYS,
    check_packed_config,
    check_state_dict,
)
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.archive import META, write_archive
from espnet2_lamer.fileio.atomic import write_text
from espnet2_lamer.fileio.checksum import checked_file, checksum_line, sidecar
from espnet2_lamer.fileio.foreign import read_yaml, replace_texts
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.tasks.pretrained import load_pretraining_model


def write_full_model(
    experiment: Path,
    output_dir: str | Path,
    *,
    epoch_file: str | None = None,
    base: str | Path | None = None,
    leave_out: Container[str] = (),
) -> tuple[Path, Path]:
    """Write ``config.yaml`` and ``model.pth`` of a pretraining that need no base.

    An experiment's epoch files hold what was trained and the base's hash only. Here the
    base's tensors join them, and ``encoder_conf`` describes the architecture instead of
    naming the base, which must be the one that the experiment was trained on.

    Args:
        experiment: Its directory.
        output_dir: Where the two go; their paths are returned.
        epoch_file: Weights of the experiment; default is its best model.
        base: Where the base is now; default is ``encoder_conf.base``.
        leave_out: Keys of the config that are not written.
    """
    model = load_pretraining_model(experiment, base, epoch_file)
    model.encoder.write_base = True
    read = read_config(experiment)
    settings = {key: value for key, value in read.items() if key not in leave_out}
    conf = settings["encoder_conf"]
    settings["encoder_conf"] = conf | model.encoder.architecture | {"base": None}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return write_model(output_dir, text, model.state_dict())


def write_full_whisper(
    config: str | Path, checkpoint: str | Path | None, output_dir: str | Path
) -> tuple[Path, Path]:
    """Write config and weights that need neither Whisper's file nor the experts'.

    An experiment's epoch files hold what was added and the hash of Whisper's file
    only. Here Whisper's tensors join them, and a student's teachers are left out.
    Without a ``checkpoint`` the model is packed as built. The paths of ``config.yaml``
    and ``model.pth`` in ``output_dir`` are returned.
    """
    from espnet2_lamer.tasks.asr import load_whisper_model
    from espnet2_lamer.whisper.lora import remove_lora
    from espnet2_lamer.whisper.text import token_list

    model = load_whisper_model(config, checkpoint)
    settings = read_yaml(config)
    lora = dict(settings["encoder_conf"].get("lora") or {"method": "frozen"})
    lora.pop("train_language", None)
    if model.config.method == "student":
        for teacher in model.config.languages:
            remove_lora(model, teacher)
        model.decoder.new_tokens.clear()
        lora |= {"languages": [], "language_tokens": {}}
    for half in (model.encoder, model.decoder):
        half.drop_base_hash()
        # A copy: YAML would write an alias.
        more = {"whisper": None, "dims": half.dims, "lora": deepcopy(lora)}
        settings[f"{half.side}_conf"] |= more
    settings["token_list"] = list(token_list(model.vocab_size))
    settings["model_conf"] |= {"experts": {}, "teacher_cache": None}
    # The token list is long: libyaml takes a tenth of the time, where it is there.
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text = yaml.dump(settings, Dumper=dumper, sort_keys=False, allow_unicode=True)
    return write_model(output_dir, text, model.state_dict())


def write_model(
    output_dir: str | Path, config: str, state: Mapping[str, torch.Tensor]
) -> tuple[Path, Path]:
    """Write the text of ``config.yaml``, and ``model.pth`` with its checksum."""
    paths = Path(output_dir) / "config.yaml", Path(output_dir) / "model.pth"
    write_text(paths[0], config)
    with checked_file(paths[1]) as handle:
        # Through a handle: given a path, torch writes its name into the file.
        torch.save(state, handle)
    return paths


def pack_model(
    kind: str,
    config: str | Path,
    model_file: str | Path,
    output: str | Path,
    *,
    options: Iterable[str | Path] = (),
    card: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    lm: tuple[Path, Path] | None = None,
) -> None:
    """Pack a trained model as ``espnet2.bin.pack`` does, with no path inside.

    ``ModelDownloader(cachedir).download_and_unpack(zip)`` and ``Speech2Text`` load the
    result after ``espnet2_lamer.register()``. Against ESPnet's own function: the same
    input gives the same bytes, members lie at the top of the zip instead of below the
    current directory, and what would not load elsewhere is refused.

    Args:
        kind: ``"asr"`` (LID models are ASR models to ESPnet) or ``"ssl"``.
        config: The model's ``config.yaml``. Keys that name training files are left
            out; a value that names one of ``options`` then names the member instead,
            which ESPnet turns into the unpacked file's path.
        model_file: State dict of the whole model, loadable with ``weights_only``.
        output: The zip.
        options: More files or folders, e.g. ``RESULTS.md`` or a SentencePiece model;
            each keeps its own name.
        card: Text of ``README.md``, the model card; an option of that name wins.
        metadata: More entries for ``meta.yaml``, e.g. the codebook's hash.
        lm: Config and weights of a language model of ESPnet's LM task, which keep
            their names.

    Raises:
        RecipeError: A file is missing, two members share a name, or the config needs
            something that is not in the zip.
    """
    config, model_file, output = Path(config), Path(model_file), Path(output)
    if output.suffix != ".zip":
        raise RecipeError(f"{output}: ESPnet expects a name that ends in .zip")
    for path in (config, model_file):
        if not path.is_file():
            raise RecipeError(f"{path}: file not found; train the model first")
    extra = _option_members(options)
    settings = packed_settings(kind, config, extra)
    check_state_dict(model_file)
    meta = {
        **(metadata or {}),
        # Names as in espnet2.bin.pack: the arguments of ESPnet's inference classes.
        "files": {f"{kind}_model_file": "model.pth"},
        "yaml_files": {f"{kind}_train_config": "config.yaml"},
        "espnet2_lamer": __version__,
        "python": platform.python_version(),
        "espnet": espnet.__version__,
        "torch": str(torch.__version__),
    }
    if lm is not None:
        meta["files"]["lm_file"] = lm[1].name
        meta["yaml_files"]["lm_train_config"] = lm[0].name
    digest = checksum_line(sha256_file(model_file), "model.pth")
    members: dict[str, Path | bytes] = {
        META: _dump(meta),
        "config.yaml": _dump(settings),
        "model.pth": model_file,
        # Whoever unpacks the zip has it beside the weights.
        sidecar(Path("model.pth")).name: digest.encode(),
    }
    if lm is not None:
        lm_config, lm_weights = lm
        check_state_dict(lm_weights)
        members[lm_config.name] = _dump(packed_settings("lm", lm_config, extra))
        members[lm_weights.name] = lm_weights
    if card is not None and "README.md" not in extra:
        members["README.md"] = card.encode()
    for name, source in extra.items():
        if name in members:
            raise RecipeError(f"--option {source}: the zip has a {name} of its own")
        members[name] = source
    write_archive(output, members)


def packed_settings(
    kind: str, config: Path, extra: Mapping[str, Path]
) -> dict[str, Any]:
    """Return a config without keys of the training, its paths the names of members."""
    settings = {k: v for k, v in read_yaml(config).items() if k not in TRAINING_KEYS}
    files = {path.resolve(): name for name, path in extra.items()}
    settings = replace_texts(
        settings, lambda text, key: _member_name(text, key, config, files)
    )
    check_packed_config(kind, settings, config, extra)
    return settings


def _option_members(options: Iterable[str | Path]) -> dict[str, Path]:
    members: dict[str, Path] = {}
    for option in (Path(option).absolute() for option in options):
        if option.is_dir():
            files = sorted(path for path in option.rglob("*") if path.is_file())
        elif option.is_file():
            files = [option]
        else:
            raise RecipeError(f"--option {option}: no such file or folder")
        for path in files:
            name = path.relative_to(option.parent).as_posix()
            if name in members:
                raise RecipeError(
                    f"--option {path}: {members[name]} is called {name} too; rename one"
                )
            members[name] = path
    return members


def _member_name(value: str, key: str, config: Path, files: Mapping[Path, str]) -> str:
    """Name the member that a path of a config stands for; other texts stay."""
    roots = (Path.cwd(), config.parent)
    # Symbols may look like anything, "/" included.
    if key.startswith("token_list[") or not _names_a_path(value, roots):
        return value
    for root in roots:
        if (found := (root / value).resolve()) in files:
            return files[found]
    raise RecipeError(
        f"{config}: {key}: found the path {value!r}, which would be missing in "
        "another place; add the file with --option or set the key to null"
    )


def _names_a_path(value: str, roots: tuple[Path, ...]) -> bool:
    if not any(character.isalnum() for character in value):
        return False
    if value.startswith(("/", "~/")):
        return True
    # A word such as "valid" may also be the name of a folder nearby.
    exists = os.path.exists if "/" in value else os.path.isfile
    return any(exists(root / value) for root in roots)


def _dump(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=True, allow_unicode=True).encode()
