"""What is on the page of a run, however odd the run is."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from run_folders import WriteRun, healthy
from seen import Seen

from azllm_lightning.cli.messages import LANGUAGES, use_language
from azllm_lightning.cli.shell import for_shell
from azllm_lightning.report.page import next_commands, page
from azllm_lightning.report.record import read_record


def seen(folder: Path, **settings: Any) -> Seen:
    return Seen(page(read_record(folder, **settings)))


def overfitted() -> dict[str, dict[int, float]]:
    """val_loss falls until step 200, and rises from there on."""
    curves = healthy()
    curves["val_loss"] = {0: 6.0, 100: 3.5, 200: 3.0, 300: 3.2, 400: 3.6}
    return curves


REPORTED = {"diagnosis/overfitting": {300: "step 300: overfitting. val_loss is rising"}}


def test_the_best_step_and_what_happened_are_marked(write_run: WriteRun) -> None:
    texts = {
        **REPORTED,
        "resume": {100: "step_00000100.ckpt"},
        "rollback": {250: "steps 251 to 260: back"},
    }
    found = seen(write_run(curves=overfitted(), texts=texts))
    flags = [(flag["x"], flag["title"]) for flag in found.chart("loss")["flags"]]
    assert flags == [(100, "resumed"), (250, "rolled back"), (300, "overfitting")]
    for text in ("resumed step 100", "rolled back step 250 Steps 251 to 260: back"):
        assert text in found.text
    assert "overfitting step 300 val_loss is rising" in found.text
    assert "best val_loss 3.0000 at step 200" in found.text
    drawn = found.classes("g")
    assert [drawn.count(f"flag {kind}") for kind in ("resume", "rollback", "diagnosis")] == [2] * 3
    assert drawn.count("ring") == 2  # for a wide screen, and for a phone


def test_branches_are_marked(write_run: WriteRun) -> None:
    texts = {"branch": {300: "branch 2 of 2 begins, from the state of step 240"}}
    found = seen(write_run(texts=texts))
    flags = [(flag["x"], flag["title"]) for flag in found.chart("loss")["flags"]]
    assert flags == [(300, "branch")]
    assert "branch step 300 Branch 2 of 2 begins, from the state of step 240" in found.text


@pytest.mark.parametrize(("total", "is_there"), [(600, True), (480, False), (420, False)])
def test_a_forecast_is_that_of_the_end_of_the_first_branch(
    total: int, is_there: bool, write_run: WriteRun
) -> None:
    schedule = {"name": "linear", "branches": 2, "total_steps": total}
    folder = write_run(config={"trainer": {"max_steps": total}, "schedule": schedule})
    found = seen(folder, is_training=True)  # at step 400
    assert ("forecast of val_loss" in found.text) == is_there
    if is_there:
        assert re.search(r"forecast of val_loss [\d.]+ ± [\d.]+, at step 500 ", found.text)


def test_the_gap_is_shaded_only_if_the_run_overfits(write_run: WriteRun) -> None:
    assert seen(write_run("a", overfitted(), REPORTED)).classes("g").count("band") > 1
    assert "band" not in seen(write_run("b", overfitted())).classes("g")


def test_a_large_gap_is_explained(write_run: WriteRun) -> None:
    curves = healthy()
    curves["generalization_gap"] = {100: -1.0, 200: 0.1, 400: 1.2}
    text = {"session/data": {0: "    steps_per_pass: 250.5\n"}}
    assert "1.10 more than in the first pass" in seen(write_run("a", curves, text)).text
    assert "first pass" not in seen(write_run("b", curves)).text  # of an older version
    damaged = {"session/data": {0: "    steps_per_pass: [\n"}}
    assert "first pass" not in seen(write_run("c", curves, damaged)).text


def test_the_gap_of_a_mix_begins_with_the_first_text_that_is_read_again(
    write_run: WriteRun,
) -> None:
    curves = healthy()
    curves["generalization_gap"] = {100: -1.0, 200: 0.1, 400: 1.2}
    mixed = {"data": {"name": "text", "mix": "kitab.txt: 4"}}
    text = {"session/data": {0: "    steps_per_pass: 900.5\n    steps_per_reading: 250.5\n"}}
    assert "1.10 more than when no text had been" in seen(write_run("a", curves, text, mixed)).text
    older = {"session/data": {0: "    steps_per_pass: 900.5\n"}}
    assert "above train_loss" not in seen(write_run("b", curves, older, mixed)).text


def test_time_and_speed_are_those_that_the_terminal_said(write_run: WriteRun) -> None:
    ended = {"status": "done", "steps": 400, "wall_seconds": 754.0, "tokens_per_sec": 1234.0}
    found = seen(write_run("a", summary=ended)).text
    assert "12 min 34 s" in found
    assert "1,234 tokens/s per step" in found
    unfinished = seen(write_run("b")).text
    assert "1,000 tokens/s per step" in unfinished  # the median of the curve


def test_where_a_run_stopped_is_not_where_its_curve_ends(write_run: WriteRun) -> None:
    """A curve has a point every trainer.log_every_steps only."""
    ended = {"status": "stopped", "steps": 278, "tokens_seen": 142_336}
    found = seen(write_run("a", healthy(270), summary=ended)).text
    assert "70 % step 278 of 400" in found
    assert "tokens read 142,336" in found
    killed = write_run("b", healthy(270))
    (killed / "checkpoints" / "step_00000275.ckpt").touch()
    assert "step 275 of 400" in seen(killed).text
    assert "step 270 of 400" in seen(killed, is_training=True).text
    # A session after the one of the summary was killed before its first point.
    (killed / "summary.json").write_text(json.dumps({**ended, "steps": 272}), encoding="utf-8")
    record = read_record(killed)
    assert (record.step, record.status) == (275, "unfinished")


@pytest.mark.parametrize("steps", [None, "278", 2.5, [1]])
def test_a_summary_without_a_number_of_steps_is_none(write_run: WriteRun, steps: Any) -> None:
    folder = write_run(summary={"status": "done", "steps": steps, "tokens_seen": 1})
    record = read_record(folder)
    assert (record.step, record.status, record.summary) == (400, "unfinished", {})


def test_values_are_under_the_pointer_of_each_chart(write_run: WriteRun) -> None:
    curves = healthy()
    curves["val_loss_by_source/books"] = {0: 6.0, 400: 2.0}
    curves["val_loss_by_source/news"] = {0: 6.1, 400: 2.5}
    found = seen(write_run(curves=curves))
    val = next(line for line in found.chart("loss")["lines"] if line["name"] == "val_loss")
    assert val["x"] == [0, 100, 200, 300, 400]
    assert val["y"] == [float(f"{value:.5g}") for value in curves["val_loss"].values()]
    assert found.chart("ppl")["log"]
    assert [line["name"] for line in found.chart("sources")["lines"]] == ["books", "news"]
    for name in ("bpb", "lr", "tokens_per_sec"):
        assert found.chart(name)["lines"], name


def test_the_page_is_one_file_in_both_languages(write_run: WriteRun) -> None:
    record = read_record(write_run(texts={"samples": {0: "| greedy |\n|---|\n| **Bir**gün |"}}))
    pages = {}
    for language in LANGUAGES:
        use_language(language)
        pages[language] = page(record)
        found = Seen(pages[language])
        used = [
            str(value)
            for _, attrs in found.elements
            for key, value in attrs.items()
            if key in ("src", "href", "xlink:href", "data", "action", "srcset")
        ]
        assert used == []
        assert "@import" not in pages[language]
        assert "url(" not in pages[language]
        assert len(pages[language].encode()) < 1_000_000
    assert '<html lang="az">' in pages["az"]
    assert "Perpleksiya" in pages["az"]
    assert "Perplexity" not in pages["az"]


@pytest.mark.parametrize(
    "head",
    [
        "| temperature=0 | temperature=0.8 |",
        "| greedy | temperature 0.8 |",  # older runs
        "| ən ehtimallı | temperatur 0.8 |",
    ],
)
def test_samples_have_headings_in_the_language_of_the_page(write_run: WriteRun, head: str) -> None:
    table = f"{head}\n|---|---|\n| **Bir**gün | **Bir**il |"
    record = read_record(write_run(texts={"samples": {0: table}}))
    headings = {"en": ["greedy", "temperature 0.8"], "az": ["ən ehtimallı", "temperatur 0.8"]}
    for language, expected in headings.items():
        use_language(language)
        assert re.findall("<h3>(.*?)</h3>", page(record)) == expected


def test_samples_have_the_prompts_and_headings_of_their_validation(write_run: WriteRun) -> None:
    """Also where a resume changed them, and with separators that are line breaks to some."""
    head = "| temperature=0 | temperature={} |\n|---|---|\n"
    samples = {
        0: head.format(0.8) + "| **Bir**gün\u2028daha\x85da | **Bir**il |\n| **O**ldu | **O**n |",
        100: head.format(0.5) + "| **Sən**in | **Sən**ə |",
    }
    found = seen(write_run(texts={"samples": samples}))
    data = next(data for data in found.data if "texts" in data)
    assert data["ways"] == [["greedy", f"temperature {heat}"] for heat in (0.8, 0.5)]
    assert data["texts"] == [
        [["Bir", "gün\u2028daha\x85da", "il"], ["O", "ldu", "n"]],
        [["Sən", "in", "ə"]],
    ]
    assert "The same prompts at each validation" not in found.text
    assert "samples changed between validations" in found.text
    del samples[100]
    assert (
        "The same prompts at each validation"
        in seen(write_run("b", texts={"samples": samples})).text
    )


@pytest.mark.parametrize("sign", ["\u2028", "\x85"])
def test_samples_with_other_line_breaks_are_whole(write_run: WriteRun, sign: str) -> None:
    table = f"| temperature=0 |\n|---|\n| **Bir**gün{sign}gecə |"
    record = read_record(write_run(texts={"samples": {0: table}}))
    assert record.written[0].rows[0].texts == (f"gün{sign}gecə",)


def test_text_of_others_is_only_text(write_run: WriteRun) -> None:
    """Names, samples, settings and diagnoses cannot become elements of the page."""
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    escaped = evil.replace("<", "&lt;").replace(">", "&gt;")
    folder = write_run(
        "<b>run&",
        texts={
            "samples": {400: f"| greedy | {escaped} |\n|---|---|\n| **Bir**{escaped} | **Bir**a |"},
            "diagnosis/dead": {10: f"step 10: {evil}"},
            "session/environment": {0: f"    cpu: {evil}"},
        },
        config={"data": {"name": evil}},
    )
    found = seen(folder)
    names = [tag for tag, _ in found.elements]
    assert "img" not in names
    assert names.count("script") == names.count("figure") + 3  # samples, words, and our own
    assert found.text.count(evil) >= 4
    samples = next(data for data in found.data if "texts" in data)
    assert samples["texts"] == [[["Bir", evil, "a"]]]


@pytest.mark.parametrize(
    ("curves", "wanted"),
    [
        (
            {"val_loss": {0: 6.2}, "val_ppl": {0: 492.7}, "val_bpb": {0: 3.0}},
            "best val_loss 6.2000",
        ),
        ({"train_loss": {1: 6.2}}, "Loss nats per token"),
        ({"train_loss": {1: math.nan, 2: math.nan}}, "no loss was logged yet"),
        ({"val_loss": {0: math.nan, 10: math.inf}}, "no loss was logged yet"),
        ({"train_loss": {1: 6.0, 2: math.nan, 3: 5.0}}, "train_loss is not finite step 2"),
        (
            {"val_loss": {0: 6.0, 10: 6.0}, "train_loss": {5: 6.0}},
            "best val_loss 6.0000 at step 10",
        ),
        (
            {"train_loss": {1: 1e30}, "val_loss": {0: 3e38}, "val_ppl": {0: math.inf}},
            "step 1 of 400",
        ),
        ({"lr": {1: 0.0}, "grad_norm": {1: 0.0, 2: 1e9}}, "no loss was logged yet"),
    ],
)
def test_odd_curves_have_a_page(
    write_run: WriteRun, curves: dict[str, dict[int, float]], wanted: str
) -> None:
    assert wanted in seen(write_run(curves=curves)).text


def test_losses_that_are_not_finite_are_dashes(write_run: WriteRun) -> None:
    curves = healthy()
    for tag in ("val_loss", "val_ppl", "val_bpb", "generalization_gap"):
        curves.setdefault(tag, {})[400] = math.nan
    curves["val_loss"][300] = math.inf
    table = "| greedy |\n|---|\n| **Bir** gün |"
    folder = write_run(curves=curves, texts={"samples": {300: table, 400: table}})
    found = seen(folder)
    samples = next(data for data in found.data if "titles" in data)
    assert [title.rpartition(" · ")[2] for title in samples["titles"]] == ["val_loss -"] * 2
    assert "400 - - - -" in found.text
    assert not re.search(r"\b(nan|inf)\b", found.text)


def test_a_long_run_is_thinned_and_keeps_its_spikes(write_run: WriteRun) -> None:
    train = {step: 2 + 1 / step for step in range(1, 3_001)}
    train[2_000] = 9.0
    val = dict.fromkeys(range(0, 3001, 10), 2.0)
    sample = "| greedy |\n|---|\n| **Bir** " + "gün " * 900 + "|"
    samples = dict.fromkeys(range(0, 3_001, 30), sample)
    folder = write_run(curves={"train_loss": train, "val_loss": val}, texts={"samples": samples})
    text = page(read_record(folder))
    assert len(text.encode()) < 1_000_000
    found = Seen(text)
    assert all(len(line["x"]) <= 400 for line in found.chart("loss")["lines"])
    heights = [
        float(y)
        for tag, attrs in found.elements
        if tag == "path" and "L" in (attrs.get("d") or "")
        for y in re.findall(r" (-?[\d.]+)(?= |$)", str(attrs["d"]))
    ]
    assert min(heights) < 30, "the spike is not drawn"
    shown = next(data for data in found.data if "texts" in data)
    assert 10 < len(shown["texts"]) < 101
    assert [shown["titles"][i].split(" ")[1] for i in (0, -1)] == ["0", "3,000"]


def test_a_run_that_trains_is_loaded_again_and_says_how_long_it_takes(write_run: WriteRun) -> None:
    folder = write_run(config={"trainer": {"max_steps": 800, "val_every_steps": 100}})
    found = seen(folder, is_training=True)
    body = next(attrs for tag, attrs in found.elements if tag == "body")
    assert body["data-refresh"] == "100"  # a validation is 100 seconds after the one before
    assert "50 % step 400 of 800" in found.text
    assert "about 6 min 40 s left" in found.text
    ended = seen(folder)  # the last event is years old
    assert "unfinished" in ended.text
    assert "data-refresh" not in dict(next(a for t, a in ended.elements if t == "body"))
    assert silent_after(found) == "600"
    assert silent_after(ended) is None


def test_an_end_that_has_no_date_is_left_out(write_run: WriteRun) -> None:
    found = seen(write_run(config={"trainer": {"max_steps": 10**12}}), is_training=True)
    assert "about 11574074 d 1 h left" in found.text
    assert "ends around" not in found.text


def silent_after(found: Seen) -> str | None:
    """The seconds after which the page says that there is no sign of life."""
    (time,) = (attrs for tag, attrs in found.elements if tag == "time")
    return time.get("data-silent")


@pytest.mark.parametrize(
    ("validated", "logged", "limit"),
    [
        ([0], [], None),
        ([0], [100, 200], "2700"),
        ([0, 900], [], "2700"),
        ([0, 900, 10_000], [], "2700"),
        ([0, 900, 1800, 1810], [], "2700"),  # 1810 was the last step; the run was extended
    ],
)
def test_a_run_is_silent_after_three_times_its_interval(
    validated: list[int], logged: list[int], limit: str | None, write_run: WriteRun
) -> None:
    curves = {"val_loss": dict.fromkeys(validated, 3.0), "train_loss": dict.fromkeys(logged, 3.0)}
    trainer = {"max_steps": 20_000, "val_every_steps": 900}
    folder = write_run(curves=curves, config={"trainer": trainer})
    assert silent_after(seen(folder, is_training=True)) == limit


def test_pauses_between_sessions_do_not_count_as_time(write_run: WriteRun) -> None:
    from run_folders import START, append, scalar, text

    folder = write_run()
    week = 7 * 86_400
    file = folder / "events.out.tfevents.2"
    append(file, [text("resume", 400, "a.ckpt", START + 400 + week)])
    append(file, [scalar("train_loss", 460, 2.0, START + 460 + week)])
    _, minutes = read_record(folder).timeline
    assert math.isclose(minutes[-1], 450 / 60 + 10 / 60, abs_tol=0.2)


@pytest.mark.parametrize("second", ["resume", "rollback"])
def test_a_start_that_led_nowhere_does_not_hide_the_pause_before_the_next(
    second: str, write_run: WriteRun
) -> None:
    """Killed before the first point after its start, and started again a week later."""
    from run_folders import START, append, scalar, text

    folder = write_run()
    day = 86_400
    first = "rollback" if second == "resume" else "resume"
    file = folder / "events.out.tfevents.2"
    append(file, [text(first, 400, "a.ckpt", START + 400 + day)])
    append(file, [text(second, 400, "a.ckpt", START + 400 + 2 * day)])
    append(file, [scalar("train_loss", 460, 2.0, START + 460 + 2 * day)])
    _, minutes = read_record(folder).timeline
    assert math.isclose(minutes[-1], 450 / 60, abs_tol=0.2)


def test_the_forecast_of_another_part_is_shown_with_its_error(write_run: WriteRun) -> None:
    class Guess:
        val_loss = 1.2345
        error = 0.05

    asked: list[Any] = []

    def forecaster(curve: Any, steps: int, schedule: str, decay: float) -> Guess:
        asked.append((list(curve), steps, schedule))
        return Guess()

    trainer = {"max_steps": 800}
    # Of a run that ends before its schedule, or after it, nothing is known.
    for steps in (400, 1600):
        schedule = {"name": "linear", "total_steps": steps}
        folder = write_run(f"to_{steps}", config={"trainer": trainer, "schedule": schedule})
        found = seen(folder, is_training=True, forecaster=forecaster)
        assert "forecast of val_loss" not in found.text
    assert asked == []
    schedule = {"name": "linear", "total_steps": 800}
    folder = write_run(config={"trainer": trainer, "schedule": schedule})
    found = seen(folder, is_training=True, forecaster=forecaster)
    assert "forecast of val_loss 1.234 ± 0.050, at step 800" in found.text
    ((curve, steps, schedule),) = asked
    assert (curve[-1][0], steps, schedule) == (400, 800, "linear")


def test_the_commands_fit_what_happened(write_run: WriteRun) -> None:
    def named(folder: Path) -> list[str]:
        return [name for name, _ in next_commands(read_record(folder))]

    done = {"status": "done", "steps": 400}
    assert "train longer" in named(write_run("a", summary=done))
    assert "train longer" not in named(write_run("b", overfitted(), REPORTED, summary=done))
    # Past its best, diverged, stopped early, or with too small a model.
    late = healthy()
    late["val_loss"] |= {300: late["val_loss"][200] + 0.1, 400: late["val_loss"][200] + 0.1}
    assert "train longer" not in named(write_run("late", late, summary=done))
    diverged = healthy()
    diverged["val_loss"][400] = math.nan
    assert "train longer" not in named(write_run("diverged", diverged, summary=done))
    early = {**done, "steps": 300}
    until = healthy(300)
    assert "train longer" not in named(write_run("early", until, summary=early))
    small = {"diagnosis/too_small": {400: "step 400: underfitting. So"}}
    assert "train longer" not in named(write_run("small", texts=small, summary=done))
    # A problem that was over at the end.
    past = {"diagnosis/dead": {100: "step 100: dead"}, **REPORTED}
    assert "train longer" in named(write_run("past", texts=past, summary=done))
    stopped = write_run("c d", summary={"status": "stopped", "steps": 400})
    (stopped / "checkpoints").mkdir(exist_ok=True)
    (stopped / "checkpoints" / "step_00000400.ckpt").touch()
    rows = dict(next_commands(read_record(stopped)))
    assert for_shell("run_name=c d") in rows["resume"]
    assert "ckpt_path=last" in rows["resume"]
    # A summary of an earlier session says nothing about the present one.
    earlier = write_run("e", summary={"status": "done", "steps": 300})
    (earlier / "checkpoints").mkdir(exist_ok=True)
    (earlier / "checkpoints" / "step_00000300.ckpt").touch()
    assert "resume" in named(earlier)


def test_a_run_that_was_killed_before_it_saved_is_started_again(write_run: WriteRun) -> None:
    """Without what brings code, since the folder may be that of anyone."""
    typed = ["data=text", "data.path=kitab evi", "+callbacks.mine._target_=os.system"]
    folder = write_run(config={"overrides": typed})
    (folder / "checkpoints").mkdir(exist_ok=True)
    rows = dict(next_commands(read_record(folder)))
    assert not {"resume", "talk", "evaluate", "export"} & set(rows)
    assert "data=text" in rows["start again"]
    assert for_shell("data.path=kitab evi") in rows["start again"]
    assert "os.system" not in rows["start again"]


def test_settings_and_environment_are_folded(write_run: WriteRun) -> None:
    folder = write_run(
        config={"optimizer": {"lr": 0.0123}, "overrides": ["optimizer.lr=0.0123"]},
        texts={"session/environment": {0: "    torch: 2.9\n"}},
    )
    found = seen(folder)
    assert [attrs.get("open") for tag, attrs in found.elements if tag == "details"] == [None] * 3
    assert "optimizer.lr=0.0123" in found.text
    assert "torch: 2.9" in found.text
