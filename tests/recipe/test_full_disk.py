"""Stages on a full disk: one line, code 1, and the same bytes when there is room."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet2_lamer.fileio.atomic import write_json
from tests.cluster import CONTEXT
from tests.full_disk import REASONS, full, mounted
from tests.recipe.test_end_to_end import RECIPE, _shorter, _tiny_hubert
from tests.units.test_killed_stages import command as arguments_of

MIB = 2**20


def _recipe(arguments, output, largest):
    """In a process of its own: what ``run.sh`` starts, its output into a pipe."""
    from espnet2_lamer.bin.common import run_main
    from espnet2_lamer.bin.recipe import main

    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    os.chdir(RECIPE)
    os.environ["OMP_NUM_THREADS"] = "1"
    if largest:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    run_main(lambda: main(arguments))


def run(arguments, largest=None, meanwhile=None):
    """Run stages.

    Args:
        arguments: Of the command line.
        largest: Bytes that a file may have.
        meanwhile: Called after the start.

    Returns:
        Exit code and output.
    """
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_recipe, args=(arguments, there, largest))
    process.start()
    there.close()
    if meanwhile is not None:
        meanwhile(process)
    output = b""
    while part := os.read(here.fileno(), 2**16):
        output += part
    process.join()
    return process.exitcode, output.decode()


def the_line(result):
    """The one line that a failed run ends with."""
    code, output = result
    assert code == 1, output
    assert "Traceback" not in output and "Logging error" not in output, output
    (line,) = [x for x in output.splitlines() if " ERROR: " in x]
    return line.split(" ERROR: ", 1)[1]


def finish(*arguments):
    code, output = run(*arguments)
    assert code == 0, output


class Noise:
    """Stages 1 to 5 on noise, from a manifest; every run has a folder of its own."""

    def __init__(self, root):
        self.root = root
        self.teacher = str(_tiny_hubert(root / "teacher", 1))
        generator = np.random.default_rng(0)
        rows = ["utt_id\tpath\tlang\tsplit\ttext\n"]
        for lang in ("eng", "cmn", "yue"):
            for number in range(16):
                utt = f"{lang}{number:02d}"
                samples = generator.uniform(
                    -0.5, 0.5, int(8e3 * generator.uniform(2, 3))
                )
                # Another rate and 24 bit: stage 2 has work to do.
                soundfile.write(root / f"{utt}.wav", samples, 8000, subtype="PCM_24")
                split = "dev" if number < 2 else "train"
                rows.append(f"{utt}\t{utt}.wav\t{lang}\t{split}\twords {utt}\n")
        (root / "manifest.tsv").write_text("".join(rows))

    def arguments(self, folder, stage, stop_stage):
        records = {"source": self.teacher, "path": self.teacher, "sha256": None}
        write_json(
            folder / "exp" / "checkpoints.json", {"base": records, "teacher": records}
        )
        return arguments_of(
            *(self.root, folder.name, f"--datadir={folder / 'data'}"),
            *(f"--dumpdir={folder}", f"--expdir={folder / 'exp'}", "--nj=1"),
            *("--corpus=manifest", f"--manifest={self.root / 'manifest.tsv'}"),
            *("--teacher_layer=1", "--n_clusters=20", "--kmeans_hours=0.005"),
            *("--replay_hours=0.005", f"--stage={stage}", f"--stop_stage={stop_stage}"),
        )


def files(folder, *parts):
    """Content below parts of a run, without the name of its folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes().replace(
            str(folder).encode(), b"RUN"
        )
        for part in parts
        for path in sorted((folder / part).rglob("*"))
        if path.is_file() and not path.name.endswith((".lock", ".done.json"))
    }


WRITTEN = ("data", "raw", "units")
# Bytes of room and what is told: before the work, or by a write that fails.
ROOM = {
    "small disk": {1: [2**14], 2: [2**18, 2 * MIB], 5: [2**13]},
    "small files": {1: [600], 2: [2**15], 5: [2**12]},
}


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    recipe = Noise(tmp_path_factory.mktemp("noise"))
    finish(recipe.arguments(recipe.root / "whole", 1, 5))
    return recipe


@pytest.fixture(
    scope="module",
    # A limit of file sizes meets the same calls as a disk that is full.
    params=[pytest.param("small disk", marks=pytest.mark.slow), "small files"],
)
def disturbed(request, noise):
    """What stages 1, 2 and 5 said in little room, and all files in the end."""
    kind, folder = request.param, noise.root / request.param.replace(" ", "_")
    told = {}

    def go():
        for stage, last in ((1, 1), (2, 4), (5, 5)):
            for room in ROOM[kind][stage]:
                arguments = noise.arguments(folder, stage, stage)
                if kind == "small disk":
                    with full(kind, folder, room):
                        result = run(arguments)
                else:
                    result = run(arguments, room)
                told[stage, room] = the_line(result)
            finish(noise.arguments(folder, stage, last))
        return kind, folder, told, files(folder, *WRITTEN)

    if kind == "small disk":
        with mounted(folder):
            yield go()
    else:
        folder.mkdir()
        yield go()


