"""``--plan true``: what a run would take, lose and lack, before it begins."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from espnet2_lamer.data.converting import converted_bytes
from espnet2_lamer.evaluation.downstream import head_bytes
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.recipe.benchmark import ASR_TRACKS, LID_TRACKS, alone, eval_langs
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.plan_parts import BUCKETS, HEADERS, Part, Speech
from espnet2_lamer.recipe.plan_speech import find_speech, shortest
from espnet2_lamer.recipe.plan_trial import Trials, machine, run_trials
from espnet2_lamer.recipe.runner import chosen_stages
from espnet2_lamer.recipe.schedule import (
    Schedule,
    own_schedule,
    schedule_by_hours,
    seconds_per_update,
    trial_schedule,
)
from espnet2_lamer.recipe.settle import LEARNT
from espnet2_lamer.recipe.stage import Recipe
from espnet2_lamer.train.checkpoint import experiment_bytes
from espnet2_lamer.units.features import feature_bytes

_FRAMES = 50  # per second
# Rates that no trial measures, of the mini preset's committed run on two cores:
# synthesis and conversion of a second of audio by a job, a start of Python and ESPnet,
# a head's own start, its decoding and tests, the analysis without forward passes.
_SYNTHESIS, _CONVERSION = 0.007, 0.01
# Of a second of a recording to find its pauses (docs/segmentation.md).
_CUTTING = 15 / 3600
_START, _HEAD_START, _TESTS, _REPORTS = 10.0, 3.0, 4.0, 60.0
# Audio that the analysis hears of a model, in seconds, and rounds of k-means.
_HEARD, _ROUNDS = 1500.0, 20
# Products and sums of a core per second where k-means is bound by memory.
_FLOPS = 2e10
# Frames per cluster below which a cluster is hardly more than a handful of utterances.
_FRAMES_PER_CLUSTER = 500


@dataclass(frozen=True)
class Amounts:
    """Seconds of speech that stages see: per language, of training and validation."""

    train: Mapping[str, float]
    dev: Mapping[str, float]
    features: float
    texts: Sequence[str]
    schedule: Schedule
    per_update: float

    @property
    def audio(self) -> float:
        """Seconds of training speech."""
        return sum(self.train.values())

    @property
    def held_out(self) -> float:
        """Seconds of validation speech."""
        return sum(self.dev.values())


def amounts(options: Options, speech: Speech) -> Amounts:
    """Say what the options take of the speech, as stage 2 will."""
    low, high = shortest(options), options.max_duration
    train, dev = {}, {}
    for lang, parts in speech.parts.items():
        hours = parts["train"].hours(low, high)
        if lang in options.replay_langs:
            hours = min(hours, options.replay_hours)
        held_out = parts["dev"].hours(low, high) if "dev" in parts else 0.0
        train[lang] = 3600 * hours
        dev[lang] = 3600 * min(held_out, options.dev_hours or held_out)
    config = read_yaml(options.ssl_config)
    schedule = own_schedule(config)
    if options.passes:
        hours = sum(train.values()) / 3600
        schedule = schedule_by_hours(hours, options.passes, config)
    wanted = eval_langs(options)
    texts = [
        lang
        for lang, parts in speech.parts.items()
        if lang in wanted and all(p.text for p in parts.values() if p.files)
        if parts["train"].text
    ]
    features = sum(min(s, 3600 * options.kmeans_hours) for s in train.values())
    update = seconds_per_update(config)
    return Amounts(train, dev, features, texts, schedule, update)


def heads_of(options: Options, texts: Sequence[str], tracks: Sequence[str]) -> int:
    """Return how many heads of some tracks there will be."""
    tasks = {"asr": len(texts), "multi_asr": bool(texts)}
    tasks |= {"lid": not alone(options), "asr_lid": bool(texts)}
    several = (options.upstreams, options.upstream_mode, options.budgets)
    several += (options.eval_seeds or [0],)
    factor = prod(map(len, several)) * max(1, len(options.learning_rates))
    return factor * sum(tasks[track] for track in options.tracks if track in tracks)


def stage_seconds(
    options: Options, speech: Speech, found: Amounts, trials: Trials
) -> dict[str, float | None]:
    """Estimate every stage by its name; None where the trial it needs is missing."""
    jobs = max(1, options.nj)
    teach = trials.teacher and trials.teacher / max(1, min(jobs, _cores()))
    every = 3600 * sum(
        p.hours() for parts in speech.parts.values() for p in parts.values()
    )
    update = trials.update and trials.update + (trials.control or 0.0)
    steps = found.schedule.updates * found.per_update
    trainings = 1 + options.control
    forward, models = trials.forward, len(options.upstreams)
    heads = {
        "asr_heads": (options.asr_config, ASR_TRACKS, found.texts),
        "lid_heads": (options.lid_config, LID_TRACKS, options.langs),
    }
    number = {
        name: heads_of(options, found.texts, tracks)
        for name, (_, tracks, _) in heads.items()
    }
    synthetic = options.corpus == "mini"
    prepared = 2.2 * every if synthetic else every
    convert = 0.0 if synthetic else _CONVERSION / jobs
    clustering = found.features * _FRAMES * options.n_clusters * _ROUNDS * 2
    times: dict[str, float | None] = {
        # The training of a base is tried by nobody.
        "checkpoints": None if options.retrain else _START,
        "data": _SYNTHESIS * prepared / jobs
        if synthetic
        else 1.0 + _CUTTING * speech.recordings / jobs,
        "selection": 3 + convert * (found.audio + found.held_out),
        "features": teach and 3 + teach * found.features,
        "clusters": teach
        and trials.teacher_dim
        and 5 + clustering * trials.teacher_dim / _FLOPS / jobs,
        "labels": teach and 3 + teach * (found.audio - found.features + found.held_out),
        "statistics": 0.1,
        "pretraining": update
        and _START
        + steps * update
        + trainings * found.schedule.epochs * found.held_out * forward,
        "analysis": forward and _REPORTS + _HEARD * forward * (models),
        "evaluation_sets": 3 + convert * every,
        "results": forward
        and sum(number.values()) * (_TESTS + 0.1 * every * forward / 3),
        "packing": 7.0,
        "upload": 0.0,
    }
    if options.recluster:
        # The first round's model, of the base's size, takes the teacher's place.
        heard = (found.audio + found.held_out) / max(1, min(jobs, _cores()))
        times["reclustering"] = (
            times["pretraining"]
            and forward
            and trials.dim
            and times["pretraining"]
            + forward * heard
            + clustering * trials.dim / _FLOPS / jobs
        )
    in_loop = heads_in_loop(options, trials)
    for name, (config, _, langs) in heads.items():
        head = read_yaml(config)
        audio = every / max(1, len(langs))
        updates = _head_updates(head, audio)
        store = every * (forward or 0.0) * _stored(options, trials)
        heard = in_loop * number[name] * _heard(head, updates) * (forward or 0.0)
        times[name] = trials.head and (
            number[name] * (_HEAD_START + updates * trials.head)
            + heard
            + store * (name == "asr_heads" and number[name] > 0)
        )
    return times


def _dropping(options: Options) -> list[str]:
    """Upstreams that drop something in train mode if the base does.

    What the recipe trains does not.
    """
    return [name for name in options.upstreams if name != "lamer"]


def heads_in_loop(options: Options, trials: Trials) -> float:
    """Return the share of heads whose upstream runs in every epoch, unstored."""
    if "train" not in options.upstream_mode or not trials.drops:
        return 0.0
    share = len(_dropping(options)) / max(1, len(options.upstreams))
    return share / len(options.upstream_mode)


def _stored(options: Options, trials: Trials) -> int:
    """Return how many upstreams' features are stored."""
    never = heads_in_loop(options, trials) and "eval" not in options.upstream_mode
    return len(options.upstreams) - (len(_dropping(options)) if never else 0)


