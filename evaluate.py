"""Accuracy of a model on questions about images, with or without an intervention on its attention.

    python evaluate.py --limit 100              (the embedded model; data/spatial_reasoning, or else a generated set)
    python evaluate.py --method var --var-dimensions 21 30 --var-threshold 2 --var-head 1 --limit 100
    python evaluate.py --dataset pope --limit 400 --max-new-tokens 8
    python evaluate.py --dataset blink --data-root DATA --model Qwen/Qwen2.5-VL-7B-Instruct --judge string_match
    torchrun --nproc-per-node 2 evaluate.py --device cpu --limit 100
    accelerate launch --multi_gpu --num_processes 8 evaluate.py --device cuda --dataset sat2 --data-root DATA

predictions.jsonl has one line per record (and rotation of its options, with --circular), summary.json the accuracy with
its interval over all and per sub-task, unparsed answers, and skipped or failed records by reason; where all golds are
yes or no also precision, recall, F1 and yes-ratio, and under --judge chair the rates of absent objects. A record that
runs out of memory in a batch of its own counts as failed. `cut` marks an answer that --max-new-tokens cut. The same
command resumes a killed run, with any number of processes and any --batch-size; for a finished one it prints the
summary.
Another model, code of a --runner, question, image or setting is an error, and so is a second run in the same folder.
--limit may grow: the records are taken in the set's order. compare_runs.py compares two runs.
The embedded model answers some twenty records a second on one core.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

import models
from analysis import chair, command, yes_no
from analysis.evaluation import (
    Key,
    Part,
    Predictions,
    constant_gold,
    digest,
    figures_line,
    in_order,
    lock,
    summarise_run,
)
from analysis.judges import JUDGES, JudgeSettings, check_golds
from analysis.processes import Team, own_device, team
from analysis.report import ANSWER, write_report
from analysis.report import NAME as PAGE
from analysis.resume import attempt
from analysis.runs import flat_flags
from data import pope, spatial_qa, twoshapes_pope, twoshapes_qa
from data.errors import InputError, Skip, check_at_least
from data.folders import Source, following_links
from data.gaze_samples import GazeSource, points_of, print_unread, read_for
from data.scanpaths import Scanpaths
from data.spatial_qa import Question, Questions, find_root, published_set, source_of
from models import answering as runners
from models.answering import Decoding, ModelBackend, Reply, RunnerBackend
from models.folders import content_hash, contents
from models.interventions import sum_by_layer
from models.loading import Load, describe, locate, quiet, read_config
from models.methods import MethodSettings

EXAMPLES, EXAMPLE_COUNT = Path("data", "generated", "spatial-500-seed-0"), 500
POPE_EXAMPLES, POPE_IMAGES = Path("data", "generated", "pope-100-seed-0"), 100
DEFAULT_MODEL = "tiny-qwen2.5-vl"
# Flags that do not decide answers or verdicts; all others do.
DECIDE_NOTHING = ("device", "limit", "follow_links", "batch_size", "retry_failed", "out_dir")


@dataclass(frozen=True)
class Config:
    load: Load = Load(model=DEFAULT_MODEL)
    questions: Questions = Questions(dataset=None, limit=0)
    judging: JudgeSettings = JudgeSettings(judge="choice", circular=False)
    decoding: Decoding = Decoding(max_new_tokens=512, temperature=0.0, top_p=1.0)
    steering: MethodSettings = MethodSettings(method="default")
    runner: str | None = None
    """Your own model instead of --model: python:module:callable; see models/answering.py."""
    batch_size: int = 8
    """Batch size; does not affect predictions in float32 (half precision may round differently)."""
    retry_failed: bool = False
    """In a resumed run, retry the records that failed."""
    out_dir: str | None = None
    """Folder for the results (default: results/evaluate/<dataset>-<method>-<model>-<hash of the settings>)."""

    def __post_init__(self) -> None:
        check_at_least(self, batch_size=1)
        if self.runner is not None:
            runners.parse(self.runner)
            if self.steering.method != "default":
                raise ValueError(f"--method {self.steering.method} cannot steer a --runner; leave --method out")
            if self.load.model != DEFAULT_MODEL:
                raise ValueError("--runner and --model were both given; choose one")

    def deciding(self) -> dict:
        """Flags that decide answers or verdicts, with hashes of the files and code that they name; for a model on the
        hub its commit. Those of other methods are at their defaults and are left out, so that a new method changes
        nothing. Raises FileNotFoundError for a file or model that does not exist."""
        unread = {*DECIDE_NOTHING, *self.steering.unread()}
        flags = {name: value for name, value in flat_flags(self).items() if name not in unread}
        hashes, model = self.steering.method_contents(), self.load.model
        if self.runner is not None:
            hashes["code of --runner"] = runners.code(self.runner)
        elif known := contents(locate(model)):
            hashes["content of --model"] = known
        else:
            with quiet():
                hashes["commit of --model"] = read_config(model, model, self.load.revision)._commit_hash
        return {f"--{name.replace('_', '-')}": value for name, value in flags.items()} | hashes


def main(config: Config) -> int:
    with team() as processes:
        return evaluate(config, processes)


def evaluate(config: Config, processes: Team) -> int:
    """Run this process's share of the work; the leading process then makes the tables of all shares.

    The run's folder is locked against other runs from the first read to the end.
    """
    with ExitStack() as held:
        with command.setting_up(), following_links(config.questions.follow_links):
            device = own_device(config.load.device, processes)
            config, made_here = data_of(config, processes)
            dataset, data_root, limit = config.questions.dataset, config.questions.data_root, config.questions.limit
            questions, skipped = spatial_qa.read(dataset, data_root, limit)
            source = source_of(dataset, data_root, len(questions), len(skipped), limit, made_here=made_here)
            if processes.leads:
                print(source)
            print_skipped(skipped if processes.leads else [])
            if not questions:
                reasons = listed(Counter(skip.reason for skip in skipped)) or "the set is empty"
                sys.exit(command.stop(f"no record can be used: {reasons}", command.NOTHING_USABLE))
            check_golds(config.judging.judge, (question.answer for question in questions))
            requests = {
                (question.id, shift): question.rotated(shift)
                for question in questions for shift in rotations(question, config)
            }  # fmt: skip
            deciding = config.deciding()
            folder = Path(config.out_dir or default_out_dir(config, deciding))
            processes.lead(lambda: begin(held, folder, deciding, requests))
            predictions = Predictions(folder, deciding)
            answered = predictions.answered()
            remaining = [
                key for key in requests if key not in answered or (config.retry_failed and answered[key]["failed"])
            ]
            if remaining:
                backend, about = prepare(config, device, requests, verbose=processes.leads)
                predictions.check_model(about)
        if remaining:
            answer_remaining(predictions, backend, about, requests, remaining, config, processes)
        return conclude(predictions, requests, skipped, config, processes, source) if processes.leads else 0


def begin(held: ExitStack, folder: Path, deciding: dict, requests: dict[Key, Question]) -> None:
    """Lock the folder for as long as `held` lasts, and check that its content belongs to this run.

    Raises ValueError if it does not, or if another run holds the folder.
    """
    held.enter_context(lock(folder))
    predictions, broken = Predictions(folder, deciding), Counter()
    check_same(requests, predictions.answered(broken=broken), predictions)
    if broken:
        where = ", ".join(f"{name} ({count})" for name, count in sorted(broken.items()))
        print(f"warning: {broken.total()} lines that are no answers were left out: {where}", file=sys.stderr)


def answer_remaining(
    predictions: Predictions, backend, about: dict, requests: dict[Key, Question], remaining: Sequence[Key],
    config: Config, processes: Team,
) -> None:  # fmt: skip
    """Write settings.json, then this process's share of the answers; return once all processes have."""
    processes.wait()  # all processes read before one writes
    if processes.leads:
        if versions := predictions.other_versions():
            print(f"note: the answers so far were made with {versions}", file=sys.stderr)
        predictions.start(flat_flags(config), about)
    processes.wait()
    with command.setting_up():
        part = predictions.part(processes.rank)
    with closing(part):
        answer_all(part, backend, requests, processes.share(remaining), config, shown=processes.leads)
    processes.wait()


