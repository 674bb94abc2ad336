"""A package that decodes something else than its model is not let out."""

import pytest
import soundfile
import torch
import yaml

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.runs import Run
from espnet2_lamer.export.zoo import pack_model
from espnet2_lamer.fileio.datadir import write_table
from espnet2_lamer.recipe.packing import check_package
from tests.export.test_doors import HEADS, write_head
from tests.export.tiny import speech, write_base


def test_text_before_and_after_packing_is_compared(tmp_path):
    from espnet2_lamer import load_model, register

    register()
    upstream = load_model(write_base(tmp_path / "base"))
    run = Run(
        track="asr",
        benchmark="own",
        budget="all",
        corpus="",
        langs=("eng",),
        unit="char",
        system="tiny",
        upstream="tiny",
        layer="all",
        config="conf.yaml",
        train_sets=("train",),
        dev_sets=("dev",),
        tests={"eng": ("test",)},
    )
    final = write_head(run.directory(tmp_path), upstream, "all", **HEADS["char"])
    wavs, lengths = speech()
    audio = {}
    for number, (wav, count) in enumerate(zip(wavs, lengths.tolist(), strict=True)):
        audio[f"utt{number}"] = str(tmp_path / f"{number}.wav")
        soundfile.write(audio[f"utt{number}"], (wav[:count] / 8).numpy(), 16000)
    write_table(tmp_path / "raw" / "test" / "wav.scp", audio)
    decoding = tmp_path / "decode.yaml"
    decoding.write_text("beam_size: 1\nctc_weight: 1.0\nlm_weight: 0.0\n")
    package = tmp_path / "asr.zip"
    pack_model("asr", final / "config.yaml", final / "model.pth", package)
    arguments = (run, package, tmp_path, tmp_path / "raw", decoding)
    assert check_package(*arguments) == 3
    assert check_package(*arguments, utterances=2) == 2

    # Another head of the same shape under the package's name.
    state = torch.load(final / "model.pth", weights_only=True)
    state["ctc.ctc_lo.weight"] = -state["ctc.ctc_lo.weight"]
    torch.save(state, tmp_path / "other.pth")
    pack_model("asr", final / "config.yaml", tmp_path / "other.pth", package)
    with pytest.raises(RecipeError, match="asr.zip: decodes utt. as .* but the model"):
        check_package(*arguments)
    assert not package.exists()
    settings = yaml.safe_load((final / "config.yaml").read_text())
    assert settings["token_list"] == HEADS["char"]["token_list"]
