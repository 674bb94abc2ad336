"""Second part of stage 7 with ``--recluster``: new units of the trained model, and on.

The sequential adaptation with re-clustering of Seamless Language Expansion
(arXiv 2406.14092), for experts.
"""

import copy
import logging
import shutil
from pathlib import Path

from espnet2_lamer.fileio.atomic import atomic_dir
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.fileio.locks import exclusive
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.pretraining import continue_pretraining, write_all_shapes
from espnet2_lamer.recipe.settle import experts_options, own_allocation
from espnet2_lamer.recipe.stages import clusters, features, labels


def go_on_with_new_units(options: Options) -> None:
    """Cluster a layer of the first round's model, label all speech, and train on.

    Experts and routers go on from the first round's and all of them train; the head is
    new, as the units are, and so are optimizer and schedule.
    """
    first = options.first_round.ssl_experiment
    options = copy.copy(options)
    # What --allocation found in the data is found once: counts, and ranks with them.
    config = read_yaml(first / "config.yaml")
    options.allocation = own_allocation(config) or ""
    rank = config["encoder_conf"]["lamer"].get("rank", "")
    rank = ",".join(map(str, rank)) if isinstance(rank, list) else str(rank)
    with exclusive(options.round_dir):
        make_units(options)
    text = "%s goes on from %s on %d units of its layer %d"
    layer, number = options.recluster, options.n_clusters
    logging.info(text, options.ssl_experiment, first, number, layer)
    start = ["--expand_from", str(first), "--old_experts", "shared"]
    start += experts_options(options.allocation, rank)
    continue_pretraining(options, start)


def make_units(options: Options) -> None:
    """Do stages 3 to 6 again for the first round's model, in a folder of their own.

    ``dump/units_NAME`` holds what they make but the features, which are removed. Called
    again after a kill it goes on; where all is there it does nothing.
    """
    for directory in (options.ssl_train, options.ssl_dev):
        _copy_tables(options.raw / directory.name, directory)
    # Features first: of finished units they are gone.
    for make, done in (
        (features, options.codebook),
        (clusters, options.codebook),
        (labels, options.label_quality),
    ):
        if not done.is_file():
            for command in make(options):
                command.run()
    shutil.rmtree(options.features, ignore_errors=True)
    write_all_shapes(options)


def _copy_tables(source: Path, target: Path) -> None:
    """Copy the tables of a data directory, not its units; their audio stays."""
    if target.is_dir():
        return
    with atomic_dir(target) as temporary:
        for path in source.iterdir():
            if path.is_file() and "text.km" not in path.name:
                shutil.copyfile(path, temporary / path.name)