def rotations(question: Question, config: Config) -> range:
    """Numbers of places by which the options of a question are rotated, one per generation."""
    return range(len(question.options) if config.judging.circular and question.can_rotate else 1)


def data_of(config: Config, processes: Team) -> tuple[Config, bool]:
    """Config with its data set and data root, and whether the set is generated.

    Without --dataset the set is that of data/spatial_reasoning if present, else one that the leading process generates,
    as for `--dataset pope` without data/pope.
    """

    def reading(dataset: str, data_root: str | None) -> Config:
        return replace(config, questions=replace(config.questions, dataset=dataset, data_root=data_root))

    dataset = config.questions.dataset
    if dataset == pope.NAME and find_root(dataset, config.questions.data_root) is None:
        generate_once(POPE_EXAMPLES, partial(twoshapes_pope.generate, count=POPE_IMAGES, seed=0), processes)
        return reading(dataset, str(POPE_EXAMPLES)), True
    if dataset is not None:
        return reading(dataset, find_root(dataset, config.questions.data_root)), False
    if (published := published_set()) is not None:
        return reading(*published), False
    generate_once(EXAMPLES, partial(twoshapes_qa.generate, count=EXAMPLE_COUNT, seed=0), processes)
    return reading("blink", str(EXAMPLES)), True


