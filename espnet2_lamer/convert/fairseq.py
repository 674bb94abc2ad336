"""HuBERT checkpoints of fairseq (``.pt``), without fairseq or omegaconf.

The configuration that fairseq pickles with the weights comes in three forms: an
``argparse.Namespace`` (``args``), omegaconf's nodes, and plain dicts.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchaudio.models import Wav2Vec2Model

from espnet2_lamer.convert.architecture import ARGUMENTS, PLAIN
from espnet2_lamer.convert.inert_pickle import Inert, load_inert
from espnet2_lamer.convert.state import fill_hubert, replace_prefix
from espnet2_lamer.errors import RecipeError

MASK_EMBEDDING = "mask_emb"
# Masked prediction, which is trained anew for other units.
HEAD = re.compile(r"(final_proj|target_glu)\..+|label_embs_concat")
# A convolution block is [conv, dropout, norm, GELU]; a LayerNorm, which Large has in
# place of the GroupNorm, sits between two transposes.
CONV = re.compile(r"feature_extractor\.conv_layers\.(\d+)\.(0|2|2\.1)\.(weight|bias)")
CONV_PARTS = {"0": "conv", "2": "layer_norm", "2.1": "layer_norm"}
LAYER = re.compile(r"encoder\.layers\.(\d+)\.([a-z_0-9]+)\.(.+)")
LAYER_PARTS = {
    "self_attn": "attention",
    "self_attn_layer_norm": "layer_norm",
    "fc1": "feed_forward.intermediate_dense",
    "fc2": "feed_forward.output_dense",
}
PREFIXES = {
    "post_extract_proj.": "encoder.feature_projection.projection.",
    "layer_norm.": "encoder.feature_projection.layer_norm.",
    "encoder.pos_conv.0.": "encoder.transformer.pos_conv_embed.conv.",
    "encoder.layer_norm.": "encoder.transformer.layer_norm.",
}
EXTRACTOR_MODES = {"default": "group_norm", "layer_norm": "layer_norm"}
# What newer versions let one choose, and the choice that is HuBERT.
FIXED = {"activation_fn": "gelu", "layer_type": "transformer"}
MAX_LAYERS = 100
FINE_TUNED = (
    "found a fine-tuned model, expected a pretrained HuBERT; give the checkpoint that "
    "it was fine-tuned from"
)


def torchaudio_name(key: str) -> str | None:
    """Translate a parameter's name; ``None`` for the masked-prediction head."""
    if HEAD.fullmatch(key):
        return None
    if match := CONV.fullmatch(key):
        layer, part, name = match.groups()
        return f"feature_extractor.conv_layers.{layer}.{CONV_PARTS[part]}.{name}"
    if match := LAYER.fullmatch(key):
        layer, part, name = match.groups()
        part = LAYER_PARTS.get(part, part)
        return f"encoder.transformer.layers.{layer}.{part}.{name}"
    return replace_prefix(key, PREFIXES.items())


def fields(node: Any) -> dict[str, Any] | None:
    """Children of a configuration node in any of the three forms, or ``None``."""
    if isinstance(node, Inert):
        node = node.state
        if isinstance(node, dict) and "_content" in node:
            node = node["_content"]
    return node if isinstance(node, dict) else None


def leaf(node: Any) -> Any:
    """Value of a configuration node: omegaconf's ``_val``, an enum's value."""
    if isinstance(node, Inert) and isinstance(node.state, dict):
        node = node.state.get("_val", node)
    if isinstance(node, Inert) and node.args:
        # Enum(value), or getattr(Enum, name): fairseq's names are the values.
        node = node.args[-1]
    return node


@dataclass
class Section:
    """One group of settings, and its name for error messages."""

    name: str
    values: dict[str, Any]

    def get(self, key: str, kind: type) -> Any:
        """Return a required value of this kind, or refuse."""
        if key not in self.values:
            raise RecipeError(f"{self.name}.{key}: missing, expected {kind.__name__}")
        value = leaf(self.values[key])
        if type(value) is not kind:
            found = type(value).__name__ if isinstance(value, Inert) else repr(value)
            raise RecipeError(
                f"{self.name}.{key}: found {found}, expected {kind.__name__}"
            )
        return value


