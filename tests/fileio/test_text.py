"""Tables that are not UTF-8 are refused by file, line and byte, whoever reads them."""

import pytest

from espnet2_lamer.data.sampling import dominant_units
from espnet2_lamer.data.sources import READERS as SOURCES
from espnet2_lamer.data.sources import Reading, Source
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.mlsuperb import read_transcript
from espnet2_lamer.evaluation.scoring import score_files
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.fileio.text import read_text, text_lines, utf8_tables
from espnet2_lamer.metrics.probe import frame_phones


def test_any_unicode_is_read_and_a_mark_at_the_start_left_out(tmp_path):
    path = tmp_path / "text"
    text = "utt1 naïve\u2028 粵語\r\nutt2 \ufeffx"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_text(path) == text
    assert [number for number, _ in text_lines(path)] == [1, 2]
    assert list(read_table(path)) == ["utt1", "utt2"]


LATIN = "utt1 caf\xe9\n".encode("latin1")
READERS = {
    "table": (read_table, b"utt0 x\n"),
    "manifest": (
        lambda path: SOURCES["tsv"](Source("tsv", str(path)), Reading()),
        b"utt_id\tpath\tlang\ttext\n",
    ),
    "clusters": (lambda path: dominant_units(path, {"utt1"}), b"utt0 1\n"),
    "phones": (frame_phones, b"utt0 1 0 0.1 a\n"),
    "transcript": (
        lambda path: list(read_transcript(path, "eng", "x")),
        b"\n",
    ),
    "score": (lambda path: score_files(path, path, "char"), b"utt0 x\n"),
    "list": (read_text, b"utt0\n"),
}


@pytest.mark.parametrize("name", READERS)
def test_every_table_that_is_not_utf8_is_refused_by_line_and_byte(name, tmp_path):
    read, first = READERS[name]
    path = tmp_path / "table"
    path.write_bytes(first + LATIN)
    with pytest.raises(RecipeError) as caught:
        read(path)
    message = str(caught.value)
    assert f"{path}:2: byte 9 of the line is 0xe9, expected UTF-8" in message
    assert "iconv" in message and "\n" not in message


def test_a_table_that_a_library_reads_is_found_among_others(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(b"utt1 x\n")
    bad.write_bytes(LATIN)
    with pytest.raises(RecipeError, match=f"{bad}:1: byte 9"), utf8_tables([good, bad]):
        bad.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: !!python/object/apply:os.getcwd []\n", "could not determine a constr"),
        (b"a: 1\nb: caf\xe9\n", "not valid YAML"),
        (b"- 1\n", "found list, expected a mapping"),
        (b"a: [\n", "not valid YAML"),
    ],
)
def test_yaml_that_is_not_plain_is_one_line_with_the_path(tmp_path, content, reason):
    path = tmp_path / "train.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: ") and reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_without_lines_is_empty_and_a_missing_file_is_named(tmp_path):
    path = tmp_path / "train.yaml"
    with pytest.raises(RecipeError, match=f"{path}: cannot be read"):
        read_yaml(path)
    path.write_text("# nothing\n")
    assert read_yaml(path) == {}