def _heard(config: Mapping, updates: float) -> float:
    """Seconds of audio that a head's training hears, at five an utterance."""
    return 5 * updates * config.get("batch_size", 8) * config.get("accum_grad", 1)


def _cores() -> int:
    import os

    return os.cpu_count() or 1


def _head_updates(config: Mapping, audio: float) -> float:
    """Updates of a head; without a number of its own, by passes over the audio."""
    batches = config.get("num_iters_per_epoch")
    batches = batches or max(1, audio / 5 / config.get("batch_size", 8))
    return config["max_epoch"] * batches / config.get("accum_grad", 1)


def disk_bytes(
    options: Options, speech: Speech, found: Amounts, trials: Trials
) -> dict[str, float | None]:
    """Estimate what a run leaves on disk, by folder."""
    every = 3600 * sum(
        p.hours() for parts in speech.parts.values() for p in parts.values()
    )
    mini, models = options.corpus == "mini", _stored(options, trials)
    known = trials.base > 0
    size = 4 if options.store_dtype == "float32" else 2
    store = every * _FRAMES * (trials.dim or 0) * size * models if found.texts else 0
    heads = heads_of(options, found.texts, options.tracks)
    whole = trials.base + trials.trainable
    return {
        "data": converted_bytes(2.2 * every) if mini else 1e6 + speech.unpacked,
        "dump/raw": 1e6 if mini else converted_bytes(every),
        "dump/features": trials.teacher_dim
        and feature_bytes(trials.teacher_dim, round(found.features * _FRAMES)),
        "dump/feature_store": min(store, 1e9 * options.feature_store_gb * max(1, heads))
        if trials.dim
        else None,
        **_feature_cache(options, found, trials),
        "exp/ssl": experiment_bytes(trials.trainable) * (1 + bool(options.recluster))
        if known
        else None,
        "exp/heads": heads * head_bytes(trials.head_parameters, whole)
        if known
        else None,
        "exp/packed, exp/random": 4 * (8 * whole + trials.base) if known else None,
    }


