"""Train the small models of the long-range tasks: BERT in PyTorch, on a GPU if there is one, else on one thread.

    pip install torch safetensors
    python bench/long_range/train.py listops [--steps N] [--minutes M]      or pathfinder, texts

Stops and goes on where it stopped: what it needs is kept under bench/.cache. The learning rate is constant and falls to 0 over
the last fifth of the steps or minutes. Writes the model in Hugging Face's layout, in float16, to bench/long_range/weights/TASK.
On a GPU batches are larger, other processes make them ahead, and all but the last fifth is computed in bfloat16.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import time
from collections import deque
from itertools import count, starmap
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache"
#: As the committed weights were trained: Pathfinder on one CPU thread in 7 minutes; the others on a GPU (H100), where another
#: training ran beside each, to about so many steps in --minutes 5.7 and 4.2. On one CPU thread these two have not been tried.
STEPS = {"listops": 8300, "pathfinder": 900, "texts": 14800}
FALLING = 0.2  # last share of training, over which the learning rate falls
WARM_UP = 100
PARTS = ("query", "key", "value")
LEARNING_RATE = 1e-3
INNER_LAYERS = 0.3  # weight of the same questions to all layers before the last
GPU_SIZE = 8  # of batches, in those of one CPU thread
AHEAD = 4  # batches a process
EVERY = 50  # steps between lines
SAVE_SECONDS = 30


class Encoder(torch.nn.Module):
    """BERT as `icecore.nn.encode_tokens` computes it; positions are a linear map of fixed features."""

    def __init__(self, task):
        super().__init__()
        width = task.width
        self.task = task
        self.register_buffer("features", torch.from_numpy(task.position_features), persistent=False)  # (context, features)
        self.words = torch.nn.Embedding(task.vocabulary, width)
        self.position_map = torch.nn.Linear(task.position_features.shape[1], width, bias=False)
        self.embedding_norm = torch.nn.LayerNorm(width, eps=1e-12)
        self.layers = torch.nn.ModuleList(Layer(width, task.heads) for _ in range(task.layers))
        self.classifier = torch.nn.Linear(width, task.outputs)
        places = task.position_features.shape[1]
        with torch.no_grad():  # the first components tell the place, the others the word
            torch.nn.init.eye_(self.position_map.weight)
            torch.nn.init.normal_(self.words.weight, std=0.7)[:, :places] = 0
            for layer, back in zip(self.layers, task.look_back, strict=True):
                layer.look_back(_shifted(self.features, back))

    def forward(self, tokens, positions):
        """(n, length) twice -> what each layer says of each token, [(n, length, outputs)]."""
        x = self.embedding_norm(self.words(tokens) + self.position_map(self.features[positions]))  # (n, length, width)
        answers = []
        for layer in self.layers:
            x = layer(x)
            answers.append(self.classifier(x))
        return answers

    def tensors(self):
        """All weights under Hugging Face's names."""
        named = {
            "bert.embeddings.word_embeddings": (self.words.weight,),
            "bert.embeddings.position_embeddings": (self.position_map(self.features),),
            "bert.embeddings.token_type_embeddings": (torch.zeros(1, self.task.width),),
            "bert.embeddings.LayerNorm": _parts(self.embedding_norm),
            "classifier": _parts(self.classifier),
        }
        for index, layer in enumerate(self.layers):
            name = f"bert.encoder.layer.{index}"
            pieces = zip(*(part.chunk(3) for part in _parts(layer.query_key_value)), strict=True)
            named |= {f"{name}.attention.self.{part}": piece for part, piece in zip(PARTS, pieces, strict=True)}
            named |= {
                f"{name}.attention.output.dense": _parts(layer.attention_output),
                f"{name}.attention.output.LayerNorm": _parts(layer.attention_norm),
                f"{name}.intermediate.dense": _parts(layer.up),
                f"{name}.output.dense": _parts(layer.down),
                f"{name}.output.LayerNorm": _parts(layer.mlp_norm),
            }
        pairs = {name: zip(("weight", "bias"), parts, strict=False) for name, parts in named.items()}
        return {f"{name}.{kind}": part.detach() for name, parts in pairs.items() for kind, part in parts}

    def config(self):
        """Settings under Hugging Face's names."""
        task = self.task
        return {
            "model_type": "bert",
            "vocab_size": task.vocabulary,
            "type_vocab_size": 1,
            "hidden_size": task.width,
            "intermediate_size": 4 * task.width,
            "num_hidden_layers": task.layers,
            "num_attention_heads": task.heads,
            "max_position_embeddings": task.context,
            "layer_norm_eps": 1e-12,
            "hidden_act": "gelu",
        }


