"""What a checkpoint's training dropped, by each format's own configuration."""

import json

import pytest

from espnet2_lamer.convert.load import load_hubert, read_dropouts
from espnet2_lamer.errors import RecipeError

NAMES = [
    f"encoder_{part}dropout" for part in ("projection_", "attention_", "ff_interm_", "")
]


def test_a_hugging_face_directory_has_transformers_own_defaults(tmp_path):
    pytest.importorskip("transformers")
    from transformers import HubertConfig

    path = tmp_path / "config.json"
    config = HubertConfig()
    keys = "feat_proj_dropout attention_dropout activation_dropout hidden_dropout"
    expected = [getattr(config, key) for key in keys.split()]
    path.write_text(json.dumps({"model_type": "hubert"}))
    assert [read_dropouts(tmp_path)[name] for name in NAMES] == expected
    path.write_text(
        json.dumps(dict(zip(keys.split(), (0.4, 0.2, 0.1, 0), strict=True)))
    )
    assert [read_dropouts(tmp_path)[name] for name in NAMES] == [0.4, 0.2, 0.1, 0]


@pytest.mark.parametrize("value", ["0.1", None, 1.0, -0.1, True])
def test_what_is_no_probability_is_refused_by_name(tmp_path, value):
    (tmp_path / "config.json").write_text(json.dumps({"hidden_dropout": value}))
    with pytest.raises(RecipeError, match="encoder_dropout: found .*a probability"):
        read_dropouts(tmp_path)


@pytest.mark.parametrize("form", ["omegaconf", "namespace"])
def test_a_fairseq_file_says_what_its_training_dropped(
    fairseq_model, write_fairseq, form
):
    model = fairseq_model("base")
    model.settings[0].update(dropout=0.3, dropout_input=0.4, attention_dropout=0.2)
    path = write_fairseq(model, form)
    expected = [0.4, 0.2, model.settings[0]["activation_dropout"], 0.3]
    assert [read_dropouts(path)[name] for name in NAMES] == expected
    # What is loaded drops nothing, as ever.
    assert load_hubert(path).architecture["encoder_dropout"] == 0.0


def test_torchaudio_knows_its_bundles():
    from torchaudio.pipelines import HUBERT_BASE

    found = read_dropouts("HUBERT_BASE")
    assert found == {name: HUBERT_BASE._params[name] for name in NAMES}
    assert {*read_dropouts("HUBERT_LARGE").values()} == {0.0}


def test_an_experiment_has_its_encoders(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "encoder: lamer_hubert\nencoder_conf: {encoder_dropout: 0.3}\n"
    )
    assert [read_dropouts(tmp_path)[name] for name in NAMES] == [0, 0, 0, 0.3]
    (tmp_path / "config.yaml").write_text("encoder: torchaudio_hubert\n")
    # ESPnet's own defaults.
    assert [read_dropouts(tmp_path)[name] for name in NAMES] == [0.1, 0.1, 0.0, 0.1]
