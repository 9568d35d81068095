"""Trains a small Llama to add digits, and writes it as a folder that engines load.

Arguments: FOLDER SIZE STEPS SEED. An answer is all sums on the way, so the more digits there are,
the more can go wrong. Runs in the engine's environment, on one core.
"""

import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

MOST_DIGITS = 8
END = "</s>"
TOKENS = ("<pad>", "<s>", END, *"0123456789+= ")
NUMBERS = {token: number for number, token in enumerate(TOKENS)}
# A conversation is its last message and a sign of equality: the model knows nothing else.
TEMPLATE = "{{ messages[-1]['content'] }}="
_WIDTH = 2 * MOST_DIGITS + 3 * MOST_DIGITS
_IGNORED = -100
_SUMS_A_STEP = 128
_WARM_UP_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Training:
    """Sizes of a model, and how fast it learns."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    learning_rate: float


SIZES = {
    "1m": Training(hidden_size=128, intermediate_size=512, layers=4, heads=4, learning_rate=3e-3),
    "10m": Training(
        hidden_size=320, intermediate_size=864, layers=8, heads=5, learning_rate=1.5e-3
    ),
}


def sum_of(digits: Sequence[int]) -> tuple[str, str]:
    """Return the question with its sign of equality, and the sums on the way to the answer."""
    sums = [sum(digits[: count + 1]) for count in range(len(digits))]
    return "+".join(map(str, digits)) + "=", " ".join(f"{each:02d}" for each in sums)


def batch(draw: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and labels of sums of all lengths: [sums, width] each."""
    tokens = torch.full((_SUMS_A_STEP, _WIDTH), NUMBERS["<pad>"])
    labels = torch.full((_SUMS_A_STEP, _WIDTH), _IGNORED)
    for row in range(_SUMS_A_STEP):
        digits = [draw.randrange(10) for _ in range(draw.randint(1, MOST_DIGITS))]
        question, answer = sum_of(digits)
        numbers = [NUMBERS[each] for each in question + answer] + [NUMBERS[END]]
        tokens[row, : len(numbers)] = torch.tensor(numbers)
        labels[row, len(question) : len(numbers)] = torch.tensor(numbers[len(question) :])
    return tokens, labels


def new_model(training: Training) -> LlamaForCausalLM:
    """Return a model of random weights."""
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=training.hidden_size,
        intermediate_size=training.intermediate_size,
        num_hidden_layers=training.layers,
        num_attention_heads=training.heads,
        num_key_value_heads=training.heads,
        head_dim=training.hidden_size // training.heads,
        max_position_embeddings=128,
        bos_token_id=NUMBERS["<s>"],
        eos_token_id=NUMBERS[END],
        pad_token_id=NUMBERS["<pad>"],
        # Fused attention is slower backwards for so few tokens.
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


def train(training: Training, steps: int, seed: int) -> LlamaForCausalLM:
    """Return the trained model; equal seeds give equal weights on one machine."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    draw = random.Random(seed)  # noqa: S311 - not a secret
    model, rate = new_model(training), training.learning_rate
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=_WARM_UP_STEPS / steps
    )
    for step in range(steps):
        tokens, labels = batch(draw)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.4f}, {time.process_time():.0f} s", flush=True)
    return model


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of one character a token, and the chat template."""
    tokenizer = Tokenizer(models.WordLevel(NUMBERS, unk_token=TOKENS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(TOKENS[:3]))
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": TOKENS[0],
        "bos_token": TOKENS[1],
        "eos_token": END,
        "chat_template": TEMPLATE,
        "model_max_length": 128,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def main() -> None:
    """Train, and write the model's files into a folder."""
    folder, size, steps, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    train(SIZES[size], steps, seed).to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder)


if __name__ == "__main__":
    main()
