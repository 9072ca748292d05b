"""Tasks by name, and running them: exact attention first in each case, then the methods that are compared with it."""

import time
from typing import NamedTuple

from . import babi, copying, facts, generation, image, lines, needles, perplexity, ruler
from .methods import EXACT, Method
from .results import MEMORY, identity

#: Tasks of language models, in the order in which they run.
LANGUAGE = {
    "perplexity": perplexity, "facts": facts, "lines": lines, "needles": needles, "ruler": ruler, "babi": babi,
    "copying": copying, "generation": generation,
}
#: Tasks of image encoders.
IMAGES = {"image": image}


class Job(NamedTuple):
    """One case of a task by one method."""

    task: str
    case: dict
    method: Method

    def identity(self, model):
        """What its record says that it is the result of; `model` is the model's name."""
        return identity(model, self.task, self.case, self.method)

    def seconds(self, rates):
        """Expected, at the price of exact attention."""
        costs = {**LANGUAGE, **IMAGES}[self.task].cost(self.case)
        return sum(cost.seconds(rates) for cost in costs)


def tasks_of(model):
    """The tasks that a model can do, by name."""
    return IMAGES if model.reads_images else LANGUAGE


def plan(model, tasks, methods, *, lengths=None, inputs=None, samples=None):
    """All jobs of a run.

    Parameters
    ----------
    model : Model
    tasks : sequence of str
    methods : sequence of Method
    lengths : sequence of int, optional
        Of every task; default: the task's own.
    inputs : sequence of str, optional
        Texts or pictures; default: the task's own.
    samples : int, optional
        Contexts of a case, of tasks whose cases have several; default: the task's own.

    Returns
    -------
    list of Job
        Exact attention, which all are compared with, first in each case.

    Raises
    ------
    ValueError
        If a task or a method is not for the model, a length is too short or too long, there is no such text or picture, or
        `samples` is below 1 or for none of the tasks.
    ImportError
        If the package of a text or of the pictures is missing.
    """
    known, jobs, sampled = tasks_of(model), [], False
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    for name in tasks:
        if name not in known:
            raise ValueError(f"task must be one of {', '.join(known)} for {model.name}, got {name!r}")
        task = known[name]
        sampled |= hasattr(task, "SAMPLES")
        for length in lengths or ():
            if length < task.MIN_LENGTH:
                raise ValueError(f"length must be at least {task.MIN_LENGTH} for task {name}, got {length}")
            if not model.reads_images and length > model.weights.config.context_length:
                raise ValueError(f"length must be at most {model.weights.config.context_length}, the context, got {length}")
        others = [method for method in methods if method != EXACT]
        if model.reads_images and any(method.name == "window" for method in others):
            raise ValueError(f"method window is for language models, {model.name} reads images")
        for case in task.cases(lengths or task.LENGTHS, inputs):
            case |= {"samples": samples} if samples is not None and "samples" in case else {}
            task.check(model, case)
            jobs += [Job(name, case, method) for method in (EXACT, *others)]
    if samples is not None and not sampled:
        raise ValueError(f"samples is for none of the tasks {', '.join(tasks)}, got {samples}")
    return jobs


def evaluate(model, jobs, results, tick=lambda job: None):
    """Run jobs whose results are not there yet.

    Parameters
    ----------
    model : Model
    jobs : list of Job
        Of `plan`.
    results : Results
        Grows by each result as it comes.
    tick : callable, optional
        Called with each job once its result is there.

    Returns
    -------
    list of dict
        The records of all jobs, in their order.
    """
    records, exact = [], {}
    for job in jobs:
        if job.method == EXACT:
            exact.pop(MEMORY, None)  # of the case before, which nobody needs any more
            exact = None
        wanted = job.identity(model.name)
        record = results.find(wanted)
        if record is None:
            started = time.perf_counter()
            result = tasks_of(model)[job.task].run(model, job.case, job.method, exact)
            record = wanted | {"seconds": time.perf_counter() - started, "result": result}
            results.add(record)
        if job.method == EXACT:
            exact = record["result"]
        records.append(record)
        tick(job)
    return records