def generate_once(folder: Path, generate: Callable[[Path], None], processes: Team) -> None:
    """Generate a set in `folder` unless it is there: the leading process does, the others wait for it."""
    if processes.leads and not folder.exists():
        try:
            generate(folder)
        except OSError:
            if not folder.exists():  # else another run was faster
                raise
    processes.wait()


def default_out_dir(config: Config, deciding: dict) -> Path:
    """Default folder, the same for the same settings, so that the same command resumes the run."""
    dataset, model = Path(config.questions.dataset).stem, Path(config.runner or config.load.model).name
    names = (dataset, config.steering.method, model, digest(deciding)[:8])
    return Path("results", "evaluate", "-".join(re.sub(r"[^\w.-]", "-", name) for name in names))


def check_same(requests: dict[Key, Question], answered: dict[Key, dict], predictions: Predictions) -> None:
    """Compare the stored answers with the current records. Raises ValueError for missing or changed records.

    The images of failed records are not compared: these have no answer.
    """
    hashes: dict[str, list[str]] = {}  # by record, since its rotations share them
    for key, record in answered.items():
        question = requests.get(key)
        if question is None:
            raise ValueError(
                f"{predictions.folder} holds answers to records that are not asked now, such as {key[0]!r}: pass a "
                "--limit as large as before, or another --out-dir"
            )
        changed = [name for name, value in about_question(question).items() if value != record[name]]
        if record["failed"] is None and not changed:
            if question.id not in hashes:
                hashes[question.id] = image_hashes(question)
            changed = ["images"] if hashes[question.id] != record["image_hashes"] else []
        if changed:
            raise InputError(
                "record-changed",
                f"record {key[0]!r} of the set has changed since it was answered ({', '.join(changed)}); pass another "
                "--out-dir",
            )


def about_question(question: Question) -> dict:
    """Fields of a question in a line of the predictions."""
    return {
        "task": question.task, "prompt": question.prompt, "gold": question.answer, "options": list(question.options),
    }  # fmt: skip


def image_hashes(question: Question) -> list[str]:
    """Hash of each image's bytes, in order; "" for an unreadable file."""

    def hashed(image: Path | bytes) -> str:
        try:
            return content_hash(image) if isinstance(image, bytes) or image.is_file() else ""
        except OSError:  # reading the image gives the reason
            return ""

    return [hashed(image) for image in question.images]


