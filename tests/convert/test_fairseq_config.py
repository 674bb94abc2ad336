"""fairseq's settings: layers written as an expression, and refusals that name a key."""

import pytest

from espnet2_lamer.convert import load_hubert
from espnet2_lamer.convert.fairseq import evaluate_layers
from espnet2_lamer.errors import RecipeError


@pytest.mark.parametrize(
    "expression",
    [
        "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
        "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
        "[(8,3,2)]",
        " 2 * [(8, 3, 2), (8, 2, 2)] ",
        "([(8, 3, 2)] + [[8, 2, 2]]) * 3",
    ],
)
def test_an_expression_has_the_value_that_python_gives_it(expression):
    expected = [list(layer) for layer in eval(expression)]
    assert evaluate_layers(expression) == expected


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "[(8, 3, 2) for _ in range(3)]",
        "[(8, 3, x)]",
        "[(8, 3)]",
        "[(8, 3, 0)]",
        "[(8, 3, 2.0)]",
        "[(8, 3, True)]",
        "(8, 3, 2)",
        "7",
        "[(8, 3, -2)]",
        "[(8, 3, 2)] ** 2",
        "[(8, 3, 2)] * [2]",
        "[(8, 3, 2)] + 2",
        "[(8, 3, 2)] * 1000000000",
        "[(8, 3, 2)] * 99 * 99",
        "[(8, 3, 2)",
        "???",
        "",
        "[" * 400 + "]" * 400,
        "[" * 900,
        "[(8,3,2)]" + "+[(8,3,2)]" * 200,
    ],
)
def test_anything_but_a_short_list_of_layers_is_refused(expression):
    with pytest.raises(ValueError):
        evaluate_layers(expression)


def model(**changes):
    return lambda state: state["cfg"]["model"].update(changes)


def remove(section, key):
    return lambda state: state["cfg"][section].pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("model", "conv_pos"), "cfg.model.conv_pos: missing, expected int"),
        (remove("task", "normalize"), "cfg.task.normalize: missing, expected bool"),
        (model(encoder_layers="3"), "cfg.model.encoder_layers: found '3', expected in"),
        (model(encoder_layers=True), "encoder_layers: found True, expected int"),
        (
            model(encoder_embed_dim="${task.dim}"),
            r"encoder_embed_dim: found '\$\{task.dim\}', expected int",
        ),
        (model(conv_bias=0), "cfg.model.conv_bias: found 0, expected bool"),
        (
            model(extractor_mode="batch_norm"),
            r"extractor_mode: found 'batch_norm', expected one of \['default', 'layer",
        ),
        (
            model(conv_feature_layers="open('x')"),
            r"conv_feature_layers: found \"open\('x'\)\", expected a list such as",
        ),
        (
            model(activation_fn="relu"),
            "cfg.model.activation_fn: found 'relu', expected 'gelu'",
        ),
        (
            model(layer_type="conformer"),
            "layer_type: found 'conformer', expected 'transformer'",
        ),
        (
            model(_name="wav2vec"),
            "cfg.model: found 'wav2vec', expected one of 'hubert'",
        ),
        (model(encoder_attention_heads=3), "no HuBERT can be built with .* 3"),
        (lambda state: state.pop("cfg"), "cfg.model: found NoneType, expected the set"),
        (
            lambda state: state["cfg"].pop("task"),
            "cfg.task: found NoneType, expected the settings",
        ),
        (
            lambda state: state.pop("model"),
            r"found the keys \['args', 'cfg', .*expected a fairseq checkpoint: 'model'",
        ),
    ],
)
def test_a_setting_that_is_missing_or_wrong_is_named(
    fairseq_model, write_fairseq, change, message
):
    path = write_fairseq(fairseq_model(), "dict", change=change)
    with pytest.raises(RecipeError, match=f"hubert.pt: .*{message}"):
        load_hubert(path)


def test_a_namespace_is_named_args(fairseq_model, write_fairseq):
    def change(state):
        del state["args"].encoder_layers

    path = write_fairseq(fairseq_model(), "namespace", change=change)
    with pytest.raises(RecipeError, match="args.encoder_layers: missing, expected int"):
        load_hubert(path)