def _feature_cache(
    options: Options, found: Amounts, trials: Trials
) -> dict[str, float | None]:
    """What ``feature_cache_gb`` of the config takes: float32, and nothing cropped."""
    limit = 1e9 * (read_yaml(options.ssl_config).get("feature_cache_gb") or 0)
    if not limit:
        return {}
    frames = _FRAMES * (found.audio + found.held_out)
    needed = trials.channels and min(limit, 4 * trials.channels * frames)
    return {"dump/feature_cache": needed}


def make_plan(options: Options, recipe: Recipe) -> list[str]:
    """Return the lines of a plan; nothing is written and nothing is run.

    Raises:
        RecipeError: The corpus cannot be read.
    """
    speech = find_speech(options)
    found = amounts(options, speech)
    trials = run_trials(options)
    lines = [f"Plan of {options.command(plan=None)}", f"machine: {machine(options)}"]
    lines += ["", f"Speech ({speech.source})", *_speech(options, speech, found)]
    lines += ["", "Training (computed)", *_training(options, found)]
    lines += ["", "What it takes", *_cost(options, recipe, speech, found, trials)]
    lacking = list(_lacking(options, speech, found, trials))
    lines += ["", "What cannot be done", *(lacking or ["  nothing is missing"])]
    return [*lines, "", f"To start: {options.command(plan=None)}"]


def _speech(options: Options, speech: Speech, found: Amounts) -> Iterator[str]:
    ends = [f"<={end}s" for end in BUCKETS] + [f">{BUCKETS[-1]}s"]
    if speech.measured:
        yield "  hours of all splits by length of utterance"
        yield f"  {'':5}{'all':>9}" + "".join(f"{end:>9}" for end in ends)
    for lang, parts in speech.parts.items():
        hours = sum(part.hours() for part in parts.values())
        row = [
            sum(column)
            for column in zip(*(p.buckets() for p in parts.values()), strict=True)
        ]
        columns = [hours, *row] if speech.measured else [hours]
        yield f"  {lang:5}" + "".join(f"{value:9.3f}" for value in columns)
    for lang, parts in speech.parts.items():
        role = "replay" if lang in options.replay_langs else "new"
        use = f"train {_hours(found.train[lang])}, dev {_hours(found.dev[lang])}"
        yield f"  {lang} ({role}): {use}"
        yield from _lost(options, lang, parts)
    yield from (f"  {remark}" for remark in speech.remarks)
    if (
        any(
            part.weight > 1
            for parts in speech.parts.values()
            for part in parts.values()
        )
        and speech.measured
    ):
        yield f"  (headers of about {HEADERS} files of a set stand for the others)"
    yield "  overlap with evaluation sets, silence and damage: unknown until read"


def _lost(options: Options, lang: str, parts: Mapping[str, Part]) -> Iterator[str]:
    low, high = shortest(options), options.max_duration
    whole = sum(part.hours() for part in parts.values())
    long = whole - sum(part.hours(high=high) for part in parts.values())
    short = whole - sum(part.hours(low=low) for part in parts.values())
    if long > 0:
        advice = "" if options.segment == "vad" else "; --segment vad cuts such files"
        yield f"    longer than {high:g} s: {_hours(3600 * long)} lost{advice}"
    if short > 0:
        yield f"    shorter than {low:g} s: {_hours(3600 * short)} lost"
    for part in parts.values():
        for why, count in part.broken.items():
            yield f"    {why}: {round(count * part.weight)} files lost"


