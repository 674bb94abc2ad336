"""Token lists, language tags and SentencePiece models of heads."""

import random

import pytest
import sentencepiece

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.tokens import (
    build_vocabulary,
    check_targets,
    read_targets,
)
from espnet2_lamer.fileio.datadir import write_table


def tokens_of(texts, token_type, directory, **options):
    build_vocabulary(texts, token_type, directory, **options)
    return (directory / "tokens.txt").read_text().split("\n")[:-1]


def sentences(count=60):
    words = "THE CAT SAT ON A MAT AND LOOKED AT EVERY OTHER CAT THERE".split()
    draw = random.Random(0)
    return [" ".join(draw.choices(words, k=6)) for _ in range(count)]


def test_token_list_is_ordered_by_count_between_espnets_symbols(tmp_path):
    assert tokens_of(["B A", "A B", "C A"], "char", tmp_path) == (
        ["<blank>", "<unk>", "<space>", "A", "B", "C", "<sos/eos>"]
    )
    assert tokens_of(["b i3 b", "a4"], "word", tmp_path) == (
        ["<blank>", "<unk>", "b", "a4", "i3", "<sos/eos>"]
    )


def test_a_language_tag_is_one_token_among_characters(tmp_path):
    vocabulary = build_vocabulary(
        ["[eng] AB C", "[yue] AB"], "char", tmp_path, ["[eng]", "[yue]"]
    )
    assert {"[eng]", "[yue]", "<space>"} < set(vocabulary.tokens)
    tokens = vocabulary.tokenizer().text2tokens("[eng] AB C")
    assert tokens == ["[eng]", "<space>", "A", "B", "<space>", "C"]
    assert vocabulary.options(tmp_path)[-2:] == (
        ["--non_linguistic_symbols", str(tmp_path / "nlsyms.txt")]
    )


@pytest.mark.parametrize("tags", [(), ("[eng]", "[yue]")])
def test_bpe_is_trained_on_the_texts_and_gives_them_back(tmp_path, tags):
    texts = sentences()
    texts = [f"{tags[0]} {text}" for text in texts] if tags else texts
    vocabulary = build_vocabulary(texts, "bpe", tmp_path, tags, nbpe=40)
    assert vocabulary.tokens[:2] == ("<blank>", "<unk>")
    assert vocabulary.tokens[-1] == "<sos/eos>"
    assert len(set(vocabulary.tokens)) == len(vocabulary.tokens) <= 40 + 2
    tokenizer = vocabulary.tokenizer()
    for text in texts:
        tokens = tokenizer.text2tokens(text)
        assert set(tokens) <= set(vocabulary.tokens)
        assert len(tokens) < len(text)
        assert tokenizer.tokens2text(tokens) == text
        assert not tags or tags[0] in tokens
    # A character that no training text has is unknown: nothing else was looked at.
    pieces = sentencepiece.SentencePieceProcessor(
        model_file=str(tmp_path / "bpe.model")
    )
    assert pieces.encode("Z")[-1] == pieces.unk_id()


def test_the_same_texts_give_the_same_pieces(tmp_path):
    first = build_vocabulary(sentences(), "bpe", tmp_path / "a", nbpe=40)
    second = build_vocabulary(sentences(), "bpe", tmp_path / "b", nbpe=40)
    assert first.tokens == second.tokens


def test_a_bpe_vocabulary_smaller_than_the_alphabet_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="--nbpe 5: SentencePiece cannot make"):
        build_vocabulary(sentences(), "bpe", tmp_path, nbpe=5)
    assert not (tmp_path / "bpe.model").exists()


def test_targets_are_text_tag_or_both(tmp_path):
    write_table(tmp_path / "wav.scp", {"a": "a.wav", "b": "b.wav"})
    write_table(tmp_path / "utt2lang", {"a": "cmn", "b": "yue"})
    write_table(tmp_path / "text", {"a": "n i3", "b": "h ou2"})
    write_table(tmp_path / "text.char", {"a": "\u4f60", "b": "\u597d"})
    assert read_targets(tmp_path, "lang", "lang") == {"a": "[cmn]", "b": "[yue]"}
    assert read_targets(tmp_path, "text", "pinyin") == {"a": "n i3", "b": "h ou2"}
    assert read_targets(tmp_path, "lang_text", "bpe") == (
        {"a": "[cmn] \u4f60", "b": "[yue] \u597d"}
    )
    write_table(tmp_path / "text.char", {"a": "\u4f60"})
    write_table(tmp_path / "utt2lang", {"a": "cmn"})
    with pytest.raises(RecipeError, match="text.char: b: no text"):
        read_targets(tmp_path, "text", "char")
    with pytest.raises(RecipeError, match="utt2lang: b: no lang"):
        read_targets(tmp_path, "lang", "lang")


def test_a_text_without_tokens_is_named(tmp_path):
    vocabulary = build_vocabulary(["A"], "char", tmp_path)
    assert check_targets({"x": "A A"}, vocabulary, "text") == {"x": 3}
    with pytest.raises(RecipeError, match="text: y: text without tokens"):
        check_targets({"y": ""}, vocabulary, "text")
    with pytest.raises(RecipeError, match="no training text"):
        build_vocabulary(["", " "], "char", tmp_path)
