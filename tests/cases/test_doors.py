"""Cases of the doors and of configs, as their README.md files expect them.

The folder of cases is ``$LAMER_CASES``, or ``../shared/cases`` beside the checkout.
"""

import os
import re
import runpy
import sys
from pathlib import Path

import pytest

from espnet2_lamer.bin.export import main as export
from espnet2_lamer.errors import RecipeError

ROOT = Path(__file__).parents[2]
_FOLDERS = [os.environ.get("LAMER_CASES"), *(p / "shared/cases" for p in ROOT.parents)]
FOLDERS = [Path(folder) for folder in _FOLDERS if folder and Path(folder).is_dir()]
BASE = ROOT / "egs2/lamer_ssl/ssl1/mini/base"

pytestmark = pytest.mark.skipif(not FOLDERS, reason="no folder of cases here")


def case(name):
    return next((f / name for f in FOLDERS if (f / name).is_dir()), None)


def run(monkeypatch, capsys, script, *arguments):
    """Run a script of a case in this process and return what it printed."""
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    runpy.run_path(str(script), run_name="__main__")
    return capsys.readouterr().out


def test_base_variants(monkeypatch, capsys, tmp_path):
    script = case("base_variants") / "make.py"
    lines = run(monkeypatch, capsys, script, BASE, tmp_path / "out").splitlines()
    said = dict(line.split(": ", 1) for line in lines[1:])
    for name in (
        "ctc",
        "contentvec",
        "seqcls",
        "pretrain_label_embs",
        "sharded",
        "wav2vec2",
    ):
        assert said[name].startswith("loaded, max diff 0.00e+00"), name
    for name, key in {
        "bn": "conv_pos_batch_norm",
        "eps": "layer_norm_eps",
        "featproj_ln_false": "feat_proj_layer_norm",
    }.items():
        assert said[name].startswith("RecipeError") and key in said[name]
    assert not any("TRACEBACK" in line for line in lines)


def test_yaml_ignored():
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    options = [
        "--config",
        str(case("yaml_ignored") / "train.yaml"),
        "--dry_run",
        "true",
    ]
    options += ["--num_classes", "100", "--encoder_conf", f"base={BASE}"]
    message = "encoder_num_layers: found 7, expected 4, as the base has"
    with pytest.raises(RecipeError, match=message):
        LamerHubertTask.main(cmd=options)
    LamerHubertTask.main(cmd=[*options, "--encoder_conf", "encoder_num_layers=4"])


@pytest.mark.slow  # S3PRL takes seconds to import
def test_s3prl_under_50ms_and_short_in_batch(monkeypatch, capsys, tmp_path):
    from tests.export.family import write_experiment

    source = write_experiment(tmp_path)
    export(["--kind=s3prl", f"--experiment={source}", f"--output={tmp_path / 'out'}"])
    script, checkpoint = case("s3prl_under_50ms") / "run.py", tmp_path / "out/model.pth"
    said = run(monkeypatch, capsys, script, checkpoint, source)
    lines = re.findall(r"^(\d+) ((?:EXC|frames).*)$", said, re.MULTILINE)
    assert len(lines) == 17
    for samples, line in lines:
        right = "TooShortError" if int(samples) < 400 else "equal True"
        assert right in line, (samples, line)
    assert "EXC TooShortError utterance 3 of a batch of 5 has 200 samples" in said