def test_stages_1_2_and_5_on_a_full_disk_end_in_one_line_that_names_the_file(disturbed):
    kind, folder, told, _ = disturbed
    assert {stage for stage, _ in told} == {1, 2, 5}
    for (stage, room), line in told.items():
        where, _, reason = line.partition(": ")
        assert where.startswith(f"{folder}/"), (stage, line)
        if (stage, room) == (2, 2**18):
            assert reason.startswith("files at 16 kHz, by estimate, take ")
            assert "are free there; make room, or name another folder with" in reason
        else:
            assert reason.startswith(REASONS[kind]) and "run the same comm" in reason


def test_with_room_stages_1_2_and_5_give_the_bytes_of_an_undisturbed_run(
    noise, disturbed
):
    found, expected = disturbed[3], files(noise.root / "whole", *WRITTEN)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert any(name.endswith(".flac") for name in expected)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Options of stages 1 to 10 on few minutes; each run has folders of its own."""
    from espnet2_lamer.data.mini import build_mini

    root = tmp_path_factory.mktemp("tiny")
    build_mini(root / "data", nj=1, seed=0, minutes_scale=0.04)
    base = _tiny_hubert(root / "base", 0)
    short = {"amp_dtype": "none", "num_workers": 0}
    ssl = _shorter(
        *("conf/train_ssl_lamer_mini.yaml", root / "ssl.yaml"),
        **short,
        max_epoch=6,
        num_iters_per_epoch=3,
        checkpoint_interval=1,
        scheduler_conf={"warmup_steps": 1, "total_steps": 30},
    )
    head = _shorter(
        *("conf/tuning/train_asr_mlsuperb_mini.yaml", root / "asr.yaml"),
        **short,
        max_epoch=3,
        num_iters_per_epoch=1,
        batch_size=2,
        accum_grad=1,
        scheduler_conf={"total_steps": 30},
    )

    def make(folder, stage, stop_stage):
        return [
            *("--skip_stages=1", "--nj=1", f"--datadir={root / 'data'}"),
            *(f"--dumpdir={folder / 'dump'}", f"--expdir={folder / 'exp'}"),
            *(f"--base={base}", f"--teacher={base}", "--teacher_layer=1"),
            *("--replay_hours=0.005", "--kmeans_hours=0.01", "--n_clusters=12"),
            *(f"--ssl_config={ssl}", "--allocation=2,3", "--ssl_tag=lamer"),
            *(
                "--control=false",
                "--upstreams=base",
                "--tracks=asr",
                "--asr_layer=1",
                "--lid_layer=1",
            ),
            *(f"--asr_config={head}", "--eval_langs=eng"),
            *(f"--stage={stage}", f"--stop_stage={stop_stage}"),
        ]

    make.root = root
    make.whole = root / "whole"
    finish(arguments_of(root, "whole", *make(make.whole, 0, 7)))
    finish(arguments_of(root, "whole", *make(make.whole, 9, 10)))
    return make


def trained(folder):
    """Weights of the pretraining and of the head, to the byte."""
    paths = [
        *folder.glob("exp/ssl_lamer/*epoch.pth"),
        *folder.glob("exp/asr_*/final/model.pth"),
    ]
    assert len(paths) > 1
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def when(folder, pattern, act, process):
    """Act as soon as a file is there."""
    while process.is_alive() and not any(folder.glob(pattern)):
        time.sleep(0.005)
    act()


@pytest.mark.slow
def test_stages_7_and_10_on_a_full_disk_go_on_to_the_bytes_of_an_undisturbed_run(tiny):
    folder = tiny.root / "disk"

    def arguments(stage, stop_stage):
        return arguments_of(tiny.root, "disk", *tiny(folder, stage, stop_stage))

    filled = []

    def fill():
        filled.append(full("small disk", folder, 0))
        filled[-1].__enter__()

    with mounted(folder):
        finish(arguments(0, 6))
        # Room for logs and tables, not for what the stage is about.
        for stage, room, written, refused in (
            (7, 2**18, "exp/ssl_lamer/checkpoints/update_*2.pth", "checkpoints and mo"),
            (10, 3 * 2**15, "exp/asr_*/1epoch.pth", "features of "),
        ):
            with full("small disk", folder, room):
                line = the_line(run(arguments(stage, stage)))
            assert refused in line and "are free there; make room, or" in line
            result = run(
                arguments(stage, stage),
                meanwhile=partial(when, folder, written, fill),
            )
            line = the_line(result)
            assert f": {REASONS['small disk']}; make room there" in line, line
            assert f"{folder}/exp/" in line
            filled[-1].__exit__(None, None, None)
            finish(arguments(stage, stage))
            finish(arguments(9, 9))
        assert trained(folder) == trained(tiny.whole)


@pytest.mark.slow
def test_ctrl_c_in_stage_7_saves_and_run_sh_goes_on_to_the_same_bytes(tiny):
    folder = tiny.root / "interrupted"
    command = ["./run.sh", f"--python={sys.executable}"]
    finish(arguments_of(tiny.root, "interrupted", *tiny(folder, 0, 6)))

    def start():
        return subprocess.Popen(
            [*command, *tiny(folder, 7, 7)],
            cwd=RECIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    process = start()
    log = folder / "exp" / "ssl_lamer" / "train.log"
    while not log.exists() or "2/6epoch started" not in log.read_text():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130, output
    assert "stopping after this update" in output and "Traceback" not in output
    process = start()
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "resumed after update" in log.read_text()
    name = "exp/ssl_lamer/6epoch.pth"
    assert (folder / name).read_bytes() == (tiny.whole / name).read_bytes()
    shutil.rmtree(folder)
