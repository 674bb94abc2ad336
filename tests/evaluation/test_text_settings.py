"""Punctuation and case of what a recogniser learns."""

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.text_settings import TextSettings
from espnet2_lamer.evaluation.text_units import normalize_text
from espnet2_lamer.evaluation.tokens import read_targets
from espnet2_lamer.fileio.datadir import write_table

TEXT = "Well,  “Ms Smith” – isn't it £5?  好。"


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        ({}, normalize_text(TEXT)),
        ({"case": "lower"}, normalize_text(TEXT).lower()),
        ({"case": "keep"}, "Well Ms Smith isnt it £5 好"),
        ({"punctuation": "keep"}, "WELL, “MS SMITH” – ISN'T IT £5? 好。"),
        (
            {"punctuation": "keep", "case": "keep"},
            "Well, “Ms Smith” – isn't it £5? 好。",
        ),
    ],
)
def test_settings_say_what_is_left_of_a_transcript(conf, expected):
    settings = TextSettings.read(conf, "a.yaml")
    assert settings.apply(TEXT) == expected
    assert TextSettings.read(settings.as_dict(), "b.yaml") == settings


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"case": "title"}, "a.yaml: text_conf.case: found 'title'"),
        ({"punctuation": False}, "a.yaml: text_conf.punctuation: found False"),
        ({"casing": "keep"}, r"a.yaml: text_conf: found \['casing'\]"),
        ("keep", "a.yaml: text_conf: found keep, expected a mapping"),
    ],
)
def test_wrong_settings_are_refused_by_key(conf, message):
    with pytest.raises(RecipeError, match=message):
        TextSettings.read(conf, "a.yaml")


def test_targets_are_made_from_the_transcripts_as_they_were_written(tmp_path):
    write_table(tmp_path / "wav.scp", {"u": "u.wav"})
    write_table(tmp_path / "text", {"u": "n i3"})
    write_table(tmp_path / "text.char", {"u": "NI"})
    write_table(tmp_path / "text.raw", {"u": "Ni!"})
    keep = TextSettings("keep", "keep")
    assert read_targets(tmp_path, "text", "char") == {"u": "NI"}
    assert read_targets(tmp_path, "text", "char", keep) == {"u": "Ni!"}
    with pytest.raises(RecipeError, match="unit pinyin, expected remove and upper"):
        read_targets(tmp_path, "text", "pinyin", keep)
    (tmp_path / "text.raw").unlink()
    with pytest.raises(RecipeError, match="text.raw"):
        read_targets(tmp_path, "text", "char", keep)
