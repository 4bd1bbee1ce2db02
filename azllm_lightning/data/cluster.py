"""Prepare more text than one machine should read, as tasks that share a folder.

Four stages give the same files as `pipeline.prepare`: many tasks read and clean, one chooses the
documents and trains the tokenizer, many tokenize, one writes the shards. The stages are steps for
the executors of datatrove (https://github.com/huggingface/datatrove): LocalPipelineExecutor,
SlurmPipelineExecutor and RayPipelineExecutor. Those start the tasks, and skip the completed ones
when they are started again; a task that was killed continues after its last block.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.blocks import CleanBlock, Position, read_arrays, write_arrays
from azllm_lightning.data.building import (
    Part,
    Selected,
    clean_blocks,
    list_removed,
    make_tokenizer,
    select,
    tokenize,
    write_shards,
)
from azllm_lightning.data.corpus import no_text, stream_files, streams
from azllm_lightning.data.pipeline import (
    content_key,
    has_changed,
    is_prepared,
    made_from,
    prepared_folder,
    publish,
)
from azllm_lightning.data.shards import SPLITS
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.data.workers import Workers

Range = tuple[int, int]
"""The files from the first number up to the second."""


Step = Callable[[object, int, int], Iterator[Path] | None]
"""Does the work of a task; its arguments are (data, rank, number of tasks)."""


@dataclass(frozen=True)
class Job:
    """What all tasks know: the text, where the result goes, and which files each task reads.

    `shared` is a folder that all tasks can write, and `ranges` has for each stream of text one
    range of files per task. `key` changes when the text or its settings do; `made_from` is for the
    manifest.
    """

    config: DataConfig
    folder: Path
    shared: Path
    key: str
    made_from: dict[str, Any]
    ranges: tuple[tuple[Range, ...], ...]

    @property
    def unfinished(self) -> Path:
        """The folder that gets the name `folder` when it is complete."""
        return self.shared / "unfinished"

    @property
    def work(self) -> Path:
        """Blocks of documents and of tokens, removed at the end."""
        return self.shared / "work"

    def workers(self) -> Workers:
        """The processes of one task: one, or as many as data.prepare_workers."""
        return Workers(self.config.prepare_workers or 1)


# These are plain functions for datatrove: `data` is the documents of an earlier step, of which
# there is none. A generator is read to its end by the executor.


@dataclass(frozen=True)
class Clean:
    """Reads and cleans the files of a task; yields the path of each block that it has finished."""

    job: Job

    def __call__(self, data: object, rank: int, world_size: int) -> Iterator[Path]:
        """Do the work of task `rank`."""
        job = self.job
        if is_prepared(job.folder):
            return
        assert all(len(ranges) == world_size for ranges in job.ranges)
        if content_key(job.config) != job.key:
            raise ValueError(_changed())
        with job.workers() as workers:
            for path, _ in _blocks(job, rank, workers):
                yield path


def _changed() -> str:
    return tr(
        "the text in data.path has changed since the tasks were planned; start the script again"
    )


@dataclass(frozen=True)
class Select:
    """Chooses the documents to keep, among the blocks of all tasks, and trains the tokenizer."""

    job: Job

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        """Do the work of the only task."""
        job = self.job
        if is_prepared(job.folder):
            return
        selected = select(job.config, lambda stream: _all_blocks(job, stream))
        for part in selected.parts:
            write_arrays(_kept_path(part.path), {}, part.documents)
        job.unfinished.mkdir(exist_ok=True)
        if job.config.has_filters:
            list_removed(job.unfinished, selected, None)
        make_tokenizer(job.config, job.unfinished, selected)
        content = {
            "parts": [part.path.relative_to(job.work).as_posix() for part in selected.parts],
            "text_bytes": selected.text_bytes,
            "counts": selected.counts,
        }
        _write_json(job.work / "selected.json", content)


@dataclass(frozen=True)
class Tokenize:
    """Tokenizes the parts number `rank`, `rank` + `world_size`, ..."""

    job: Job

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        """Do the work of task `rank`."""
        job = self.job
        if is_prepared(job.folder):
            return
        with job.workers() as workers:
            tokenize(job.unfinished, _tokenizer(job), _selected(job, rank, world_size), workers)


@dataclass(frozen=True)
class Write:
    """Writes the shards and the manifest, and removes what the other stages left."""

    job: Job

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        """Do the work of the only task."""
        job = self.job
        if not is_prepared(job.folder):
            tokenizer = _tokenizer(job)
            selected = _selected(job)
            with job.workers() as workers:  # which finds all tokens, unless a file is damaged
                segments = tokenize(job.unfinished, tokenizer, selected, workers)
            if has_changed(job.config, job.made_from):
                raise ValueError(_changed())
            write_shards(job.unfinished, tokenizer, selected, segments, job.made_from)
            publish(job.unfinished, job.folder)
        shutil.rmtree(job.work, ignore_errors=True)


@dataclass(frozen=True)
class Stage:
    """A step for datatrove, how many tasks do it, and a folder for their logs and completions."""

    name: str
    step: Step
    tasks: int
    logs: Path


def stages(config: DataConfig, tasks: int) -> list[Stage]:
    """The stages of preparing `config` with `tasks` tasks, to be run in this order.

    What an earlier start of the same stages has finished is kept in a hidden folder next to that
    of the data. Raises ValueError for text that only one machine can read, and if the text cannot
    be found.
    """
    if config.name == "tales":
        raise ValueError(tr("data=tales generates its own text; set data.path"))
    if config.repeated_lines is not None:
        raise ValueError(
            tr(
                "data.repeated_lines={value}: several tasks cannot count lines; omit it",
                value=config.repeated_lines,
            )
        )
    if config.max_bytes is not None:
        raise ValueError(
            tr("data.max_bytes={value}: several tasks read all the text", value=config.max_bytes)
        )
    if tasks < 1:
        raise ValueError(tr("tasks={value}: must be at least 1", value=tasks))
    folder = prepared_folder(config).absolute()
    job = Job(
        config=config,
        folder=folder,
        shared=folder.with_name(f".azllm-{folder.name}.tasks"),
        key=content_key(config),
        made_from=made_from(config),
        ranges=tuple(
            split_evenly([file.size() for file in stream_files(stream)], tasks)
            for stream in streams(config)
        ),
    )
    _start(job)
    steps: tuple[Step, ...] = (Clean(job), Select(job), Tokenize(job), Write(job))
    return [
        Stage(
            name=type(step).__name__.lower(),
            step=step,
            tasks=tasks if isinstance(step, Clean | Tokenize) else 1,
            logs=job.shared / "logs" / f"{number}_{type(step).__name__.lower()}",
        )
        for number, step in enumerate(steps, 1)
    ]


def pipeline(
    config: DataConfig,
    tasks: int,
    executor: Callable[..., Any],
    alone: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """The last of four executors, each of which depends on the one before: `.run()` runs all.

    `executor` is a class of datatrove.executor and `options` are its own, such as `workers`, or
    `time` and `partition`; `alone` changes them for the two stages of one task, which may need
    more memory and cores. Raises ValueError as `stages` does.
    """
    last = None
    for stage in stages(config, tasks):
        own = dict(options)
        if isinstance(stage.step, Select | Write):
            own |= alone or {}
        if "workers" in own:
            own["workers"] = min(own["workers"], stage.tasks)
        if "job_name" in inspect.signature(executor).parameters:
            own["job_name"] = f"{own.get('job_name', 'azllm')}-{stage.name}"
        last = executor(
            pipeline=[stage.step],
            tasks=stage.tasks,
            logging_dir=str(stage.logs),
            depends=last,
            **own,
        )
    return last


def split_evenly(sizes: Sequence[int], count: int) -> tuple[Range, ...]:
    """`count` consecutive ranges of files of these sizes, with about as many bytes each."""
    ends = np.cumsum(sizes, dtype=np.float64)
    middles = ends - np.asarray(sizes) / 2
    bounds = np.searchsorted(middles, np.arange(count + 1) * (ends[-1] / count))
    bounds[-1] = len(sizes)
    bounds[0] = 0
    return tuple((int(start), int(stop)) for start, stop in pairwise(bounds))


def _start(job: Job) -> None:
    """Make the shared folder, unless an earlier start of the same job left it."""
    if is_prepared(job.folder):
        return
    plan = {"key": job.key, "ranges": [[list(each) for each in ranges] for ranges in job.ranges]}
    path = job.shared / "plan.json"
    is_same = path.is_file() and json.loads(path.read_text(encoding="utf-8")) == plan
    if is_same and job.work.is_dir():
        return
    shutil.rmtree(job.shared, ignore_errors=True)
    job.work.mkdir(parents=True)
    _write_json(path, plan)


def _blocks(
    job: Job, task: int, workers: Workers, only: int | None = None
) -> Iterator[tuple[Path, CleanBlock]]:
    """The clean blocks of a task, of the stream `only` or of all, and their files."""
    work = job.work / f"{task:05d}"
    work.mkdir(exist_ok=True)
    for stream, ranges in enumerate(job.ranges):
        if only in (stream, None):
            start, stop = ranges[task]
            yield from clean_blocks(job.config, Position(stream, start), stop, work, workers)


def _all_blocks(job: Job, stream: int) -> Iterator[tuple[Path, CleanBlock]]:
    """The blocks of all tasks, as one process that reads all files would give them."""
    texts = 0
    before: Counter[str] = Counter()
    with job.workers() as workers:
        for task in range(len(job.ranges[stream])):
            counts = before
            for path, block in _blocks(job, task, workers, only=stream):
                texts += len(block.pieces)
                counts = before + Counter(block.end.counts)
                yield path, replace(block, end=replace(block.end, counts=dict(counts)))
            before = counts
    if not texts:
        raise no_text(streams(job.config)[stream], job.ranges[stream][-1][1])


def _selected(job: Job, first: int = 0, step: int = 1) -> Selected:
    """What `Select` chose: every `step`th part from `first` on, and about as much of the bytes."""
    content = json.loads((job.work / "selected.json").read_text(encoding="utf-8"))
    parts = []
    for name in content["parts"][first::step]:
        kept = read_arrays(_kept_path(job.work / name), SPLITS)
        assert kept is not None
        parts.append(Part(job.work / name, kept[1]))
    text_bytes = Counter({name: count // step for name, count in content["text_bytes"].items()})
    return Selected(parts, text_bytes, Counter(content["counts"]))


def _kept_path(block: Path) -> Path:
    return block.with_suffix(".kept.npz")


def _tokenizer(job: Job) -> Tokenizer:
    return Tokenizer.from_file(job.unfinished / "tokenizer.json")


def _write_json(path: Path, content: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(path)
