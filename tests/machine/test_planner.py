"""The verb plan, for the machine of a check.json: nothing is measured."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from azllm_lightning.cli.composition import conf_dir
from azllm_lightning.cli.messages import use_language
from azllm_lightning.config.compose import compose
from azllm_lightning.config.optimizer import MuonConfig
from azllm_lightning.config.verbs import PlanConfig
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.data.typed import check_typed
from azllm_lightning.machine.checkup import Checkup
from azllm_lightning.machine.plan_table import plan_table
from azllm_lightning.machine.planner import figures, make_plan, overrides_of, task_of
from azllm_lightning.planning import rule
from azllm_lightning.planning.choice import VAL_WINDOWS, Choice, Task
from azllm_lightning.planning.choice import planned as planned_run
from azllm_lightning.planning.speed import Speed
from azllm_lightning.planning.survey import Text
from azllm_lightning.training import hardware
from azllm_lightning.training.batch import divides_a_step

SKIPPED = {"status": "skipped", "reason": "not asked for", "seconds": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plan")


@pytest.fixture(scope="module")
def text(folder: Path) -> Path:
    lines = [f"Sətir {i}. Bakı Xəzər dənizinin sahilində yerləşir." for i in range(2000)]
    path = folder / "kitab evi.txt"
    path.write_text("\n\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def check(folder: Path) -> Path:
    """What a check of a machine with a GPU found, without steps."""
    gpu = {"name": "NVIDIA T4", "memory_bytes": 15.8e9, "compute_capability": "7.5"}
    machine = {"device": "cuda", "gpus": [gpu], "cpu_cores": 2, "cpu_model": "CPU"}
    rates = {"fp32": 8e12, "bf16": None, "fp16": 24e12}
    findings: dict[str, Any] = {
        "format_version": 1,
        "overrides": ["experiment=t4"],
        "machine": {**machine, "memory_bytes": 13e9},
        "products": {
            "status": "ok",
            "types": {name: {"flops_per_second": rate} for name, rate in rates.items()},
        },
        **dict.fromkeys(("disk", "data", "steps", "resume", "compile"), SKIPPED),
    }
    path = folder / "check.json"
    path.write_text(json.dumps(findings), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def planned(text: Path, check: Path) -> dict[str, Any]:
    return plan(text, check, "hours=1")


def plan(text: Path, check: Path, *typed: str) -> dict[str, Any]:
    return make_plan(compose([f"data.path={text}", f"check={check}", *typed], "plan"))


def test_a_plan_is_json_and_a_table_of_80_columns_in_both_languages(
    planned: dict[str, Any],
) -> None:
    findings = json.loads(json.dumps(planned, allow_nan=False))
    assert findings["machine"]["name"] == "NVIDIA T4"
    tables = []
    for language in ("en", "az"):
        use_language(language)
        try:
            tables.append(plan_table(findings))
        finally:
            use_language(None)
    for table in tables:
        *lines, last = table.splitlines()
        assert max(map(len, lines)) <= 80
        assert last.strip() == findings["plan"]["command"]
    assert tables[0] != tables[1]


def test_the_last_line_trains_that_text(text: Path, planned: dict[str, Any]) -> None:
    command = shlex.split(planned["plan"]["command"])
    assert command[1:3] == ["-m", "azllm_lightning.train"]
    config = compose(command[3:])
    assert config.data.paths == [str(text)]
    assert config.ignored() == []


@pytest.mark.slow
def test_a_model_that_was_typed_is_kept(text: Path, check: Path) -> None:
    findings = plan(text, check, "model=laptop", "data.vocab_size=1024", "seed=5")
    config = compose(shlex.split(findings["plan"]["command"])[3:])
    assert config.model.n_embd == compose(["model=laptop"]).model.n_embd
    assert (config.data.vocab_size, config.seed) == (1024, 5)


@cache
def asked(*typed: str) -> tuple[PlanConfig, Task]:
    """The settings of plan for 1 MB of text, and what is given by them."""
    config: PlanConfig = compose(["data.path=kitab.txt", *typed], "plan")
    text = Text("text", 0.95e6, 0.05e6, 100, 0, False, 5.0, 5.3, 1.0, 400)
    return config, task_of(config, text, Speed.assumed("cpu", 2))


def chosen(*typed: str) -> tuple[list[str], Choice]:
    """The settings of a command of plan, and the planned run."""
    config, task = asked(*typed)
    choice = planned_run(task, task.candidates[0], 1e6)
    return overrides_of(config, choice), choice


def overrides(*typed: str) -> tuple[list[str], int]:
    """The same settings, and the planned vocabulary."""
    settings, choice = chosen(*typed)
    return settings, choice.shape.vocab_size


NAMES = {
    group: sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))
    for group in ("data", "experiment")
}
QUICK = ("t4", "small_text", "distil")
TYPED = [
    *([f"data={name}"] for name in NAMES["data"] if name != "tales"),
    *([f"experiment={name}"] for name in QUICK),
    *(
        pytest.param([f"experiment={name}"], marks=pytest.mark.thorough)
        for name in NAMES["experiment"]
        if name not in QUICK
    ),
    pytest.param(
        ["experiment=t4", "data=text", "model.tie_embeddings=true", "schedule=wsd"],
        marks=pytest.mark.thorough,
    ),
    pytest.param(
        ["experiment=course", "data=text", "trainer.micro_batch_size=2"],
        marks=pytest.mark.thorough,
    ),
    ["data.name=kitab", "model.n_layer=2"],
    ["model.n_layer=2", "model.n_head=2", "model.n_embd=64"],
]


@pytest.mark.parametrize("passes", [1, 20])
@pytest.mark.parametrize("typed", TYPED, ids=" ".join)
def test_the_command_trains_what_the_plan_says(typed: list[str], passes: int) -> None:
    """Whatever the defaults of an experiment and of a text are."""
    own = ["teachers=null"] if typed == ["experiment=distil"] else []
    plan_config, task = asked(*typed, *own)
    candidate = task.candidates[-1]
    tokens = passes * task.text.unique_tokens(task.vocab_size)
    choice = planned_run(task, candidate, tokens)
    found = figures(plan_config, choice)
    config = compose(shlex.split(found["command"])[3:])
    assert config.ignored() == []
    shape = config.model.for_data(config.data.vocab_size, config.data.block_size, 0)
    assert replace(shape, dropout=0.0) == replace(choice.shape, dropout=0.0)
    assert shape.dropout == found["dropout"]
    trainer, optimizer = config.trainer, config.optimizer
    assert (trainer.max_steps, trainer.global_batch_size) == (choice.steps, choice.batch)
    assert trainer.val_every_steps == trainer.checkpoint_every_steps == choice.every
    assert trainer.micro_batch_size == "auto" or divides_a_step(trainer, 1)
    assert optimizer.weight_decay == found["weight_decay"]
    if isinstance(optimizer, MuonConfig):
        assert optimizer.adam_weight_decay == found["table_decay"]
    assert config.data.token_replacement == found["replaced"] == (0.1 if passes == 20 else 0)
    assert config.data.val_windows == (choice.val_windows or VAL_WINDOWS)
    is_linear = choice.regularization.is_linear
    assert config.schedule.name == ("linear" if is_linear else "power")
    assert config.schedule.warmup_steps == rule.warmup_steps(choice.steps)
    assert config.schedule.branches == found["branches"] == (2 if passes == 20 else 1)


@pytest.mark.parametrize("typed", [[], ["model.n_head=6"]])
def test_the_heads_of_an_experiment_leave_the_other_models_to_the_plan(typed: list[str]) -> None:
    """Those that were typed leave only the models that they go with."""
    _, task = asked("experiment=t4", "data=text", *typed)
    names = [candidate.name for candidate in task.candidates]
    everything = ["nano", "tiny", "small10m", "laptop", "course"]
    assert names == (["nano", "course"] if typed else everything)


def test_a_model_that_was_typed_leaves_no_choice() -> None:
    _, task = asked("experiment=t4", "data=text", "model=laptop", "model.n_head=4")
    (candidate,) = task.candidates
    assert candidate.model == compose(["model=laptop"]).model


@pytest.mark.parametrize(
    "typed", ["init_attention=random", "init_embeddings=random", "optimizer.affix_rate=0"]
)
def test_what_is_turned_off_is_not_counted_on(typed: str) -> None:
    settings, choice = chosen(typed)
    assert typed in settings
    assert choice.prediction.val_bpb > chosen()[1].prediction.val_bpb


def test_the_time_is_that_of_a_run_with_its_compile(text: Path, check: Path) -> None:
    """A compiled run is faster, but for the minute that compiling takes."""

    def seconds(compile: str) -> float:
        typed = ("model=nano", f"trainer.compile={compile}", "hours=100")
        found: float = plan(text, check, *typed)["plan"]["seconds"]
        return found

    assert seconds("auto") == seconds("false") < seconds("true"), "a short run"
    long = Speed.assumed("cuda", 2)
    shape = compose(["model=course"]).model.for_data(32000, 512, 0)

    def taken(**changes: Any) -> float:
        return replace(long, **changes).training_seconds(shape, 64, 8, 5000)

    assert taken() == taken(always_compiles=True) < taken(can_compile=False)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_gpu_is_asked_whether_it_compiles(
    text: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """The gain of a GPU is large, and Windows has no Triton."""
    parts: list[Sequence[str]] = []

    def run(checkup: Checkup) -> dict[str, Any]:
        parts.append(checkup.parts)
        machine = {"device": device, "gpus": [], "cpu_cores": 2, "cpu_model": "CPU"}
        return {
            "machine": {**machine, "memory_bytes": 13e9},
            "products": {},
            **dict.fromkeys(("disk", "data", "steps"), SKIPPED),
            "compile": {**SKIPPED, "status": "failed"},
        }

    monkeypatch.setattr(Checkup, "run", run)
    monkeypatch.setattr(hardware, "resolve_accelerator", lambda accelerator, devices: device)
    monkeypatch.setattr(hardware, "resolve_precision", lambda precision, device: "32-true")
    monkeypatch.setattr(hardware, "matmul_flops", lambda device, precision: 1e12)
    planned = make_plan(compose([f"data.path={text}"], "plan"))
    assert ["compile" in each for each in parts] == [device == "cuda"]
    assert not planned["machine"]["can_compile"]


@pytest.fixture
def tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The relative path of a tokenizer of 280 tokens."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    found = Tokenizer.train(["Bakı Xəzər dənizinin sahilində yerləşir. " * 9], 280)
    assert found.vocab_size == 280
    found.save(Path("run", "tokenizer.json"))
    return "data.tokenizer=run"


@pytest.mark.parametrize("typed", [[], ["data.vocab_size=280"]])
def test_a_tokenizer_that_was_typed_has_the_vocabulary(tokenizer: str, typed: list[str]) -> None:
    settings, vocab_size = overrides(tokenizer, *typed)
    assert vocab_size == 280
    assert tokenizer in settings
    check_typed(compose(settings).data, settings)


def test_text_that_train_refuses_is_not_planned(tokenizer: str, text: Path, check: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.vocab_size=512: data\.tokenizer=run has 280"):
        plan(text, check, tokenizer, "data.vocab_size=512")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_command_has_settings_of_its_optimizer_only(optimizer: str) -> None:
    settings, _ = overrides(f"optimizer={optimizer}")
    assert compose(settings).optimizer.name == optimizer


@pytest.mark.parametrize("typed", ["init_from=a", "teachers=a", "teachers=[a,b]"])
def test_only_a_run_from_scratch_is_planned(typed: str) -> None:
    key = typed.partition("=")[0]
    with pytest.raises(ValueError, match=rf"{key}=a.*: plan is for .*from scratch.*omit {key}"):
        compose(["data.path=kitab.txt", typed], "plan")
    compose(["data.path=kitab.txt", f"{key}=null"], "plan")


def test_little_text_is_called_little(planned: dict[str, Any]) -> None:
    table = plan_table(planned)
    assert "So little text" in table


def test_a_plan_says_what_its_figures_are_worth(planned: dict[str, Any]) -> None:
    """Tokens are an estimate until the tokenizer is there, and a busy machine is faster alone."""
    assert "about " in plan_table(planned).splitlines()[0]
    assert "busy" not in plan_table(planned)
    text = {**planned["text"], "vocab_size": 2048}
    assert "about" not in plan_table({**planned, "text": text}).splitlines()[0]
    busy = {**planned["machine"], "cpu_share": 0.4, "others_share": 0.5}
    assert "busy (the measured steps got 40% of its cores)" in " ".join(
        plan_table({**planned, "machine": busy}).split()
    )


def test_a_plan_says_that_its_loss_is_that_of_the_first_branch(planned: dict[str, Any]) -> None:
    branched = {**planned, "plan": {**planned["plan"], "branches": 2}}
    for plan, is_there in ((planned, False), (branched, True)):
        words = " ".join(plan_table(plan).split())
        assert ("last fifth is trained 2 times (schedule.branches=2)" in words) == is_there


def test_a_plan_names_what_the_text_leaves_unused(planned: dict[str, Any]) -> None:
    unused = {**planned["text"]["unused"], "field": "source", "values": 7}
    table = plan_table({**planned, "text": {**planned["text"], "unused": unused}})
    assert "data.source_field=source" in table


def test_a_plan_with_a_mix_says_that_it_is_not_counted(
    text: Path, check: Path, planned: dict[str, Any]
) -> None:
    assert "data.mix" not in plan_table(planned)
    mixed = plan(text, check, "hours=1", "data.mix=kitab evi.txt: 10")
    assert "data.mix is not counted" in plan_table(mixed)
    assert compose(shlex.split(mixed["plan"]["command"])[3:]).data.mix == "kitab evi.txt: 10"
    assert mixed["plan"]["passes"] == planned["plan"]["passes"]


def test_a_validation_of_few_documents_is_called_inexact(planned: dict[str, Any]) -> None:
    def noted(documents: float, spread: float = 0.15) -> str:
        text = {**planned["text"], "val_documents": documents, "document_spread": spread}
        return " ".join(plan_table({**planned, "text": text}).split())

    assert "counts as only 8 documents: which ones they are moves val_loss by 5%" in noted(8.3)
    assert "counts as only" not in noted(100)
    assert "counts as only 64 documents: which ones they are moves val_loss by 8%" in noted(64, 0.6)


def test_a_time_in_which_nothing_can_be_done_is_called_too_short(planned: dict[str, Any]) -> None:
    assert "too short" not in plan_table(planned)
    short = {**planned, "hours": planned["plan"]["seconds"] / 3600 / 1.2}
    assert "too short: preparing" in plan_table(short)


def test_alternatives_have_their_batch_and_context(planned: dict[str, Any]) -> None:
    lines = plan_table(planned).splitlines()
    head = next(number for number, line in enumerate(lines) if "val_loss" in line and "bpb" in line)
    assert lines[head].split()[2:5] == ["batch", "context", "steps"]
    for line, key in zip(
        lines[head + 1 :], ("half_the_time", "plan", "twice_the_time"), strict=False
    ):
        figures = planned[key]
        assert f" {figures['global_batch_size']} " in line
        assert f" {figures['block_size']} " in line


def test_what_is_no_check_is_refused(text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="not a report of check"):
        plan(text, other)
    with pytest.raises(ValueError, match=r"missing\.json"):
        plan(text, tmp_path / "missing.json")


def test_a_plan_needs_a_text() -> None:
    with pytest.raises(ValueError, match=r"data\.path is not set"):
        compose(["hours=1"], "plan")
    with pytest.raises(ValueError, match="hours"):
        compose(["hours=0", "data.path=x"], "plan")