class Layer(torch.nn.Module):
    """One layer; norms follow the sums."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query_key_value = torch.nn.Linear(width, 3 * width)
        self.attention_output = torch.nn.Linear(width, width)
        self.attention_norm = torch.nn.LayerNorm(width, eps=1e-12)
        self.up = torch.nn.Linear(width, 4 * width)
        self.down = torch.nn.Linear(4 * width, width)
        self.mlp_norm = torch.nn.LayerNorm(width, eps=1e-12)

    def look_back(self, shift):
        """Let the first head begin by looking at one place: its scores are products of the first components, one side moved."""
        places = len(shift)
        for part, seen in zip(self.query_key_value.weight.chunk(3)[:2], (shift.T, torch.eye(places)), strict=True):
            part[:places] *= 0.3
            part[:places, :places] += 1.7 * seen

    def forward(self, x):
        split = self.query_key_value(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, n, heads, length, d)
        mixed = functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)  # (n, length, width)
        x = self.attention_norm(x + self.attention_output(mixed))
        return self.mlp_norm(x + self.down(functional.gelu(self.up(x))))


def _shifted(features, back):
    """The linear map from the features of a place, (context, features), to those of the place so far before it."""
    return torch.linalg.lstsq(features[back:], features[: len(features) - back]).solution


def _parts(module):
    """Weight and bias."""
    return module.weight, module.bias


def loss_of(answers, targets, answer_at):
    """Mean over all tokens that are asked, plus the mean over those that give the answer; `answers` (n, length, outputs)."""
    inner = functional.cross_entropy(answers.flatten(0, 1), targets.flatten(), ignore_index=-1)
    return inner + functional.cross_entropy(answers[:, answer_at], targets[:, answer_at])


def learning_rate(step, progress):
    """Constant after the warm-up; falls to 0 at the end."""
    return LEARNING_RATE * min(1, (step + 1) / WARM_UP, max(0, 1 - progress) / FALLING)


def batch_of(task_name, step, progress, size):
    """The training batch of one step."""
    return importlib.import_module(task_name).TASK.training_batch(np.random.default_rng([step, 1]), progress, size)


def ahead(pool, processes, function, calls):
    """Results of the calls in order, some of them made before they are asked for."""
    under_way = deque()
    for call in calls:
        under_way.append(pool.apply_async(function, call))
        if len(under_way) > AHEAD * processes:
            yield under_way.popleft().get()
    for result in under_way:
        yield result.get()


def train(name, task, steps, minutes, processes):
    """Train from the last checkpoint to so many steps or minutes, whichever come first; `processes` make the batches."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pool = multiprocessing.Pool(processes) if processes else None
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    model = Encoder(task).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    checkpoint = CACHE / f"long_range_{name}.pt"
    step, start = 0, time.perf_counter()
    if checkpoint.exists():
        stored = torch.load(checkpoint, map_location="cpu")
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        step, start = stored["step"], start - stored["seconds"]
    checkpoint.parent.mkdir(exist_ok=True)

    def seconds():
        return time.perf_counter() - start

    def progress(step):
        return max(step / steps, seconds() / (60 * minutes))

    def calls():
        for each in count(step):
            now = progress(each)
            if now >= 1:
                return
            yield name, each, now, GPU_SIZE if device.type == "cuda" else 1

    def save():
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds()}
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)

    saved, seen = seconds(), []
    for batch in ahead(pool, processes, batch_of, calls()) if pool else starmap(batch_of, calls()):
        now = progress(step)
        tokens, positions, targets = (torch.from_numpy(each).to(device, non_blocking=True) for each in batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and now < 1 - FALLING):
            *inner, last = model(tokens, positions)
            loss = loss_of(last, targets, task.answer_at)
            total = loss + INNER_LAYERS * sum(loss_of(each, targets, task.answer_at) for each in inner) / len(inner)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(step, now)
        optimizer.step()
        step += 1
        right = (last.argmax(2) == targets).sum() / (targets >= 0).sum()
        answered = last[:, task.answer_at, : task.classes].argmax(1) == targets[:, task.answer_at]
        seen.append(torch.stack([loss.detach(), right, answered.float().mean()]))
        if step % EVERY == 0:
            loss, right, answered = torch.stack(seen).mean(0).tolist()
            print(f"step {step}: loss {loss:.3f}, tokens right {right:.3f}, answers right {answered:.3f}, "
                  f"length {tokens.shape[1]}, {seconds():.0f} s", flush=True)
            seen.clear()
        if seconds() - saved > SAVE_SECONDS:
            save()
            saved = seconds()
    save()
    return model


def write(model, folder):
    """Weights and settings in Hugging Face's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half().contiguous() for name, tensor in model.tensors().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=STEPS)
    parser.add_argument("--steps", type=int, help="default: what STEPS says")
    parser.add_argument("--minutes", type=float, default=np.inf, help="that training may take; default: as many as it takes")
    parser.add_argument("--processes", type=int, help="that make batches; default: half of the cores with a GPU, else none")
    options = parser.parse_args()
    task = importlib.import_module(options.task).TASK
    processes = options.processes
    if processes is None:
        processes = os.cpu_count() // 2 if torch.cuda.is_available() else 0
    trained = train(options.task, task, options.steps or STEPS[options.task], options.minutes, processes)
    write(trained.cpu(), HERE / "weights" / options.task)
