"""``--plan true``: what a run would take, lose and lack, before it begins."""

from collections.abc import Iterator, Mapping

from espnet2_lamer.recipe.benchmark import alone, eval_langs
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.plan_costs import (
    FRAMES,
    Amounts,
    amounts,
    disk_bytes,
    heads_in_loop,
    seconds_of_another_seed,
    stage_seconds,
)
from espnet2_lamer.recipe.plan_parts import BUCKETS, HEADERS, Part, Speech
from espnet2_lamer.recipe.plan_speech import find_speech, shortest
from espnet2_lamer.recipe.plan_trial import machine, run_trials
from espnet2_lamer.recipe.runner import chosen_stages
from espnet2_lamer.recipe.schedule import trial_schedule
from espnet2_lamer.recipe.settle import LEARNT
from espnet2_lamer.recipe.stage import Recipe

# Frames per cluster below which a cluster is hardly more than a handful of utterances.
_FRAMES_PER_CLUSTER = 500


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
    again = seconds_of_another_seed(options, [s.name for s in chosen], times)
    if again is not None:
        yield (
            f"  another seed of pretraining with its heads: {_span(again)}, of which "
            "bin.experiment runs several"
        )
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
    frames = found.features * FRAMES
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