def find_sections(state: Any, path: Path) -> tuple[Section, Section, str]:
    """Find the settings of model and task in a checkpoint, and the key of its weights.

    Raises:
        RecipeError: It is not a checkpoint of fairseq, nor of S3PRL's converter.
    """
    if not isinstance(state, dict):
        state = {}
    if "model_weight" in state:  # plain dicts, as s3prl.upstream.hubert.convert writes
        names = ("model_cfg", "task_cfg")
        nodes = [state.get(name) for name in names]
        weights = "model_weight"
    elif state.get("args") is not None:
        names = ("args", "args")
        nodes = [state["args"]] * 2
        weights = "model"
    else:
        cfg = fields(state.get("cfg")) or {}
        names = ("cfg.model", "cfg.task")
        nodes = [cfg.get("model"), cfg.get("task")]
        weights = "model"
    if weights not in state or not isinstance(state[weights], dict):
        raise RecipeError(
            f"{path}: found the keys {sorted(map(str, state))}, expected a fairseq "
            "checkpoint: 'model' with the weights, and 'cfg' or 'args'; "
            "for a .pth of ESPnet give its experiment directory"
        )
    sections = []
    for name, node in zip(names, nodes, strict=True):
        values = fields(node)
        if values is None:
            raise RecipeError(
                f"{path}: {name}: found {type(node).__name__}, expected the settings "
                "of a fairseq model"
            )
        sections.append(Section(f"{path}: {name}", values))
    return sections[0], sections[1], weights


def hubert_architecture(model: Section, task: Section) -> dict[str, Any]:
    """Translate fairseq's settings.

    Raises:
        RecipeError: Another kind of model, or a setting is missing or of another kind.
    """
    kind = leaf(model.values.get("_name", model.values.get("arch", "hubert")))
    if "w2v_path" in model.values or kind in ("hubert_ctc", "hubert_seq2seq"):
        raise RecipeError(f"{model.name}: {FINE_TUNED}")
    if kind not in (None, "hubert"):
        raise RecipeError(f"{model.name}: found {kind!r}, expected 'hubert'")
    for key, expected in FIXED.items():
        found = leaf(model.values.get(key, expected))
        if found != expected:
            raise RecipeError(
                f"{model.name}.{key}: found {found!r}, expected {expected!r}"
            )
    mode = model.get("extractor_mode", str)
    if mode not in EXTRACTOR_MODES:
        raise RecipeError(
            f"{model.name}.extractor_mode: found {mode!r}, expected one of "
            f"{list(EXTRACTOR_MODES)}"
        )
    expression = model.get("conv_feature_layers", str)
    try:
        layers = evaluate_layers(expression)
    except ValueError as error:
        raise RecipeError(
            f"{model.name}.conv_feature_layers: found {expression!r}, expected a list "
            f"such as '[(512,10,5)] + [(512,3,2)] * 4' ({error})"
        ) from error
    architecture: dict[str, Any] = {
        "extractor_mode": EXTRACTOR_MODES[mode],
        "extractor_conv_layer_config": layers,
        "normalize_waveform": task.get("normalize", bool),
    }
    for key in PLAIN:
        argument = ARGUMENTS[key]
        architecture[key] = model.get(argument.fairseq, type(argument.default))
    return architecture


def evaluate_layers(expression: str) -> list[list[int]]:
    """Evaluate ``conv_feature_layers``: lists, tuples, ``+`` and ``*``.

    Raises:
        ValueError: The value is anything but a list of [channels, kernel, stride].
    """
    if len(expression) > 1000:
        raise ValueError("longer than 1000 characters")
    try:
        layers = _evaluate(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)) from error
    for layer in layers if isinstance(layers, list) else [None]:
        whole = isinstance(layer, list) and all(type(n) is int for n in layer)
        if not whole or len(layer) != 3 or min(layer) < 1:
            raise ValueError("a layer is (channels, kernel, stride)")
    return layers


def _evaluate(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        return [_evaluate(element) for element in node.elts]
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left), _evaluate(node.right)
        if isinstance(node.op, ast.Mult) and isinstance(left, int):
            left, right = right, left
        kinds = (type(node.op), type(left), type(right))
        if kinds == (ast.Add, list, list):
            return left + right
        if kinds == (ast.Mult, list, int):
            if len(left) * right > MAX_LAYERS:
                raise ValueError(f"more than {MAX_LAYERS} layers")
            return left * right
    raise ValueError(f"no {type(node).__name__} allowed")


def _read(path: Path, tensors: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    state = load_inert(path, tensors)
    model, task, key = find_sections(state, path)
    weights = state[key]
    # A fine-tuned model holds the pretrained one's configuration and network inside.
    if any("w2v_model." in str(name) for name in weights):
        raise RecipeError(f"{path}: {FINE_TUNED}")
    return hubert_architecture(model, task), weights


def read_architecture(path: Path) -> dict[str, Any]:
    """Translate the configuration in the file; weights are not read."""
    return _read(path, tensors=False)[0]


def load(path: Path) -> Wav2Vec2Model:
    """Load a pretrained HuBERT; every tensor outside of its head must match.

    Besides fairseq's own files this reads those of S3PRL's converter. Fine-tuned models
    are refused.
    """
    architecture, weights = _read(path, tensors=True)
    return fill_hubert(architecture, weights, torchaudio_name, MASK_EMBEDDING, path)


def weights_file(path: Path) -> Path:
    """The file whose SHA-256 identifies the checkpoint."""
    return path