def prepare(config: Config, device: str, requests: dict[Key, Question], verbose: bool):
    """Object that answers the questions, and its description for settings.json; `verbose`: print skipped scanpaths.

    Raises ValueError for settings that do not fit the model or the data.
    """
    if config.runner is not None:
        runner = runners.load(config.runner)
        about = {"name": config.runner, "revision": None, "family": "runner", "dtype": None}
        return RunnerBackend(runner, config.decoding), about
    known = None
    if (scanpaths := config.steering.scanpaths) is not None:
        known = read_for(requests.values(), scanpaths, config.questions.data_root, **config.steering.selection)
        if verbose:
            print(GazeSource.of([scanpaths], {"": known}))
            print_unread({scanpaths: known})
            command.print_left_out({"scanpaths": Counter(skip.reason for skip in known.skipped)})
    with quiet():
        checkpoint = read_config(locate(config.load.model), config.load.model, config.load.revision)
    settings = config.steering.method_settings(checkpoint)
    model, processor = models.load(config.load.model, **config.load.options | {"device": device})
    if (system_prompt := config.decoding.system_prompt) is not None:
        model.prepare(processor, [Image.new("RGB", (64, 64))], "a", system_prompt)  # raises if the template drops it
    about = describe(model)
    if known is not None and model.image_grid(processor, 64, 64) is None:
        raise ValueError(f"--method {config.steering.method} needs a known image grid: {models.PATCHED}")
    gaze_of = None if known is None else partial(gaze_points, requests, known, config)
    steer = config.steering.method_steering(settings, model, gaze_of)
    return ModelBackend(model, processor, config.decoding, steer), about


def gaze_points(requests: dict[Key, Question], known: Scanpaths, config: Config, key: Key, grids) -> tuple[list, str]:
    """Gaze points of a question's scanpath, or none and the reason."""
    return points_of(requests[key], known, grids, **config.steering.mapping)


def answer_all(
    part: Part, backend, requests: dict[Key, Question], keys: Sequence[Key], config: Config, shown: bool
) -> None:
    """Answer batch by batch and write each batch before the next."""

    def answer_batch(batch: Sequence[Key]) -> list[Reply]:
        questions = [requests[key] for key in batch]
        return backend.answer(
            batch, [question.prompt for question in questions], [question.load_images() for question in questions]
        )

    size = 1 if config.runner else config.batch_size  # a runner is not called again after the failure of another record
    with tqdm(total=len(keys), unit="record", disable=not shown) as progress:
        for first in range(0, len(keys), size):
            batch = keys[first : first + size]
            hashes = [image_hashes(requests[key]) for key in batch]  # before the answers, to detect a later change
            replies = attempt(answer_batch, batch)
            part.append(
                {**record(key, requests[key], reply, config), "image_hashes": of_images}
                for key, reply, of_images in zip(batch, replies, hashes, strict=True)
            )
            progress.update(len(batch))


def record(key: Key, question: Question, reply: Reply | Exception, config: Config) -> dict:
    """Line of the predictions without image hashes; a failed record is also reported on stderr."""
    about = {"id": question.id, **about_question(question), "rotation": key[1]}
    if isinstance(reply, Exception):
        tqdm.write(f"failed {question.id}: {reply}", file=sys.stderr)
        nothing = {"prediction": None, "value": "", "parsed": False, "correct": False}
        return {**about, **nothing, "failed": reply.reason, "cut": None, "touched": {}}
    verdict = JUDGES[config.judging.judge](reply.text, question.answer, question.options)
    answer = {"prediction": reply.text, "value": verdict.value, "parsed": verdict.parsed, "correct": verdict.correct}
    return {**about, **answer, "failed": None, "cut": reply.cut, "touched": reply.changes}


