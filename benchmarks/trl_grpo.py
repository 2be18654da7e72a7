"""CPU time of updates of GRPO by the trainer of TRL."""

from __future__ import annotations

import itertools
import logging
import tempfile
import time
import warnings
from typing import Any

from torch import Tensor

from core.errors import require
from core.torchvision_guard import shield


def milliseconds_of_trl(
    model: Any, prompts: Tensor, letter: int, *, group: int, length: int, minibatches: int, updates: int
) -> list[float]:
    """CPU milliseconds of each update, from sampling to the last of its steps, after one that does not count.

    Args:
        model: a causal language model.
        prompts: ``(P, L)`` tokens.
        letter: the token whose share is the reward.
        group: samples a prompt.
        length: tokens at most.
        minibatches: steps an update.
        updates: that count.

    Raises:
        MissingExtra: TRL is not installed.
    """
    shield()
    trl, datasets, transformers = require("trl", "peers"), require("datasets", "peers"), require("transformers", "lm")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    rows = len(prompts) * group
    text = [" ".join(f"w{i}" for i in row) for row in prompts.tolist()]

    def share(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [row.count(letter) / max(1, len(row)) for row in completion_ids]

    ended: list[float] = []

    class Stopwatch(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ended.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=share,
            args=trl.GRPOConfig(
                output_dir=folder,
                use_cpu=True,
                bf16=False,
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
                save_strategy="no",
                gradient_checkpointing=False,
                per_device_train_batch_size=rows // minibatches,
                steps_per_generation=minibatches,
                num_generations=group,
                max_completion_length=length,
                learning_rate=1e-4,
                lr_scheduler_type="constant",
                max_steps=(updates + 1) * minibatches,
            ),
            train_dataset=datasets.Dataset.from_dict({"prompt": text}),
            processing_class=_words(model.config.vocab_size),
            callbacks=[Stopwatch()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    at = ended[minibatches - 1 :: minibatches]
    return [1000 * (b - a) for a, b in itertools.pairwise(at)]


def _words(vocabulary: int) -> Any:
    """A tokenizer of one word a token."""
    tokenizers, transformers = require("tokenizers", "peers"), require("transformers", "lm")
    words = {f"w{i}": i for i in range(vocabulary - 2)} | {"<pad>": vocabulary - 2, "<eos>": vocabulary - 1}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
