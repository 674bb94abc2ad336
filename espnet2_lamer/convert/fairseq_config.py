"""HuBERT's architecture from the configuration that fairseq pickles with the weights.

It comes in three forms, all read here without fairseq or omegaconf: an
``argparse.Namespace`` (``args``), omegaconf's nodes, and plain dicts.
"""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet2_lamer.convert.inert_pickle import Inert
from espnet2_lamer.errors import RecipeError

# fairseq's HubertConfig -> torchaudio's factory arguments.
NUMBERS = {
    "encoder_layers": "encoder_num_layers",
    "encoder_embed_dim": "encoder_embed_dim",
    "encoder_ffn_embed_dim": "encoder_ff_interm_features",
    "encoder_attention_heads": "encoder_num_heads",
    "conv_pos": "encoder_pos_conv_kernel",
    "conv_pos_groups": "encoder_pos_conv_groups",
}
SWITCHES = {
    "conv_bias": "extractor_conv_bias",
    "layer_norm_first": "encoder_layer_norm_first",
}
EXTRACTOR_MODES = {"default": "group_norm", "layer_norm": "layer_norm"}
# What newer versions let one choose, and the choice that is HuBERT.
FIXED = {"activation_fn": "gelu", "layer_type": "transformer"}
MAX_LAYERS = 100
FINE_TUNED = (
    "found a fine-tuned model, expected a pretrained HuBERT; give the checkpoint that "
    "it was fine-tuned from"
)


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
        """Return a required value.

        Raises:
            RecipeError: It is missing or not of this kind.
        """
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
    """Find the settings of model and task, and the key of the weights.

    Args:
        state: What a checkpoint holds.
        path: For error messages.

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
    architecture = {
        "extractor_mode": EXTRACTOR_MODES[mode],
        "extractor_conv_layer_config": _conv_layers(model),
        "normalize_waveform": task.get("normalize", bool),
    }
    architecture |= {ours: model.get(key, int) for key, ours in NUMBERS.items()}
    architecture |= {ours: model.get(key, bool) for key, ours in SWITCHES.items()}
    return architecture


def _conv_layers(model: Section) -> list[list[int]]:
    expression = model.get("conv_feature_layers", str)
    try:
        return evaluate_layers(expression)
    except ValueError as error:
        raise RecipeError(
            f"{model.name}.conv_feature_layers: found {expression!r}, expected a list "
            f"such as '[(512,10,5)] + [(512,3,2)] * 4' ({error})"
        ) from error


def evaluate_layers(expression: str) -> list[list[int]]:
    """Evaluate fairseq's ``conv_feature_layers``: lists, tuples, ``+`` and ``*``.

    Returns:
        ``[[channels, kernel, stride], ...]``.

    Raises:
        ValueError: Anything else.
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
