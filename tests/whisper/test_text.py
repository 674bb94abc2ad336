import pytest
from espnet2.text.build_tokenizer import build_tokenizer
from espnet2.text.whisper_token_id_converter import OpenAIWhisperTokenIDConverter

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.whisper.text import (
    decode_text,
    encode_text,
    replace_espnet_tokenizers,
    token_list,
    write_token_list,
)

TEXTS = ["please enter your password", "面包车收成", "佢哋喺邊度呀", "it's 7 o'clock"]


def test_a_token_list_survives_being_a_file_of_lines(tmp_path):
    path = tmp_path / "tokens.txt"
    write_token_list(path)
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    assert [line.rstrip() for line in lines] == list(token_list())
    assert len(set(lines)) == 51865
    assert lines.index("<|startoftranscript|>") == 50258
    assert lines.index("<|endoftext|>") == 50257


@pytest.mark.parametrize("text", TEXTS)
def test_espnets_classes_give_whispers_tokens_and_the_text_back(text):
    replace_espnet_tokenizers()
    name = "whisper_multilingual"
    tokenizer = build_tokenizer(token_type=name, bpemodel=name, whisper_language="zh")
    converter = OpenAIWhisperTokenIDConverter(model_type=name, language="zh")
    tokens = tokenizer.text2tokens(text)
    ids = converter.tokens2ids(tokens)
    assert ids == encode_text(text)
    assert converter.ids2tokens(ids) == tokens
    assert tokenizer.tokens2text(tokens) == text
    assert decode_text([*ids, 50257]) == text


def test_only_scripts_with_spaces_start_with_one():
    assert token_list()[encode_text("it is")[0]] == "\u0120it"
    assert decode_text(encode_text("收")) == "收"
    first = encode_text("收")[0]
    assert not token_list()[first].startswith("\u0120")


def test_another_vocabulary_is_refused():
    replace_espnet_tokenizers()
    with pytest.raises(RecipeError, match="whisper_en"):
        build_tokenizer(token_type="whisper_en", bpemodel="whisper_en")
