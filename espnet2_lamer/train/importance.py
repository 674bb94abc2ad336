"""Scores of a trained experiment's experts, over batches of its training data."""

import argparse
from pathlib import Path

from espnet2.torch_utils.device_funcs import to_device
from espnet2.torch_utils.set_all_random_seed import set_all_random_seed
from espnet2.train.distributed_utils import DistributedOption

from espnet2_lamer.convert.espnet_experiment import model_file, read_config
from espnet2_lamer.convert.state import read_state
from espnet2_lamer.layers.importance import ComponentImportance, experts_by_layer

#: Epoch whose batches, crops and masks are taken: a training of one epoch saw others.
_EPOCH = 2


#: Per layer and target ``[N][r]``.
Scores = list[dict[str, list[list[float]]]]


def score_experts(task: type, experiment: Path, batches: int) -> Scores:
    """Measure :class:`ComponentImportance` of every expert of an experiment.

    In this process, on its device, in train mode; no weight changes.

    Args:
        task: ``LamerHubertTask``.
        experiment: Its directory; every layer has experts.
        batches: How many, at most as many as an epoch has.

    Returns:
        Experts in their order, an expert's components by the size of their singular
        value.
    """
    config = read_config(experiment)
    args = argparse.Namespace(**config)
    # The model would write the experiment's routing statistics.
    args.output_dir = None
    set_all_random_seed(args.seed)
    device = "cuda" if args.ngpu > 0 else "cpu"
    model = task.build_model(args)
    model.load_state_dict(read_state(model_file(experiment, config)))
    model = model.to(device).train()
    model.keep_frozen()
    layers = [
        {name: ComponentImportance(part) for name, part in targets.items()}
        for _, targets in experts_by_layer(model)
    ]
    factory = task.build_iter_factory(args, DistributedOption(), mode="train")
    done = 0
    for _, batch, ends_iteration in factory.iterate(_EPOCH):
        model(**to_device(batch, device))[0].backward()
        if not ends_iteration:
            continue
        for targets in layers:
            for importance in targets.values():
                importance.add()
        model.zero_grad(set_to_none=True)
        done += 1
        if done == batches:
            break
    return [
        {name: one.values.double().cpu().tolist() for name, one in targets.items()}
        for targets in layers
    ]
