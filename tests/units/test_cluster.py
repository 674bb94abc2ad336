"""Features, codebook and labels of a Dask cluster: the bytes of one process."""

import os
import signal
import time
from pathlib import Path
from threading import Thread

import pytest

from espnet2_lamer.bin import assign_units as assign_units_bin
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.parallel import workers
from espnet2_lamer.units.assign import assign_units
from espnet2_lamer.units.features import dump_features
from espnet2_lamer.units.kmeans import KmeansConfig, learn_kmeans
from espnet2_lamer.units.teacher import load_teacher
from tests.cluster import Cluster, wait_until


def read_slowly():
    """Let a worker take a tenth of a second to read an utterance."""
    from espnet2_lamer.units import extractor

    real = extractor.read_speech

    def slow(*args):
        time.sleep(0.1)
        return real(*args)

    extractor.read_speech = slow


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster()
    for _ in range(2):
        cluster.add_worker(prepare=read_slowly)
    cluster.wait_for(workers=2)
    yield cluster
    cluster.close()


@pytest.fixture
def relative(speech, hubert_dirs, tmp_path, monkeypatch):
    """A teacher and a wav.scp by paths that hold in one directory, which is entered."""
    wavs = read_table(speech / "wav.scp").items()
    table = {utt: os.path.relpath(path, tmp_path) for utt, path in wavs}
    write_table(tmp_path / "wav.scp", table)
    monkeypatch.chdir(tmp_path)
    return load_teacher(os.path.relpath(hubert_dirs["group_norm"]), 2), "wav.scp"


def make_units(teacher, scp, output):
    output = Path(output)
    dump_features(teacher, scp, output / "features", shard_utts=4)
    config = KmeansConfig(6, n_init=3, batch_size=200, max_passes=2)
    learn_kmeans(output / "features", output / "codebook.npz", config)
    assign_units(teacher, output / "codebook.npz", scp, output / "text.km")
    names = ("codebook.npz", "text.km", "text.km.json")
    return {name: (output / name).read_bytes() for name in names}


def test_a_cluster_makes_the_bytes_of_one_process(cluster, relative):
    alone = make_units(*relative, "alone")
    with workers(cluster.address):
        together = make_units(*relative, "together")
    assert together == alone


def test_labels_do_not_change_when_a_worker_is_killed_in_the_middle(
    speech, mfcc, codebook, tmp_path
):
    scp, alone = speech / "wav.scp", tmp_path / "alone" / "text.km"
    assign_units(mfcc, codebook, scp, alone, shard_utts=2)
    cluster = Cluster()
    victim = cluster.add_worker(prepare=read_slowly)
    cluster.add_worker(prepare=read_slowly)
    cluster.wait_for(workers=2)
    output = tmp_path / "together" / "text.km"
    shards = tmp_path / "together" / "text.km.shards"
    left = []

    def kill():
        wait_until(lambda: len(list(shards.glob("*.done.json"))) >= 3)
        # Wait for the middle of a shard of the victim's: temporaries hold its number.
        wait_until(lambda: list(shards.glob(f".*.{victim.pid}.*.tmp")))
        os.kill(victim.pid, signal.SIGKILL)
        left.append(12 - len(list(shards.glob("*.done.json"))))

    killer = Thread(target=kill)
    killer.start()
    try:
        with workers(cluster.address):
            assign_units(mfcc, codebook, scp, output, shard_utts=2)
    finally:
        killer.join()
        cluster.close()
    assert victim.exitcode == -signal.SIGKILL
    assert left[0] > 0  # shards that were still to be made
    assert output.read_bytes() == alone.read_bytes()
    sidecar = alone.with_name("text.km.json").read_bytes()
    assert output.with_name("text.km.json").read_bytes() == sidecar


def test_the_command_line_labels_on_a_cluster(
    cluster, speech, mfcc, codebook, tmp_path, caplog
):
    caplog.set_level("INFO")
    assign_units(mfcc, codebook, speech / "wav.scp", tmp_path / "alone.km")
    assign_units_bin.main(
        ["--teacher", "mfcc", "--codebook", str(codebook)]
        + ["--wav_scp", str(speech / "wav.scp"), "--output", str(tmp_path / "b.km")]
        + ["--dask", cluster.address]
    )
    assert (tmp_path / "b.km").read_bytes() == (tmp_path / "alone.km").read_bytes()
    assert f"--dask {cluster.address}: 2 workers" in caplog.text
    assert "of the work was the network's forward" in caplog.text
