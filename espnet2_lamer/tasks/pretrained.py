"""A pretraining's model, rebuilt from its experiment or from an adapter file."""

import argparse
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espnet2_lamer.asr.encoder.lamer_hubert import BASE_HASH, GUARD, LamerHubertEncoder
from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.convert.architecture import STRUCTURE
from espnet2_lamer.convert.espnet_experiment import (
    MASK_EMBEDDING,
    OURS,
    model_file,
    read_config,
)
from espnet2_lamer.convert.families import ADDED
from espnet2_lamer.convert.load import (
    can_be_fetched,
    is_hub_id,
    local_source,
    read_architecture,
    source_sha256,
    tensors_sha256,
)
from espnet2_lamer.convert.state import check_finite, check_fit, read_state
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.foreign import clear_errors
from espnet2_lamer.layers.config import check_values

MAX_CLASSES = 2**20
ADAPTER_SUFFIX = ".safetensors"
FORMAT = 1
# The only entry of the file's own metadata, so that equal input gives equal bytes:
# safetensors writes several in any order.
METADATA = "espnet2_lamer"
CENTROIDS = "codebook.centroids"


def checked_config(config: Mapping[str, Any], source: object) -> dict[str, Any]:
    """Return a copy of a pretraining's ``config.yaml`` whose outer form is right.

    Raises:
        RecipeError: It is of another model, or a value is of the wrong kind.
    """
    classes, tokens = config.get("num_classes"), config.get("token_list")
    encoder, outer, inner = map(config.get, ("encoder", "encoder_conf", "model_conf"))
    enough = isinstance(classes, int) and 0 < classes <= MAX_CLASSES
    table = [
        ("encoder", encoder, encoder == OURS, repr(OURS)),
        ("encoder_conf", outer, isinstance(outer, dict), "a mapping"),
        ("model_conf", inner, isinstance(inner, dict), "a mapping"),
        # A name would be read as a file.
        ("token_list", tokens, isinstance(tokens, list), "the list of units"),
        ("num_classes", classes, enough, f"1 to {MAX_CLASSES} units"),
    ]
    check_values(f"{source}: ", *table)
    return deepcopy(dict(config)) | {"encoder": OURS, "model": "lamer"}


def _check_sizes(
    config: Mapping[str, Any], state: Mapping[str, Tensor], source: object
) -> None:
    """Compare the tensors that a :func:`checked_config` describes with the weights.

    The model is built without memory for its values, so a size that is wrong in the
    config costs nothing. The base's tensors may be among the weights or not.
    """
    conf = dict(config["encoder_conf"])
    base = conf.pop("base", None)
    if base is not None:
        try:
            conf |= read_architecture(base)
        except RecipeError:
            return  # building fails at the base, and says so best
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        encoder = LamerHubertEncoder(num_classes=config["num_classes"], **conf)
    planned = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    trained = {
        f"encoder.{key}" for key, p in encoder.named_parameters() if p.requires_grad
    }
    # A base brings its own mask embedding; else it is one that trains.
    expected = {
        key: value
        for key, value in planned.items()
        if key in state or key in trained - {MASK_EMBEDDING}
    }
    if isinstance(guard := state.get(f"encoder.{GUARD}"), Tensor) and not guard.numel():
        expected.pop(f"encoder.{GUARD}", None)
    found = {key: state[key] for key in expected if key in state}
    if missing := sorted(expected.keys() - found.keys()):
        raise RecipeError(
            f"{source}: the checkpoint lacks {len(missing)} tensors of the encoder, "
            f"e.g. {missing[0]}; encoder_conf is not the one it was trained with"
        )
    for key, value in found.items():
        if value.dtype != planned[key].dtype or value.layout is not torch.strided:
            raise RecipeError(
                f"{source}: {key}: found {value.dtype} ({value.layout}) in the "
                f"weights, expected {planned[key].dtype}"
            )
    check_fit(expected, found, source)


def load_pretraining_model(
    experiment: Path, base: str | Path | None = None, epoch_file: str | None = None
):
    """Rebuild the whole ESPnet model (head included) of a pretraining experiment.

    ``base`` overrides ``encoder_conf.base``; the weights are those of ``epoch_file``,
    by default of its best model. It is a ``LamerHubertPretrainModel`` in eval mode.

    Raises:
        RecipeError: The config is not of this kind, or weights do not fit.
    """
    source = experiment / "config.yaml"
    config = checked_config(read_config(experiment), source)
    weights = model_file(experiment, config, epoch_file)
    return restore_pretraining_model(config, read_state(weights), base, source)


