"""Any causal language model of transformers as a policy over token sequences."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import InputError, require
from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.policy import NOTHING, Stepwise, sample_stepwise, scores_of
from core.torchvision_guard import shield

PromptTokens = dict[str, Tensor]
"""``input_ids`` and ``attention_mask``, ``(P, L)`` each, padded on the left (a tokenizer's ``padding_side="left"``)."""


@dataclass(frozen=True)
class Cached:
    """B sequences that a model has read.

    Attributes:
        cache: the model's keys and values, S places a sequence; it is never changed in place.
        mask: ``(B, S)`` bool, which places hold a token.
    """

    cache: Any
    mask: Tensor


class CausalLMPolicy(nn.Module, Stepwise):
    """A causal language model that answers prompts; its context are ``PromptTokens``.

    A prompt is encoded once for all its answers, in sampling, scoring and search alike. Positions are counted over the
    tokens that are there, so padding changes no score. Padding is known by the masks alone: the symbol for it may be
    the end symbol. The model is put into evaluation mode: with dropout the ratios of an update would not start at 1.

    Args:
        model: of transformers, such as ``load_causal_lm`` gives.
        eos: the symbol that ends an answer.
        pad: stands where there is no token; any symbol of the model will do.
        value_head: maps hidden states ``(..., D)`` to ``(..., 1)``; lets ``score`` fill ``value``.
        numbers_at_once: rows x tokens x V that are turned into float32 log-probabilities at once; more are done in
            parts, whose intermediate results the backward pass computes again.
    """

    def __init__(
        self,
        model: nn.Module,
        eos: int,
        pad: int = 0,
        *,
        value_head: nn.Module | None = None,
        numbers_at_once: int = 2**27,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.value_head = value_head
        self.eos, self.pad, self.numbers_at_once = eos, pad, numbers_at_once
        config: Any = model.config
        self.vocabulary = int(config.vocab_size)
        self.longest: int | None = getattr(config, "max_position_embeddings", None)
        # transformers 5 renamed the argument and the field of the output.
        named = "cache" in inspect.signature(model.forward).parameters
        self.cache_name = "cache" if named else "past_key_values"
        self.eval()

    def start(self, context: PromptTokens, group: Tensor) -> tuple[Tensor, Cached]:
        """See ``StepwisePolicy.start``.

        Raises:
            InputError: a prompt is not padded on the left, is empty, or longer than the model's context.
        """
        out, state = self._read(context)
        return out.logits[group, -1], self.select(state, group)

    def advance(self, state: Cached, tokens: Tensor) -> tuple[Tensor, Cached]:
        """See ``StepwisePolicy.advance``.

        Raises:
            InputError: the sequences are as long as the model's context.
        """
        self._check_room(state.mask.shape[1] + 1)
        out, state = self._go_on(state, tokens.unsqueeze(1), torch.ones_like(tokens, dtype=torch.bool).unsqueeze(1))
        return out.logits[:, -1], state

    def select(self, state: Cached, rows: Tensor) -> Cached:
        """See ``StepwisePolicy.select``."""
        return Cached(_each_layer(state.cache, lambda x: x[rows]), state.mask[rows])

    def join(self, states: Sequence[Cached]) -> Cached:
        """One state of the sequences of several, which may have read different numbers of tokens."""
        places = max(state.mask.shape[1] for state in states)
        masks = torch.cat([nn.functional.pad(state.mask, (places - state.mask.shape[1], 0)) for state in states])
        # Where every sequence has a gap, the tokens move to the right and the left-most places go.
        used = int(masks.sum(1).max())
        order = masks.int().argsort(dim=1, stable=True)[:, places - used :]
        joined = copy.copy(states[0].cache)
        layers = zip(*(state.cache.layers for state in states), strict=True)
        joined.layers = [_joined_layer(each, places, order) for each in layers]
        return Cached(joined, masks.gather(1, order))

    def sample(
        self,
        context: PromptTokens,
        n: int,
        max_length: int,
        temperature: float = 1.0,
        prefix: TokenBatch | None = None,
        generator: torch.Generator | None = None,
    ) -> TokenBatch:
        """See ``SequencePolicy.sample``.

        Raises:
            InputError: prompt and ``max_length`` exceed the model's context, or as ``start``.
        """
        self._check_room(context["input_ids"].shape[1] + max_length)
        return sample_stepwise(self, context, n, max_length, temperature, prefix, generator)

    def score(self, batch: TokenBatch, temperature: float = 1.0, need: frozenset[str] = NOTHING) -> TokenScores:
        """See ``SequencePolicy.score``; fills entropy, logits, hidden and, if there is a head for it, value.

        Raises:
            InputError: prompt and answer, but for its last token, exceed the model's context, or as ``start``.
        """
        length = batch.tokens.shape[1]
        # The last token is not read: a value beam asks for the value after an answer that fills the context.
        self._check_room(batch.context["input_ids"].shape[1] + length - 1)
        deep = "hidden" in need or ("value" in need and self.value_head is not None)
        out, state = self._read(batch.context, deep)
        parts = [out.logits[batch.group, -1:]]
        hidden = [out.hidden_states[-1][batch.group, -1:]] if deep else []
        if length > 1:
            tokens = torch.where(batch.valid, batch.tokens, self.pad)[:, :-1]
            out, _ = self._go_on(self.select(state, batch.group), tokens, batch.valid[:, :-1], deep)
            parts.append(out.logits)
            hidden += [out.hidden_states[-1]] if deep else []
        logits = torch.cat(parts, 1)
        states = torch.cat(hidden, 1) if deep else None
        value = None
        if "value" in need and self.value_head is not None:
            value = self.value_head(states).squeeze(-1).float()
        return scores_of(
            logits, batch, temperature, need, hidden=states, value=value, numbers_at_once=self.numbers_at_once
        )

    def _read(self, context: PromptTokens, deep: bool = False) -> tuple[Any, Cached]:
        """The model's output for the last token of each prompt, and its state."""
        mask = self._checked(context)
        out = self.model(
            input_ids=torch.where(mask, context["input_ids"], self.pad),
            attention_mask=mask.long(),
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
            output_hidden_states=deep,
        )
        return out, Cached(getattr(out, self.cache_name), mask)

    def _go_on(self, state: Cached, tokens: Tensor, valid: Tensor, deep: bool = False) -> tuple[Any, Cached]:
        """The model's output for further tokens ``(B, t)``, and the state after them."""
        mask = torch.cat([state.mask, valid], 1)
        # The cache writes a layer's longer tensors in place of the shorter ones; a copy of the layers keeps those.
        cache = _each_layer(state.cache, lambda x: x)
        out = self.model(
            input_ids=tokens,
            attention_mask=mask.long(),
            position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :],
            use_cache=True,
            output_hidden_states=deep,
            **{self.cache_name: cache},
        )
        return out, Cached(cache, mask)

    def _checked(self, context: PromptTokens) -> Tensor:
        """The prompts' mask."""
        mask = context["attention_mask"].bool()
        self._check_room(mask.shape[1])
        # From the first token on there is no gap, and the last place is taken.
        good = (mask[:, 1:] | ~mask[:, :-1]).all(1) & mask[:, -1]
        if not bool(good.all()):
            row = int((~good).nonzero()[0])
            raise InputError(
                f"attention_mask: row {row} is {context['attention_mask'][row].tolist()}; "
                "prompts of at least one token, padded on the left, are allowed"
            )
        return mask

    def _check_room(self, places: int) -> None:
        if self.longest is not None and places > self.longest:
            raise InputError(f"prompt and answer have {places} tokens; the model's context allows {self.longest}")


def load_causal_lm(path: str, **kwargs: Any) -> Any:
    """A model from a folder on this machine; nothing is downloaded, and only safetensors are read.

    Raises:
        MissingExtra: transformers is not installed.
        InputError: there is no such model.
    """
    shield()
    transformers = require("transformers", "lm")
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            path, local_files_only=True, use_safetensors=True, **kwargs
        )
    except OSError as error:
        raise InputError(f"{path}: no causal language model in safetensors: {str(error).splitlines()[0]}") from error


def _each_layer(cache: Any, change: Any) -> Any:
    """A copy of a cache with keys and values changed; the cache itself stays as it is."""
    changed = copy.copy(cache)
    changed.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in changed.layers:
        layer.keys, layer.values = change(layer.keys), change(layer.values)
    return changed


def _joined_layer(layers: Sequence[Any], places: int, order: Tensor) -> Any:
    """One layer of the rows of several, padded on the left to ``places`` and then reordered."""
    joined = copy.copy(layers[0])
    if getattr(joined, "is_sliding", False):
        raise InputError("model: has sliding windows; search by values or trees needs full attention in every layer")
    for name in ("keys", "values"):
        tensors = [getattr(layer, name) for layer in layers]
        padded = torch.cat([nn.functional.pad(x, (0, 0, places - x.shape[2], 0)) for x in tensors])
        index = order[:, None, :, None].expand(-1, padded.shape[1], -1, padded.shape[3])
        setattr(joined, name, padded.gather(2, index))
    return joined
