"""fairseq's checkpoints: equal hidden states from every form of its pickles."""

import sys

import pytest
import torch
from torch.nn import functional as F

from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.convert import load_hubert
from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.convert.inert_pickle import global_names
from espnet2_lamer.convert.load import read_architecture, source_sha256
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.hashing import sha256_file

FORMS = ["omegaconf", "namespace", "dict", "converted"]


def reference_states(model, wavs, lengths=None):
    """Input of every block and the encoder's output, after the final LayerNorm."""
    states = []

    def keep(module, inputs):
        states.append(inputs[0].transpose(0, 1))

    hooks = [layer.register_forward_pre_hook(keep) for layer in model.encoder.layers]
    padding = None
    if lengths is not None:
        padding = torch.arange(wavs.shape[1]) >= lengths[:, None]
    with torch.no_grad():
        final, _ = model.extract_features(wavs, padding_mask=padding, mask=False)
    for hook in hooks:
        hook.remove()
    # Its blocks see an even number of frames.
    return [state[:, : final.shape[1]] for state in states] + [final]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["base", "large"])
def test_every_hidden_state_equals_fairseqs_network(
    fairseq_model, write_fairseq, assert_equal_states, wavs, kind, form, legacy
):
    reference = fairseq_model(kind)
    path = write_fairseq(reference, form, legacy)
    model = load_hubert(path)
    assert not model.training
    assert model.normalize_waveform is (kind == "large")
    assert torch.equal(model.mask_embedding, reference.mask_emb.detach())
    fed = F.layer_norm(wavs, wavs.shape[-1:]) if kind == "large" else wavs
    states, _ = Upstream(model).extract_features(wavs)
    assert_equal_states(states, reference_states(reference, fed))


def test_convolutions_with_biases_are_read(
    fairseq_model, write_fairseq, assert_equal_states, wavs
):
    reference = fairseq_model("large", conv_bias=True)
    model = load_hubert(write_fairseq(reference))
    assert model.architecture["extractor_conv_bias"] is True
    states, _ = Upstream(model).extract_features(wavs)
    fed = F.layer_norm(wavs, wavs.shape[-1:])
    assert_equal_states(states, reference_states(reference, fed))


