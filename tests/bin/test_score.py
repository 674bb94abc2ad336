"""``bin.score`` on files as people have them."""

import json

import pytest

from espnet2_lamer.bin.score import main
from espnet2_lamer.errors import RecipeError

TEXT = "u1 CAFÉ 12\nu2 我愛你\n"


@pytest.fixture
def rate(tmp_path):
    def of(ref, hyp, unit="char", *more):
        files = {"ref": ref, "hyp": hyp, "json": None}
        for name, content in files.items():
            files[name] = tmp_path / name
            if content is not None:
                files[name].write_bytes(
                    content if isinstance(content, bytes) else content.encode()
                )
        main([f"--{k}={path}" for k, path in files.items()] + ["--unit", unit, *more])
        return json.loads(files["json"].read_text())["error_rate"]

    return of


@pytest.mark.parametrize(
    "same",
    [
        "u1 CAFE\u0301 １２\nu2 \ufeff我\u200b愛\u200f你\n",
        TEXT.replace(" ", "\t", 1).replace("u2 ", "u2\t"),
        "\ufeff" + TEXT.replace("\n", "\r\n"),
        TEXT.replace(" ", "  "),
    ],
)
def test_the_same_text_in_another_form_has_no_errors(rate, same):
    assert rate(TEXT, same) == rate(same, TEXT) == 0
    assert rate(TEXT, same, "word") == 0


def test_case_and_punctuation_count(rate):
    assert rate("u abcd\n", "u aBc.d\n") == 50


def test_texts_can_be_normalised_first(rate):
    pair = "u abcd\n", "u aBc.d。\n"
    assert rate(*pair, "char", "--text_norm", "unicode") == 0
    # ASCII's punctuation alone.
    assert rate(*pair, "char", "--text_norm", "official") == 25


def test_sclites_count_is_in_the_report_too(rate, tmp_path):
    # Five substitutions, for which sclite finds three insertions and deletions each.
    assert rate("u ABCDE\n", "u XYZAB\n") == 100
    assert json.loads((tmp_path / "json").read_text())["sclite_error_rate"] == 120


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT.encode("gb18030"), "hyp:1: byte 7 of the line is 0x81, expected UTF-8"),
        (TEXT.encode("utf-16"), "hyp:1: .*expected UTF-8"),
        (TEXT.encode("utf-16-be"), "hyp:1: holds a zero byte, as UTF-16"),
        ("u1\ta.wav\tCAFÉ\nu2\tb.wav\t我\n", r"hyp: found more than two columns \(u1"),
        ("utt_id\ttext\n" + TEXT, "hyp: found a header line"),
    ],
)
def test_other_encodings_and_columns_are_refused_with_the_file(rate, content, message):
    with pytest.raises(RecipeError, match=message) as caught:
        rate(TEXT, content)
    assert "\n" not in str(caught.value)
