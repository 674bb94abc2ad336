"""HuBERT checkpoints of fairseq (``.pt``), without fairseq or omegaconf.

The configuration that fairseq pickles with the weights comes in three forms: an
``argparse.Namespace`` (``args``), omegaconf's nodes, and plain dicts.
"""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet2_lamer.convert.architecture import ARGUMENTS, PLAIN
from espnet2_lamer.convert.inert_pickle import Inert, load_inert
from espnet2_lamer.errors import RecipeError

MASK_EMBEDDING = "mask_emb"
_BLOCK = r"encoder\.layers\.(\d+)\."
NAMES = (
    # Masked prediction, which is trained anew for other units.
    (r"(final_proj|target_glu)\.|label_embs_concat$", None),
    # A convolution block is [conv, dropout, norm, GELU]; a LayerNorm, which Large has
    # in place of the GroupNorm, sits between two transposes.
    (r"(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"(feature_extractor\.conv_layers\.\d+)\.2\.(1\.)?", r"\1.layer_norm."),
    (r"post_extract_proj\.", "encoder.feature_projection.projection."),
    (r"layer_norm\.", "encoder.feature_projection.layer_norm."),
    (r"encoder\.pos_conv\.0\.", "encoder.transformer.pos_conv_embed.conv."),
    (rf"{_BLOCK}self_attn\.", r"encoder.transformer.layers.\1.attention."),
    (rf"{_BLOCK}self_attn_layer_norm\.", r"encoder.transformer.layers.\1.layer_norm."),
    (
        rf"{_BLOCK}fc1\.",
        r"encoder.transformer.layers.\1.feed_forward.intermediate_dense.",
    ),
    (rf"{_BLOCK}fc2\.", r"encoder.transformer.layers.\1.feed_forward.output_dense."),
    (r"encoder\.", "encoder.transformer."),
)
EXTRACTOR_MODES = {"default": "group_norm", "layer_norm": "layer_norm"}
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


def _find(state: Any, path: Path) -> tuple[Section, Section, dict[str, Any]]:
    """Find the settings of model and task in a checkpoint, and its weights."""
    state = state if isinstance(state, dict) else {}
    weights = state.get("model")
    if "model_weight" in state:  # plain dicts, as s3prl.upstream.hubert.convert writes
        weights = state["model_weight"]
        nodes = [(name, state.get(name)) for name in ("model_cfg", "task_cfg")]
    elif state.get("args") is not None:
        nodes = [("args", state["args"])] * 2
    else:
        cfg = fields(state.get("cfg")) or {}
        nodes = [(f"cfg.{name}", cfg.get(name)) for name in ("model", "task")]
    if not isinstance(weights, dict):
        raise RecipeError(
            f"{path}: found the keys {sorted(map(str, state))}, expected a fairseq "
            "checkpoint: 'model' with the weights, and 'cfg' or 'args'; "
            "for a .pth of ESPnet give its experiment directory"
        )
    sections = []
    for name, node in nodes:
        values = fields(node)
        if values is None:
            raise RecipeError(
                f"{path}: {name}: found {type(node).__name__}, expected the settings "
                "of a fairseq model"
            )
        sections.append(Section(f"{path}: {name}", values))
    return *sections, weights


def hubert_architecture(model: Section, task: Section) -> dict[str, Any]:
    """Translate fairseq's settings; those of another kind of model are refused."""
    kind = leaf(model.values.get("_name", model.values.get("arch", "hubert")))
    if "w2v_path" in model.values or kind in ("hubert_ctc", "hubert_seq2seq"):
        raise RecipeError(f"{model.name}: {FINE_TUNED}")
    if kind not in (None, "hubert"):
        raise RecipeError(f"{model.name}: found {kind!r}, expected 'hubert'")
    # What newer versions let one choose, and the choice that is HuBERT.
    for key, expected in (
        ("activation_fn", "gelu"),
        ("layer_type", "transformer"),
        ("conv_pos_batch_norm", False),
    ):
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
    plain = {key: ARGUMENTS[key] for key in PLAIN}
    return {
        "extractor_mode": EXTRACTOR_MODES[mode],
        "extractor_conv_layer_config": layers,
        "normalize_waveform": task.get("normalize", bool),
        **{key: model.get(a.fairseq, type(a.default)) for key, a in plain.items()},
    }


def evaluate_layers(expression: str) -> list[list[int]]:
    """Evaluate ``conv_feature_layers``: lists, tuples, ``+`` and ``*``.

    Raises:
        ValueError: It is anything but a list of [channels, kernel, stride].
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
    model, task, weights = _find(load_inert(path, tensors), path)
    # A fine-tuned model holds the pretrained one's configuration and network inside.
    if any("w2v_model." in str(name) for name in weights):
        raise RecipeError(f"{path}: {FINE_TUNED}")
    return hubert_architecture(model, task), weights


def read_architecture(path: Path) -> dict[str, Any]:
    """Translate the configuration in the file; weights are not read."""
    return _read(path, tensors=False)[0]


def read_weights(path: Path) -> dict[str, Any]:
    """Return the tensors of a pretrained HuBERT of fairseq or of S3PRL's converter."""
    return _read(path, tensors=True)[1]


def weights_file(path: Path) -> Path:
    """The file whose SHA-256 identifies the checkpoint."""
    return path
