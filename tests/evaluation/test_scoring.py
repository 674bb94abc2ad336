"""Error counts, error rates and language-identification accuracy."""

import json
import random
import re

import pytest

from espnet2_lamer.bin import score as score_bin
from espnet2_lamer.bin.common import run_main
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.scoring import (
    by_language,
    language_tag,
    lid_accuracy,
    score_files,
    tokenize,
)


def write(path, **lines):
    path.write_text(
        "".join(f"{utt} {text}\n" for utt, text in lines.items()), encoding="utf-8"
    )
    return path


def random_lines(rng):
    alphabet = rng.choice(["ab ", "abcdefgh ", "你好世界 再", "A你 ", "eng "])
    ref = "".join(rng.choices(alphabet, k=rng.randint(1, 25)))
    hyp = "".join(c for c in ref if rng.random() > 0.3)
    hyp += "".join(rng.choices(alphabet, k=rng.randint(0, 6)))
    tags = ["", "", "[eng] ", "[cmn] ", "[org_jpn] "]
    hyp = rng.choice(tags) + rng.choice(["", "", "[cmn]"]) + hyp
    return rng.choice(tags) + ref, rng.choice([hyp, hyp, hyp, ""])


def espnet_tokens(line):
    """What asr.sh handed to sclite when ML-SUPERB's results were published.

    ``tokenize_text -f 2-`` with the tags as nlsyms, until ESPnet 202511.
    """
    text = re.sub(r"\[(eng|cmn|org_jpn)\]", "", " ".join(line.split()))
    return ["<space>" if char == " " else char for char in text]


SPACES = ("<space>", "<space>")


def without_spaces_of_tags(tokens):
    """What ESPnet 202609 and later make of these tokens where a tag was removed."""
    before = ["<space>", *tokens]
    kept = [t for t, last in zip(tokens, before, strict=False) if (t, last) != SPACES]
    return kept[:-1] if kept[-1:] == ["<space>"] else kept


@pytest.fixture(scope="module")
def random_files(tmp_path_factory):
    rng = random.Random(3)
    root = tmp_path_factory.mktemp("random")
    pairs = [random_lines(rng) for _ in range(400)]
    pairs = [(ref, hyp) for ref, hyp in pairs if espnet_tokens(ref)]
    assert len(pairs) >= 200 and sum(not hyp for _, hyp in pairs) > 20
    ref = write(root / "ref", **{f"u{i}": p[0] for i, p in enumerate(pairs)})
    hyp = write(root / "hyp", **{f"u{i}": p[1] for i, p in enumerate(pairs)})
    return pairs, ref, hyp


def test_error_rate_equals_espnets_definition_on_random_pairs(random_files):
    # ESPnet's tokens and the edit distance it uses, over the whole corpus.
    import editdistance

    pairs, ref, hyp = random_files
    tokens = [tuple(map(espnet_tokens, pair)) for pair in pairs]
    expected = sum(editdistance.eval(r, h) for r, h in tokens)
    expected *= 100 / sum(len(r) for r, _ in tokens)
    score = score_files(ref, hyp, "char", remove_tags=True)
    assert score.error_rate == pytest.approx(expected, abs=1e-9)


def test_sclites_figures_are_those_of_its_costs_on_the_same_pairs(random_files):
    # Independent of the library: the cheapest path under 0, 3, 3, 4, by recursion.
    def cheapest(ref, hyp):
        row = [(3 * j, j) for j in range(len(hyp) + 1)]
        for i, r in enumerate(ref, 1):
            new = [(3 * i, i)]
            for j, h in enumerate(hyp, 1):
                (cost, errors), wrong = row[j - 1], int(r != h)
                new.append(
                    min(
                        (cost + 4 * wrong, errors + wrong),
                        (row[j][0] + 3, row[j][1] + 1),
                        (new[-1][0] + 3, new[-1][1] + 1),
                    )
                )
            row = new
        return row[-1][1]

    pairs, ref, hyp = random_files
    score = score_files(ref, hyp, "char", remove_tags=True)
    expected = sum(cheapest(*map(espnet_tokens, pair)) for pair in pairs)
    assert score.sclite_total.errors == expected
    assert score.sclite_total.ref_length == score.total.ref_length


@pytest.mark.parametrize("line", ["[eng] AB C", "AB [cmn] C", "A B"])
def test_the_reference_of_these_tests_is_espnets_tokenizer(line):
    from espnet2.text.char_tokenizer import CharTokenizer

    tokens = CharTokenizer(
        non_linguistic_symbols=["[eng]", "[cmn]", "[org_jpn]"],
        remove_non_linguistic_symbols=True,
    ).text2tokens(line)
    expected = espnet_tokens(line)
    if hasattr(CharTokenizer, "_merge_spaces"):  # 202609 and later
        expected = without_spaces_of_tags(expected)
    assert tokens == expected