def _base_here(named: Any, source: Path) -> str:
    """Find the base that a config names; it does not decide that one is fetched."""
    try:
        return local_source(named, fetch=False)
    except RecipeError as error:
        raise RecipeError(
            f"{source}: encoder_conf.base: {error}. Name the base's new place, or its "
            "id to fetch it: the argument base of espnet2_lamer.load_model, --base of "
            "commands; a file does not decide what is fetched"
        ) from error


def restore_pretraining_model(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    base: str | Path | None,
    source: Path,
):
    """Build the ESPnet model that a ``config.yaml`` describes, and fill it.

    Nothing is allocated before the config's sizes are known to be those of the
    weights. ``base`` overrides ``encoder_conf.base``, messages name ``source``; the
    model is in eval mode.

    Raises:
        RecipeError: As :func:`load_pretraining_model`.
    """
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    config = checked_config(config, source)
    conf = config["encoder_conf"]
    if base is not None or conf.get("base") is not None:
        # The base decides, and did when earlier versions trained beside other values.
        for key in ("normalize_waveform", *STRUCTURE, *ADDED):
            conf.pop(key, None)
    with clear_errors(source):
        if base is not None:
            conf["base"] = str(base)
        elif conf.get("base") is not None:
            conf["base"] = _base_here(conf["base"], source)
        _check_sizes(config, state, source)
        check_finite(state, source)
        model = LamerHubertTask.build_model(argparse.Namespace(**config))
        model.load_state_dict(dict(state))
        model.languages = trained_languages(config)
    return model.eval()


