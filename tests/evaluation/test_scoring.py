"""Error counts, error rates and language-identification accuracy."""

import json
import random

import pytest

from espnet2_lamer.bin import score as score_bin
from espnet2_lamer.bin.common import run_main
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.scoring import (
    Counts,
    error_counts,
    language_tag,
    lid_accuracy,
    score_files,
    tokenize,
)


def reference_counts(ref, hyp):
    """Plain dynamic programming: fewest errors, then most correct tokens."""
    # Cell: (errors, substitutions, deletions, insertions, correct).
    previous = [(j, 0, 0, j, 0) for j in range(len(hyp) + 1)]
    for i, r in enumerate(ref, 1):
        row = [(i, 0, i, 0, 0)]
        for j, h in enumerate(hyp, 1):
            diagonal, up, left = previous[j - 1], previous[j], row[j - 1]
            if r == h:
                match = (*diagonal[:4], diagonal[4] + 1)
            else:
                match = (diagonal[0] + 1, diagonal[1] + 1, *diagonal[2:])
            deletion = (up[0] + 1, up[1], up[2] + 1, *up[3:])
            insertion = (left[0] + 1, *left[1:3], left[3] + 1, left[4])
            row.append(
                min(match, deletion, insertion, key=lambda cell: (cell[0], -cell[4]))
            )
        previous = row
    return Counts(*previous[-1][1:])


def write(path, **lines):
    path.write_text(
        "".join(f"{utt} {text}\n" for utt, text in lines.items()), encoding="utf-8"
    )
    return path


def random_lines(rng):
    alphabet = rng.choice(["ab ", "abcdefgh ", "你好世界 再", "A你 ", "[eng] "])
    ref = "".join(rng.choices(alphabet, k=rng.randint(1, 25)))
    hyp = "".join(c for c in ref if rng.random() > 0.3)
    hyp += "".join(rng.choices(alphabet, k=rng.randint(0, 6)))
    return ref, rng.choice([hyp, hyp, hyp, ""])


@pytest.mark.parametrize(
    ("ref", "hyp", "expected"),
    [
        # Two ways to two errors; the one that keeps b is counted, as sclite does.
        ("ab", "bc", Counts(sub=0, dele=1, ins=1, cor=1)),
        ("abc", "abc", Counts(0, 0, 0, 3)),
        ("abc", "", Counts(0, 3, 0, 0)),
        ("", "abc", Counts(0, 0, 3, 0)),
        ("abc", "axc", Counts(1, 0, 0, 2)),
        ("你好吗", "你们好", Counts(0, 1, 1, 2)),
    ],
)
def test_hand_made_pairs_have_these_counts(ref, hyp, expected):
    assert error_counts(ref, hyp) == expected


def test_tokens_are_compared_whole():
    assert error_counts(["zh", "ong1"], ["zh", "ong4"]) == Counts(1, 0, 0, 1)


@pytest.mark.parametrize("unit", ["char", "word"])
def test_counts_equal_dynamic_programming_on_random_pairs(unit):
    rng = random.Random(7)
    for _ in range(400):
        ref, hyp = (tokenize(line, unit) for line in random_lines(rng))
        counts = error_counts(ref, hyp)
        assert counts == reference_counts(ref, hyp)
        assert counts.ref_length == len(ref)
        assert counts.cor + counts.sub + counts.ins == len(hyp)


def test_error_rate_equals_espnets_definition_on_random_pairs(tmp_path):
    # ESPnet: editdistance over the characters of tokenize_text, summed over the
    # corpus, divided by the number of reference tokens.
    import editdistance

    rng = random.Random(3)
    pairs = [random_lines(rng) for _ in range(300)]
    pairs = [(ref, hyp) for ref, hyp in pairs if ref.strip()]
    ref = write(tmp_path / "ref", **{f"u{i}": p[0] for i, p in enumerate(pairs)})
    hyp = write(tmp_path / "hyp", **{f"u{i}": p[1] for i, p in enumerate(pairs)})
    tokens = [tuple(" ".join(text.split()) for text in pair) for pair in pairs]
    expected = sum(editdistance.eval(r, h) for r, h in tokens)
    expected *= 100 / sum(len(r) for r, _ in tokens)
    assert score_files(ref, hyp, "char").error_rate == pytest.approx(expected, abs=1e-9)


def test_a_space_is_a_token_of_char_and_splits_the_other_units():
    assert tokenize(" AB  C　你 ", "char") == [
        *"AB",
        "<space>",
        "C",
        "<space>",
        "你",
    ]
    for unit in ("word", "pinyin", "jyutping", "phone"):
        assert tokenize("zh ong1  g uo2", unit) == ["zh", "ong1", "g", "uo2"]


def test_rate_is_corpus_level_and_its_interval_holds_it(tmp_path):
    ref = write(tmp_path / "ref", b="a b c d e f", a="a b")
    hyp = write(tmp_path / "hyp", a="x b", b="a b c d e f g")
    score = score_files(ref, hyp, "word")
    assert (score.errors, score.ref_length, score.utterances) == (2, 8, 2)
    assert score.error_rate == 25.0
    # Resamples of two utterances: a twice 1/2, b twice 1/6, one each 2/8.
    assert score.interval == pytest.approx((100 / 6, 50))
    assert score.sentence_error_rate == 100.0
    assert list(score.counts) == ["a", "b"]


