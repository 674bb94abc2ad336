"""Checkpoints of fairseq and its relatives (``.pt``), without fairseq or omegaconf.

HuBERT, wav2vec 2.0 and data2vec-audio are fairseq's; WavLM's file has the same tensors
beside a flat mapping of settings, fairseq2's (:mod:`.fairseq2`) has no settings.

The configuration that fairseq pickles with the weights comes in three forms: an
``argparse.Namespace`` (``args``), omegaconf's nodes, and plain dicts.
"""

import ast
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet2_lamer.convert import fairseq2
from espnet2_lamer.convert.architecture import ARGUMENTS, DROPOUTS, PLAIN
from espnet2_lamer.convert.families import ADDED, FAMILIES
from espnet2_lamer.convert.inert_pickle import Inert, load_inert
from espnet2_lamer.errors import RecipeError

MASK_EMBEDDING = "mask_emb"
_BLOCK = r"encoder\.layers\.(\d+)\."
_RELATIVE = r"encoder.transformer.layers.\1.attention."
NAMES = (
    # Masked prediction, which is trained anew for other units, and contrastive loss.
    (
        r"(final_proj|target_glu|quantizer|project_q)\.|label_embs_concat$",
        None,
    ),
    *fairseq2.NAMES,
    # A convolution block is [conv, dropout, norm, GELU]; a LayerNorm, which Large has
    # in place of the GroupNorm, sits between two transposes.
    (r"(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"(feature_extractor\.conv_layers\.\d+)\.2\.(1\.)?", r"\1.layer_norm."),
    (r"post_extract_proj\.", "encoder.feature_projection.projection."),
    (r"layer_norm\.", "encoder.feature_projection.layer_norm."),
    (
        r"encoder\.pos_conv\.(\d+)\.0\.",
        r"encoder.transformer.pos_conv_embed.layers.\1.conv.",
    ),
    (r"encoder\.pos_conv\.0\.", "encoder.transformer.pos_conv_embed.conv."),
    (rf"{_BLOCK}self_attn\.grep_linear\.", rf"{_RELATIVE}gru_rel_pos_linear."),
    (rf"{_BLOCK}self_attn\.grep_a$", rf"{_RELATIVE}gru_rel_pos_const"),
    (rf"{_BLOCK}self_attn\.relative_attention_bias\.", rf"{_RELATIVE}rel_attn_embed."),
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
# A mapping among the tensors: data2vec's teacher, an average of the network's weights.
EMA = "_ema"
FINE_TUNED = (
    "found a fine-tuned model, expected a pretrained HuBERT or its like; give the "
    "checkpoint that it was fine-tuned from"
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
        if "encoder_layers" in cfg:  # WavLM's: one mapping for all
            cfg = {"model": cfg, "task": cfg}
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
    names = {f.fairseq: name for name, f in FAMILIES.items() if f.fairseq}
    if kind not in (None, *names):
        expected = ", ".join(map(repr, names))
        raise RecipeError(f"{model.name}: found {kind!r}, expected one of {expected}")
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
    family = names.get(kind, ADDED["family"])
    relative = leaf(model.values.get("relative_position_embedding", False))
    more: dict[str, Any] = {}
    if relative:
        if not leaf(model.values.get("gru_rel_pos", False)):
            raise RecipeError(
                f"{model.name}.gru_rel_pos: found False, expected True, as in WavLM"
            )
        family = "wavlm"
        more["encoder_num_buckets"] = model.get("num_buckets", int)
        more["encoder_max_distance"] = model.get("max_distance", int)
    if family != ADDED["family"]:
        more["family"] = family
    depth = leaf(model.values.get("pos_conv_depth", 1))
    kernel = {}
    if type(depth) is int and depth > 1:
        more["encoder_pos_conv_depth"] = depth
        # fairseq divides one kernel among the convolutions of the stack.
        total = model.get(ARGUMENTS["encoder_pos_conv_kernel"].fairseq, int)
        kernel["encoder_pos_conv_kernel"] = max(3, total // depth)
    return {
        "extractor_mode": EXTRACTOR_MODES[mode],
        "extractor_conv_layer_config": layers,
        "normalize_waveform": task.get("normalize", bool),
        **{key: model.get(a.fairseq, type(a.default)) for key, a in plain.items()},
        **kernel,
        **more,
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
    state = load_inert(path, tensors)
    settings = isinstance(state, dict) and (state.get("cfg") or state.get("args"))
    if not settings and (weights := fairseq2.weights_of(state)) is not None:
        return fairseq2.architecture_of(weights, path), weights
    model, task, weights = _find(state, path)
    # A fine-tuned model holds the pretrained one's configuration and network inside.
    if any("w2v_model." in str(name) for name in weights):
        raise RecipeError(f"{path}: {FINE_TUNED}")
    return hubert_architecture(model, task), weights


def read_architecture(path: Path) -> dict[str, Any]:
    """Translate the configuration in the file; weights are not read."""
    return _read(path, tensors=False)[0]


def read_dropouts(path: Path) -> dict[str, Any]:
    """Return the dropouts of the training by the configuration in the file.

    fairseq2 writes none: there are none then.
    """
    state = load_inert(path, False)
    if not (isinstance(state, dict) and (state.get("cfg") or state.get("args"))):
        return dict.fromkeys(DROPOUTS, 0.0)
    values = _find(state, path)[0].values
    return {key: leaf(values.get(ARGUMENTS[key].fairseq, 0.0)) for key in DROPOUTS}


def read_weights(path: Path) -> dict[str, Any]:
    """Return the tensors of a pretrained model of fairseq or of S3PRL's converter."""
    weights = _read(path, tensors=True)[1]
    if EMA in weights:
        logging.info("%s: left out, data2vec's averaged teacher: %s", path, EMA)
    return {name: value for name, value in weights.items() if name != EMA}


def weights_file(path: Path) -> Path:
    """The file whose SHA-256 identifies the checkpoint."""
    return path
