"""Train the small models of the long-range tasks: BERT in PyTorch, on one thread, Pathfinder in 7 minutes.

    pip install torch safetensors
    python bench/long_range/train.py listops [--steps N]      or pathfinder, texts

Stops and goes on where it stopped: what it needs is kept under bench/.cache. The learning rate is constant and falls to 0 over
the last fifth. Writes the model in Hugging Face's layout, in float16, to bench/long_range/weights/TASK.
"""

import argparse
import importlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache"
#: Of Pathfinder as its committed weights were trained; models of the other two are not committed yet.
STEPS = {"listops": 1500, "pathfinder": 900, "texts": 1500}
FALLING = 0.2  # last share of the steps, over which the learning rate falls
WARM_UP = 100
PARTS = ("query", "key", "value")
LEARNING_RATE = 1e-3
INNER_LAYERS = 0.3  # weight of the same questions to all layers before the last
EVERY = 50  # steps between lines
SAVE_SECONDS = 60


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


def learning_rate(step, steps):
    """Constant after the warm-up; falls to 0 over the last steps."""
    return LEARNING_RATE * min(1, (step + 1) / WARM_UP, (steps - step) / (FALLING * steps))


def train(name, task, steps):
    """Train to `steps` from the last checkpoint."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Encoder(task)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    checkpoint = CACHE / f"long_range_{name}.pt"
    step = 0
    if checkpoint.exists():
        stored = torch.load(checkpoint)
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        step = stored["step"]
    checkpoint.parent.mkdir(exist_ok=True)

    def save():
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)

    saved, seen = time.perf_counter(), []
    while step < steps:
        falling = step >= (1 - FALLING) * steps
        batch = task.training_batch(np.random.default_rng([step, 1]), step, falling)
        tokens, positions, targets = map(torch.from_numpy, batch)
        *inner, last = model(tokens, positions)
        loss = loss_of(last, targets, task.answer_at)
        total = loss + INNER_LAYERS * sum(loss_of(each, targets, task.answer_at) for each in inner) / len(inner)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps)
        optimizer.step()
        step += 1
        right = (last.argmax(2) == targets)[targets >= 0].float().mean().item()
        answered = last[:, task.answer_at, : task.classes].argmax(1) == targets[:, task.answer_at]
        seen.append((loss.item(), right, answered.float().mean().item(), tokens.shape[1]))
        if step % EVERY == 0:
            loss, right, answered, length = np.mean(seen[-EVERY:], axis=0)
            print(f"step {step}: loss {loss:.3f}, tokens right {right:.3f}, answers right {answered:.3f}, length {length:.0f}, "
                  f"CPU {time.process_time():.0f} s", flush=True)
        if time.perf_counter() - saved > SAVE_SECONDS:
            save()
            saved = time.perf_counter()
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
    options = parser.parse_args()
    task = importlib.import_module(options.task).TASK
    trained = train(options.task, task, options.steps or STEPS[options.task])
    write(trained, HERE / "weights" / options.task)