def test_the_space_after_a_removed_tag_counts_as_in_published_results():
    line = "[eng] AB C"
    assert tokenize(line, "char", remove_tags=True) == espnet_tokens(line)
    assert espnet_tokens(line) == ["<space>", "A", "B", "<space>", "C"]
    assert tokenize("[cmn] l ao3", "pinyin", remove_tags=True) == ["l", "ao3"]
    assert tokenize("[eng] A", "char")[:2] == ["[", "e"]


def test_bpe_is_scored_in_characters_of_the_joined_text(tmp_path):
    assert tokenize("AB C", "bpe") == tokenize("AB C", "char")
    ref = write(tmp_path / "ref", u="AB C")
    assert score_files(ref, ref, "bpe").total.ref_length == 4


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
    assert (score.total.errors, score.total.ref_length, score.utterances) == (2, 8, 2)
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
    right = {utt: part[0] for utt, part in score.measure.parts.items()}
    assert right == {"a": 1, "b": 1, "c": 0, "d": 0}
    assert score.confusion == {
        "cmn": {"cmn": 1},
        "eng": {"eng": 1},
        "yue": {"UNK": 1, "cmn": 1},
    }
    # Wilson (1927): (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).
    z, n = 1.959963984540054, 4
    half = z * (0.25 / n + z**2 / (4 * n**2)) ** 0.5
    bounds = [(0.5 + z**2 / (2 * n) + s * half) / (1 + z**2 / n) for s in (-1, 1)]
    assert score.measure.interval == pytest.approx([100 * b for b in bounds])


def test_a_score_splits_by_language_into_corpus_level_scores(tmp_path):
    ref = write(tmp_path / "ref", a="[eng] A B", b="[cmn] X", c="[eng] A B C D")
    hyp = write(tmp_path / "hyp", a="[eng] A X", b="[cmn] X", c="[cmn] A B C")
    utt2lang = {"a": "eng", "b": "cmn", "c": "eng"}
    score = score_files(ref, hyp, "word", remove_tags=True)
    split = by_language(score, utt2lang)
    assert {k: (s.total.errors, s.total.ref_length) for k, s in split.items()} == {
        "cmn": (0, 1),
        "eng": (2, 6),
    }
    found = by_language(lid_accuracy(ref, hyp), utt2lang, lambda lang: "all")
    assert found["all"].accuracy == pytest.approx(200 / 3)
    assert by_language(lid_accuracy(ref, hyp), utt2lang)["eng"].accuracy == 50.0


def test_lid_accuracy_equals_the_official_rule_on_random_texts(tmp_path):
    # split_results.py: all [abc] in order, then all [abc_def]; the first one counts.
    rng = random.Random(5)
    pieces = ["[eng]", "[cmn]", "[org_jpn]", "[ENG]", "A", " ", "[", "]"]
    refs = {f"u{i}": f"{rng.choice(pieces[:3])} A" for i in range(300)}
    hyps = {u: "".join(rng.choices(pieces, k=rng.randint(0, 5))) for u in refs}

    def official(text):
        tags = re.findall(r"\[[a-z]{3}\]", text)
        tags += re.findall(r"\[[a-z]{3}_[a-z]{3}\]", text)
        return (tags or ["[UNK]"])[0]

    score = lid_accuracy(write(tmp_path / "r", **refs), write(tmp_path / "h", **hyps))
    right = [official(hyps[u]) == refs[u].split()[0] for u in refs]
    assert 0 < sum(right) < len(right)
    expected = 100 * sum(right) / len(right)
    assert score.accuracy == pytest.approx(expected, abs=1e-9)


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
        "sclite_error_rate": 40.0,
        "interval": [0.0, 50.0],
        "utterances": 2,
    }


def test_score_command_leaves_language_tags_out_when_asked(tmp_path):
    ref = write(tmp_path / "ref", u1="[eng] AB")
    hyp = write(tmp_path / "hyp", u1="[cmn] AX")
    out = tmp_path / "score.json"
    command = ["--ref", str(ref), "--hyp", str(hyp), "--unit", "char"]
    score_bin.main([*command, "--json", str(out), "--remove_tags"])
    score = json.loads(out.read_text())
    # <space> A B against <space> A X.
    assert (score["errors"], score["ref_length"]) == (1, 3)


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