def test_valid_frames_of_a_padded_batch_equal_fairseqs(
    fairseq_model, write_fairseq, wavs
):
    reference = fairseq_model("large")
    model = load_hubert(write_fairseq(reference))
    # fairseq cuts 4000 samples into 12 frames of 333: 7 of them are 2331 samples, for
    # which the convolutions give 7 frames, too.
    lengths = torch.tensor([4000, 7 * (4000 // 12)])
    fed = torch.zeros_like(wavs)
    padded = wavs.clone()
    for row, length in enumerate(lengths.tolist()):
        fed[row, :length] = F.layer_norm(wavs[row, :length], (length,))
        padded[row, length:] = torch.nan
    expected = reference_states(reference, fed, lengths)
    states, frames = Upstream(model).extract_features(padded, lengths)
    assert frames.tolist() == [12, 7]
    for ours, theirs in zip(states, expected, strict=True):
        for row, count in enumerate(frames.tolist()):
            torch.testing.assert_close(
                ours[row, :count], theirs[row, :count], rtol=1e-5, atol=1e-5
            )


def test_neither_fairseq_nor_omegaconf_is_imported(fairseq_model, write_fairseq):
    path = write_fairseq(fairseq_model())
    with pytest.raises(ImportError):
        import omegaconf  # noqa: F401
    with pytest.raises(ImportError):
        import fairseq  # noqa: F401
    # The file does need them: torch alone refuses it, and pickle imports them.
    with pytest.raises(ImportError):
        torch.load(path, weights_only=False)
    with pytest.raises(Exception, match="Unsupported global"):
        torch.load(path, weights_only=True)
    load_hubert(path)
    assert sys.modules["fairseq"] is sys.modules["omegaconf"] is None


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_the_files_of_these_tests_hold_what_fairseqs_hold(
    fairseq_model, write_fairseq, legacy
):
    names = global_names(write_fairseq(fairseq_model(), legacy=legacy))
    assert {
        "fairseq.data.dictionary.Dictionary",
        "fairseq.dataclass.constants.Choices",
        "fairseq.models.hubert.hubert.HubertConfig",
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        "omegaconf.base.ContainerMetadata",
        "omegaconf.nodes.EnumNode",
        "typing.Any",
        "typing.Union",
        "collections.defaultdict",
        "numpy.dtype",
    } <= names
    namespace = write_fairseq(fairseq_model(), "namespace", legacy)
    assert "argparse.Namespace" in global_names(namespace)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", FORMS)
def test_the_architecture_is_known_without_the_weights(
    fairseq_model, write_fairseq, form, legacy
):
    path = write_fairseq(fairseq_model(), form, legacy)
    architecture = read_architecture(path)
    model = load_hubert(path)
    assert build_hubert(architecture).architecture == model.architecture
    with torch.device("meta"):
        dry = build_hubert(architecture).state_dict()
    for key, value in model.state_dict().items():
        assert dry[key].shape == value.shape and dry[key].is_meta


def test_half_precision_is_widened(fairseq_model, write_fairseq):
    def halve(state):
        state["model"] = {key: value.half() for key, value in state["model"].items()}

    reference = fairseq_model()
    model = load_hubert(write_fairseq(reference, change=halve))
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert model.mask_embedding.dtype == torch.float32
    assert torch.equal(
        model.encoder.transformer.layer_norm.bias,
        reference.encoder.layer_norm.bias.detach().half().float(),
    )


def test_the_file_is_its_identity(fairseq_model, write_fairseq):
    path = write_fairseq(fairseq_model())
    assert source_sha256(path) == sha256_file(path)


class Modes:
    """Where the member below is found."""

    layer_norm = None


class Member:
    """Pickled as some versions of Python pickle an Enum's member: by its name."""

    def __reduce__(self):
        return getattr, (Modes, "layer_norm")


def test_an_enum_pickled_by_name_is_read(fairseq_model, write_fairseq):
    def change(state):
        state["cfg"]["model"]["extractor_mode"] = Member()

    model = load_hubert(write_fairseq(fairseq_model(), "dict", change=change))
    assert model.extractor_mode == "layer_norm"


def with_weights(edit):
    return lambda state: edit(state["model"])


KEY = "encoder.layers.2.fc1.bias"
OURS = "encoder.transformer.layers.2.feed_forward.intermediate_dense.bias"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda model: model.pop(KEY), f"hubert.pt: .*missing {OURS}"),
        (
            lambda model: model.update({"quantiser.vars": torch.ones(2)}),
            "unexpected quantiser.vars",
        ),
        (
            lambda model: model.update({KEY: torch.ones(5)}),
            rf"{OURS}: found shape \(5,\), expected \(24,\)",
        ),
        (
            lambda model: model.update({"mask_emb": torch.ones(5)}),
            r"mask embedding: found shape \(5,\), expected \(16,\)",
        ),
        (lambda model: model.update({KEY: "text"}), f"{KEY}: found str, expected a te"),
        (
            lambda model: model.update(
                {"feature_extractor.conv_layers.0.2.weight": torch.ones(8)}
            ),
            "found twice, as feature_extractor.conv_layers.0.layer_norm.weight",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    fairseq_model, write_fairseq, edit, message
):
    path = write_fairseq(fairseq_model(), "dict", change=with_weights(edit))
    with pytest.raises(RecipeError, match=message):
        load_hubert(path)


def test_the_head_is_left_out_and_a_missing_mask_embedding_is_none(
    fairseq_model, write_fairseq
):
    def drop(model):
        for key in ("mask_emb", "final_proj.weight", "final_proj.bias"):
            del model[key]
        del model["label_embs_concat"]

    path = write_fairseq(fairseq_model(), change=with_weights(drop))
    assert load_hubert(path).mask_embedding is None


def fine_tuned(state):
    state["model"] = {
        f"w2v_encoder.w2v_model.{key}": value for key, value in state["model"].items()
    }


def fine_tuned_config(state):
    state["cfg"]["model"] |= {"_name": "hubert_ctc", "w2v_path": "/hubert.pt"}


@pytest.mark.parametrize("change", [fine_tuned, fine_tuned_config])
def test_a_fine_tuned_model_is_refused_with_advice(
    fairseq_model, write_fairseq, change
):
    path = write_fairseq(fairseq_model(), "dict", change=change)
    message = (
        "hubert.pt.*: found a fine-tuned model, expected a pretrained HuBERT or "
        "its like; give"
    )
    for read in (load_hubert, read_architecture):
        with pytest.raises(RecipeError, match=message):
            read(path)