def trained_languages(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the languages that a training saw, as its config says; older ones do not.

    ``langs`` are those of its data, ``exclude_langs`` were left out.
    """
    langs, excluded = (config.get(key) or [] for key in ("langs", "exclude_langs"))
    for key, value in (("langs", langs), ("exclude_langs", excluded)):
        right = isinstance(value, list) and all(isinstance(x, str) for x in value)
        check_values("", (key, value, right, "a list of ISO 639-3 codes"))
    return tuple(sorted({*langs} - {*excluded}))


def load_experiment(
    experiment: Path, base: str | Path | None = None, epoch_file: str | None = None
) -> Upstream:
    """Load the encoder of a pretraining experiment as an :class:`Upstream`."""
    return as_upstream(load_pretraining_model(experiment, base, epoch_file))


def as_upstream(model: nn.Module) -> Upstream:
    """Keep a pretraining model's encoder alone, as a frozen extractor."""
    encoder = model.encoder
    lamer = encoder.lamer
    if lamer is not None:
        lamer = asdict(lamer) | {"targets": list(lamer.targets)}
    # transformers keeps it with the backbone.
    mask = encoder.hubert_pretrain_model.mask_generator.mask_embedding
    encoder.wav2vec2.mask_embedding = mask.detach()
    upstream = Upstream(encoder.wav2vec2, lamer, encoder.final_norm)
    upstream.languages = getattr(model, "languages", ())
    return upstream


@dataclass(frozen=True)
class Adapter:
    """Content of an adapter file.

    Tensors are experts, routers, head and persistent buffers under their names in the
    ESPnet model, and the codebook's centroids ``[K, D]`` if they are there; metadata
    ``base`` (``name``, ``sha256`` of its weights file, ``tensors_sha256`` (not in files
    of 0.2), ``architecture``), ``encoder_conf``, ``model_conf``, ``num_classes``,
    ``codebook``, ...
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]


def read_adapter(path: str | Path) -> Adapter:
    """Read an adapter file; raise ``RecipeError`` where it is none or damaged."""
    from safetensors import safe_open

    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{path}: file not found; expected an adapter file")
    with clear_errors(path), safe_open(path, framework="pt") as handle:
        text = (handle.metadata() or {}).get(METADATA)
        if text is None:
            raise RecipeError(
                f"{path}: found no entry {METADATA!r} in its metadata, expected an "
                "adapter file of bin.export; of a Hugging Face model give the directory"
            )
        metadata = json.loads(text)
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}
        _check_metadata(metadata, path)
        if content_digest(tensors, metadata) != metadata["sha256"]:
            raise RecipeError(
                f"{path}: its content is not what its own SHA-256 says: damaged; fetch "
                "it again"
            )
    return Adapter(tensors, metadata)


def load_adapter(
    path: str | Path, base: str | Path | None = None, fetch_base: bool = False
):
    """Return the whole ``LamerHubertPretrainModel`` of an adapter file, head included.

    The base may have any format that :func:`~espnet2_lamer.convert.load_hubert` reads;
    default is the name in the file, if that can be found on this machine. With
    ``fetch_base`` it is fetched if the name is a plain Hugging Face id, which is said;
    its weights must have the SHA-256 in the file.

    Raises:
        RecipeError: The file is damaged, or the base is another one or not found.
    """
    adapter = read_adapter(path)
    data = adapter.metadata
    config = {
        "encoder": "lamer_hubert",
        "encoder_conf": data["encoder_conf"],
        "model_conf": data["model_conf"],
        "num_classes": data["num_classes"],
        "token_list": [*map(str, range(data["num_classes"])), "<unk>", "<sos/eos>"],
        "langs": data.get("languages"),
    }
    state = {k: v for k, v in adapter.tensors.items() if k != CENTROIDS}
    where, sha256 = _find_base(adapter, base, path, fetch_base)
    digest = list(bytes.fromhex(sha256))
    state[f"encoder.{BASE_HASH}"] = torch.tensor(digest, dtype=torch.uint8)
    state[f"encoder.{GUARD}"] = torch.empty(0)
    model = restore_pretraining_model(config, state, where, Path(path))
    _check_architecture(adapter, model.encoder.architecture, path)
    return model


def content_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """SHA-256 of everything in the file but itself; safetensors has no checksum."""
    rest = {key: value for key, value in metadata.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _check_metadata(metadata: Any, path: Path) -> None:
    found = metadata if isinstance(metadata, dict) else {}
    if found.get("format") != FORMAT:
        raise RecipeError(
            f"{path}: format: found {found.get('format')!r}, expected {FORMAT}; a "
            "later version of this package may read it"
        )
    base, conf = found.get("base"), found.get("encoder_conf")
    right = {
        "sha256": isinstance(found.get("sha256"), str),
        "base": isinstance(base, dict)
        and isinstance(base.get("name"), str)
        and isinstance(base.get("architecture"), dict)
        and re.fullmatch("[0-9a-f]{64}", str(base.get("sha256"))),
        "num_classes": isinstance(classes := found.get("num_classes"), int)
        and 0 < classes <= MAX_CLASSES,
        "encoder_conf": isinstance(conf, dict)
        and isinstance(conf.get("lamer"), dict)
        and isinstance(conf.get("final_norm"), bool),
        "model_conf": isinstance(found.get("model_conf"), dict),
    }
    expected = "what bin.export writes; fetch the file again"
    table = [(key, found.get(key), good, expected) for key, good in right.items()]
    check_values(f"{path}: ", *table)


def _find_base(
    adapter: Adapter, base: str | Path | None, path: str | Path, fetch: bool
) -> tuple[str, str]:
    """Return the base, and the SHA-256 of its file; its tensors are the right ones."""
    expected = adapter.metadata["base"]
    name, how = expected["name"], "give it: load_model(adapter, base=...)"
    if base is None and not can_be_fetched(name):
        raise RecipeError(
            f"{path}: its base {name!r} (SHA-256 {expected['sha256']}) is not a public "
            f"name; {how}"
        )
    where = str(base)
    if base is None:
        try:
            # Whoever made the file must not decide what is fetched.
            where = local_source(name, fetch=False)
        except RecipeError as error:
            if not (fetch and is_hub_id(name)):
                raise RecipeError(
                    f"{path}: its base {name!r} is not found here ({error}); {how}, "
                    "also to fetch it by that name"
                ) from error
            logging.warning(
                "%s: its base is %s, fetched once from the Hugging Face Hub because "
                "the adapter names it; its weights are compared with the SHA-256 in "
                "the adapter, and read as data",
                *(path, name),
            )
            where = local_source(name)
    found = source_sha256(where)
    if found == expected["sha256"]:
        return where, found
    tensors = expected.get("tensors_sha256")
    if tensors is not None and tensors_sha256(where) == tensors:
        logging.info("%s: another file than in training, the same tensors", where)
        return where, found
    known = (
        "give that base"
        if tensors
        else (
            "give that base, the same file: what its tensors were, this adapter of an "
            "earlier version does not say"
        )
    )
    raise RecipeError(
        f"{where}: SHA-256 of its weights is {found}, but {path} was trained on "
        f"{name!r} with {expected['sha256']}; {known}"
    )


def _check_architecture(
    adapter: Adapter, found: Mapping[str, Any], path: str | Path
) -> None:
    """The hash covers the weights; what a config beside them says counts, too."""
    expected = adapter.metadata["base"]["architecture"]
    found = json.loads(json.dumps(found))
    for key in sorted({*expected, *found}):
        if expected.get(key) != found.get(key):
            raise RecipeError(
                f"{path}: {key} of the base: found {found.get(key)!r}, expected "
                f"{expected.get(key)!r} as in training; restore the base's config"
            )
