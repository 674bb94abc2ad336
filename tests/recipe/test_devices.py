"""GPUs and nodes of run.sh become ESPnet's options."""

from argparse import Namespace

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.pretraining import device_options


@pytest.fixture
def slurm(monkeypatch):
    """Return a function that sets what Slurm sets in a step."""

    def start(nodes, tasks, job="17", step="0", restart=None):
        values = {
            "SLURM_STEP_NUM_NODES": nodes,
            "SLURM_NTASKS": tasks,
            "SLURM_JOB_ID": job,
            "SLURM_STEP_ID": step,
            "SLURM_RESTART_COUNT": restart,
        }
        for name, value in values.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, str(value))

    start(None, None, None, None)
    return start


def options(ngpu, num_nodes=1):
    return Namespace(ngpu=ngpu, num_nodes=num_nodes)


def parsed(command):
    return dict(zip(command[::2], command[1::2], strict=True))


def test_one_process_needs_no_distribution(slurm, tmp_path):
    assert device_options(options(1), tmp_path / "exp") == ["--ngpu", "1"]
    assert "--multiprocessing_distributed" not in device_options(options(0), tmp_path)


def test_several_gpus_of_a_node_are_processes_of_their_own(slurm, tmp_path):
    found = parsed(device_options(options(4), tmp_path / "exp"))
    assert found == {"--ngpu": "4", "--multiprocessing_distributed": "true"}


def test_nodes_meet_in_the_folder_of_experiments(slurm, tmp_path):
    slurm(2, 2)
    found = parsed(device_options(options(4, 2), tmp_path / "exp" / "ssl_lamer"))
    assert found["--dist_world_size"] == "2" and found["--dist_launcher"] == "slurm"
    path = tmp_path / "exp" / "dist" / "ssl_lamer.17.0.0"
    assert found["--dist_init_method"] == f"file://{path}"
    assert path.parent.is_dir() and not path.exists()


def test_each_start_and_each_training_has_a_file_of_its_own(slurm, tmp_path):
    files = []
    for name, job, step, restart in (
        ("lamer", 17, 0, None),
        ("head_only", 17, 0, None),
        ("lamer", 17, 1, None),
        ("lamer", 17, 0, 1),
        ("lamer", 18, 0, None),
    ):
        slurm(2, 2, job, step, restart)
        found = parsed(device_options(options(1, 2), tmp_path / name))
        files.append(found["--dist_init_method"])
    assert len(set(files)) == 5


@pytest.mark.parametrize(("nodes", "tasks"), [(None, None), (1, 1), (2, 8), (4, 4)])
def test_nodes_that_slurm_did_not_start_are_refused(slurm, tmp_path, nodes, tasks):
    slurm(nodes, tasks)
    message = r"--num_nodes: found 2, .* srun --nodes=2 --ntasks-per-node=1 ./run.sh"
    chosen = options(4, 2)
    chosen.command = lambda: "./run.sh --num_nodes 2 --expdir mine"
    with pytest.raises(RecipeError, match=f"{message} --num_nodes 2 --expdir mine"):
        device_options(chosen, tmp_path / "exp")


def test_processors_talk_through_gloo(slurm, tmp_path):
    slurm(2, 2)
    found = parsed(device_options(options(0, 2), tmp_path / "exp"))
    assert found["--dist_backend"] == "gloo"