def test_the_order_of_lines_does_not_change_the_score(tmp_path):
    texts = {f"u{i}": "a " * (i + 1) + "b" for i in range(9)}
    hyp = write(tmp_path / "hyp", **{utt: "a b" for utt in texts})
    forth = write(tmp_path / "forth", **texts)
    back = write(tmp_path / "back", **dict(reversed(texts.items())))
    assert score_files(forth, hyp, "char") == score_files(back, hyp, "char")


def test_an_utterance_on_one_side_only_is_an_error_that_names_it(tmp_path):
    both = write(tmp_path / "both", u1="a", u2="b")
    one = write(tmp_path / "one", u1="a")
    with pytest.raises(RecipeError, match=r"one: 1 utterance.*both missing: 'u2'"):
        score_files(both, one, "char")
    with pytest.raises(RecipeError, match=r"one: 1 utterance.*both missing: 'u2'"):
        score_files(one, both, "char")


def test_an_empty_reference_is_an_error_that_names_the_utterance(tmp_path):
    ref = write(tmp_path / "ref", u1="a", u2="")
    with pytest.raises(RecipeError, match="ref: utterance 'u2' has an empty reference"):
        score_files(ref, ref, "char")


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_a_missing_or_empty_reference_file_is_an_error(tmp_path, kind):
    hyp = write(tmp_path / "hyp", u1="a")
    ref = tmp_path / "ref"
    if kind == "empty":
        ref.touch()
    with pytest.raises(RecipeError, match="not found|no utterances"):
        score_files(ref, hyp, "char")


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("[eng] HELLO", "[eng]"),
        ("HELLO [cmn] [eng]", "[cmn]"),
        ("HELLO", "[UNK]"),
        ("", "[UNK]"),
        ("[ENG] [en] [engl]", "[UNK]"),
        # The official script looks for plain tags before compound ones.
        ("[org_jpn] [eng]", "[eng]"),
        ("[org_jpn]", "[org_jpn]"),
    ],
)
def test_the_language_tag_that_counts_is_the_official_scripts(text, tag):
    assert language_tag(text) == tag


def test_lid_accuracy_counts_first_tags_and_missing_tags_as_unknown(tmp_path):
    ref = write(tmp_path / "ref", a="[eng]", b="[cmn] X", c="[yue]", d="[yue]")
    hyp = write(tmp_path / "hyp", a="[eng]", b="[cmn] [eng]", c="[cmn]", d="")
    score = lid_accuracy(ref, hyp)
    assert (score.accuracy, score.majority) == (50.0, 50.0)
    assert score.correct == {"a": True, "b": True, "c": False, "d": False}
    assert score.confusion == {
        "cmn": {"cmn": 1},
        "eng": {"eng": 1},
        "yue": {"UNK": 1, "cmn": 1},
    }
    # Wilson (1927): (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).
    z, n = 1.959963984540054, 4
    half = z * (0.25 / n + z**2 / (4 * n**2)) ** 0.5
    bounds = [(0.5 + z**2 / (2 * n) + s * half) / (1 + z**2 / n) for s in (-1, 1)]
    assert score.interval == pytest.approx([100 * b for b in bounds])


@pytest.mark.parametrize("text", ["HELLO", "[eng] [cmn]"])
def test_a_lid_reference_needs_exactly_one_tag(tmp_path, text):
    ref = write(tmp_path / "ref", u1=text)
    with pytest.raises(RecipeError, match="utterance 'u1' has . language tags"):
        lid_accuracy(ref, ref)


def test_score_command_writes_exactly_the_documented_keys(tmp_path):
    ref = write(tmp_path / "ref", u1="AB C", u2="A")
    hyp = write(tmp_path / "hyp", u1="AB", u2="A")
    out = tmp_path / "out" / "score.json"
    command = ["--ref", str(ref), "--hyp", str(hyp), "--unit", "char"]
    score_bin.main([*command, "--json", str(out)])
    assert json.loads(out.read_text()) == {
        "errors": 2,
        "ref_length": 5,
        "error_rate": 40.0,
        "interval": [0.0, 50.0],
        "utterances": 2,
    }


def test_score_command_exits_1_on_bad_input_and_2_on_wrong_usage(tmp_path):
    ref = write(tmp_path / "ref", u1="A")
    hyp = write(tmp_path / "hyp", u2="A")
    out = tmp_path / "score.json"
    command = ["--ref", str(ref), "--hyp", str(hyp), "--json", str(out), "--unit"]
    with pytest.raises(SystemExit) as bad_input:
        run_main(lambda: score_bin.main([*command, "char"]))
    with pytest.raises(SystemExit) as wrong_usage:
        run_main(lambda: score_bin.main([*command, "letters"]))
    assert (bad_input.value.code, wrong_usage.value.code) == (1, 2)
    assert not out.exists()