def conclude(
    predictions: Predictions, keys: Mapping[Key, Question], skipped: Sequence[Skip], config: Config, processes: Team,
    source: Source,
) -> int:  # fmt: skip
    """Write the tables of all parts and the page, and print the summary; return the exit status."""
    answered = predictions.answered(processes.size)
    if lost := [key for key in keys if key not in answered]:
        sentence = f"{len(lost)} of {len(keys)} answers are not there; start the same command again to ask for them"
        return command.stop(sentence, command.NOTHING_USABLE)
    rows = [answered[key] for key in keys]
    layers = sum_by_layer(row for answered in rows for row in answered["touched"].get("layers", ()))
    origin = origins(config, source, keys)
    further = {**yes_no.summarise(rows), **(chair.summarise(rows) if config.judging.judge == "chair" else {})}
    cautioned = cautions(keys.values(), rows, config)
    summary = {**summarise_run(rows, skipped), "layers": layers, **cautioned, **origin, **further}
    page = predictions.folder / PAGE
    if predictions.merge(in_order(rows), summary) or not page.is_file():
        write_report(predictions.folder, rows=[page_row(keys[key], answered[key]) for key in keys])
    print_summary(summary)
    warn_cut(summary["overall"], config)
    if config.steering.method != "default":
        print_steered(summary["touched"].get("steered", 0), sum(row["failed"] is None for row in rows))
    print(f"results in {predictions.folder}, to look at in {page}")
    return command.NOTHING_USABLE if all(row["failed"] is not None for row in rows) else 0


def cautions(questions: Iterable[Question], rows: Sequence[dict], config: Config) -> dict:
    """Counts by reason of images left out and of questions without rotation under --circular, and warnings about
    the set."""
    known = {question.id: question for question in questions}.values()
    fixed = (
        [question for question in known if len(question.options) > 1 and not question.can_rotate]
        if config.judging.circular
        else []
    )
    return {
        "notes": dict(sorted(Counter(note for question in known for note in question.notes).items())),
        "asked_once": {"options name other options": len(fixed)} if fixed else {},
        "warnings": [warning] if (warning := constant_gold(rows)) else [],
    }


def origins(config: Config, source: Source, requests: Mapping[Key, Question]) -> dict:
    """Origin of the questions and, under a gaze method, of the fixations, for summary.json and the page."""
    if (scanpaths := config.steering.scanpaths) is None:
        return {"data": source.facts()}
    known = read_for(requests.values(), scanpaths, config.questions.data_root, **config.steering.selection)
    return {"data": source.facts(), "fixations": GazeSource.of([scanpaths], {"": known}).facts()}


def page_row(question: Question, answer: dict) -> dict:
    """Row of a record on the page."""
    [image, *_] = question.images
    shown = {name: answer[name] for name in ANSWER} | {"cut": "cut" if answer["cut"] else ""}
    return {"sample": question.id, "image": image if isinstance(image, Path) else None, **shown}


def print_summary(summary: dict) -> None:
    print(figures_line("all", summary["overall"]))
    for task, figures in summary["tasks"].items() if len(summary["tasks"]) > 1 else ():
        print(figures_line(task or "(no sub-task)", figures))
    for line in (
        *(yes_no.lines(summary["yes_no"]) if "yes_no" in summary else ()),
        *(chair.lines(summary["chair"]["overall"]) if "chair" in summary else ()),
    ):
        print(line)
    for kind in ("failed", "skipped", "touched"):
        if summary[kind]:
            print(f"{kind}: {listed(summary[kind])}")
    for kind in ("notes", "asked_once"):
        if summary[kind]:
            print(f"{kind.replace('_', ' ')}: {listed(summary[kind])}", file=sys.stderr)
    for warning in summary["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    for row in summary["layers"]:
        print(", ".join(f"{name.replace('_', ' ')} {count}" for name, count in row.items()))


def warn_cut(overall: Mapping, config: Config) -> None:
    """Warn on stderr if the token limit cut answers."""
    if overall["cut"]:
        print(
            f"warning: {overall['cut']} of {overall['n']} records have an answer that --max-new-tokens "
            f"{config.decoding.max_new_tokens} cut, judged as it stands (cut: true in predictions.jsonl); pass a "
            "larger limit",
            file=sys.stderr,
        )


def print_steered(steered: int, answers: int) -> None:
    print(f"steered {steered} of {answers} answers")
    if steered == 0:
        print("warning: the method changed nothing, so these are answers of the model as it is", file=sys.stderr)


def print_skipped(skipped: Sequence[Skip]) -> None:
    for skip in skipped:
        print(f"skipped {skip.id}: {skip.reason}", file=sys.stderr)


def listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


if __name__ == "__main__":
    command.run(main, Config, __doc__)
