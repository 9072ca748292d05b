"""What stands around a question to a chat model."""

OPEN, CLOSE = "<|im_start|>", "<|im_end|>"
SYSTEM = "You are a helpful AI assistant."


def opening(tokenizer):
    """What a chat begins with; nothing where the model's vocabulary has no turns of this kind."""
    return f"{OPEN}system\n{SYSTEM}{CLOSE}\n{OPEN}user\n" if OPEN in tokenizer.special else ""


def answer(tokenizer, beginning):
    """The end of the user's turn and the beginning of the answer."""
    return f"{CLOSE}\n{OPEN}assistant\n{beginning}" if OPEN in tokenizer.special else f"\n{beginning}"
