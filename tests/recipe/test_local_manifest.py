"""The command line local/data.py manifest."""

import os
import subprocess
import sys
from pathlib import Path

from espnet2_lamer.fileio.datadir import read_table

_ROOT = Path(__file__).parents[2]


def _run(cwd, *args):
    return subprocess.run(
        [sys.executable, str(_ROOT / "local/data.py"), "manifest", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )


def _write(path, *rows):
    path.write_text("utt_id\tpath\tlang\tsplit\tsource\n" + "".join(rows))
    return path


def test_options_reach_the_data(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.wav").touch()
    manifest = _write(
        tmp_path / "m.tsv",
        "a\ta.wav\ten\tdev\tweb\n",
        "b\tb.wav\teng\tdev\ttv\n",
        "c\tc.wav\tcmn\tdev\tweb\n",
    )
    options = ("--langs", "eng", "--exclude_sources", "tv", "--output", "out")
    result = _run(tmp_path, "--manifest", manifest, *options)
    assert result.returncode == 0, result.stderr
    assert list(read_table(tmp_path / "out/dev_eng/wav.scp")) == ["a"]
    assert not (tmp_path / "out/dev_cmn").exists()


def test_a_bad_manifest_fails_with_one_message_and_no_output(tmp_path):
    manifest = _write(tmp_path / "m.tsv", "a\ta.wav\teng\tdev\n")
    result = _run(tmp_path, "--manifest", manifest)
    assert result.returncode == 1
    assert "m.tsv:2: found 4 columns, expected 5" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "data").exists()


def test_no_manifest_is_wrong_usage(tmp_path):
    assert _run(tmp_path).returncode == 2