def _training(options: Options, found: Amounts) -> Iterator[str]:
    schedule, audio = found.schedule, found.audio
    passes = schedule.updates * found.per_update / audio if audio else 0.0
    rule = f"--passes {options.passes:g}" if options.passes else options.ssl_config
    yield f"  {_hours(audio)} to train on, {_hours(found.held_out)} to validate"
    yield f"  units: K = {options.n_clusters} of {_hours(found.features)}"
    yield (
        f"  updates: {schedule.updates:,} of {found.per_update:g} s in "
        f"{schedule.epochs} epochs, warm-up {schedule.warm_up:,} ({rule}); "
        f"{passes:.1f} passes over the speech"
    )
    yield f"  experts: {options.allocation or 'none, the whole model trains'}"
    if options.allocation == LEARNT:
        trial = trial_schedule(schedule.updates).updates
        yield f"    by a trial of {trial:,} updates, with twice as many; not timed here"
    if options.recluster:
        yield (
            f"  --recluster {options.recluster}: then as many updates again, on K = "
            f"{options.n_clusters} units of layer {options.recluster} of that model"
        )


def _cost(options, recipe, speech, found, trials) -> Iterator[str]:
    times = stage_seconds(options, speech, found, trials)
    chosen = chosen_stages(recipe.stages_of(options), options)
    kind = "GPU" if options.ngpu else "CPU"
    for stage in chosen:
        seconds = times.get(stage.name)
        known = "not measured" if seconds is None else _span(seconds)
        yield f"  {stage.number:>2}  {stage.title:<34}{known:>14}"
    told = [times[s.name] for s in chosen if times.get(s.name) is not None]
    missing = len(chosen) - len(told)
    more = f", and {missing} stages that were not measured" if missing else ""
    yield f"      {'total':<34}{_span(sum(told)):>14}{more}"
    yield f"  {kind} hours: {sum(told) / 3600:.2f}{more}"
    sizes = disk_bytes(options, speech, found, trials)
    for name, size in sizes.items():
        known = "not known" if size is None else f"{size / 1e9:.3f} GB"
        yield f"  disk  {name:<32}{known:>14}"
    total = sum(size or 0 for size in sizes.values())
    yield f"        {'total of what is known':<32}{total / 1e9:>11.3f} GB"
    if trials.peak:
        yield f"  memory: {trials.peak / 1e9:.2f} GB at most in the trial (measured)"
    measured = {
        "a second of audio in an update": trials.update,
        "... of the control": trials.control,
        "... through the teacher": trials.teacher,
        "... through the base": trials.forward,
        "an update of a head": trials.head,
    }
    for name, value in measured.items():
        if value is not None:
            yield f"  measured: {name}: {value:.4f} s"
    if "train" in options.upstream_mode and trials.forward:
        share = heads_in_loop(options, trials)
        why = f"runs in every epoch of {share:.0%} of the heads, which is counted"
        why = why if trials.drops else "drops nothing: its features are stored"
        yield f"  --upstream_mode train: the base {why}"
    yield "  computed: all else, from these, the counts, and rates of the mini preset's"
    yield "  run on two cores for stages 0-2, 8, 9, 12 and 13"


def _lacking(options, speech, found, trials) -> Iterator[str]:
    for why in trials.why:
        yield f"  {why}"
    if not speech.measured and options.corpus != "mini":
        yield "  hours of these corpora are not counted before stage 1 has read them"
    for lang in options.langs:
        if not found.train[lang]:
            yield f"  {lang}: no usable training speech: stage 2 will stop"
        elif lang not in found.texts and lang in eval_langs(options):
            yield f"  {lang}: no text in every split: no speech recognition (ASR)"
    if alone(options):
        yield "  one language only: no language identification (LID)"
    frames = found.features * _FRAMES
    if frames < _FRAMES_PER_CLUSTER * options.n_clusters:
        fits = int(frames / _FRAMES_PER_CLUSTER)
        yield (
            f"  --n_clusters {options.n_clusters}: {frames / options.n_clusters:.0f} "
            f"frames per cluster are few; with these hours at most {fits}"
        )
    if found.schedule.updates == 0:
        yield f"  {options.ssl_config}: no num_iters_per_epoch: updates not known"


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.2f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _span(seconds: float) -> str:
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.0f} s"
