"""Answers of the model being trained to a few prompts of the data: progress to be read, not only plotted.

A prompt is a prepared row up to its first trained token, so that the model sees what it is trained on.
Decoding is greedy, in evaluation mode and draws nothing at random: a run with samples takes the same steps
as one without.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from trainer.data.batches import TrainingData
from trainer.engines import Engine
from trainer.placement import Placement

# An event is one line of at most 256 KiB; a character takes up to 12 bytes of it (a surrogate pair escaped).
_MAX_CHARACTERS = 4000


@dataclass(frozen=True)
class Prompt:
    """The start of an example, and the answer that it has in the data.

    Attributes:
        ids: token ids, at least one.
        text: the same as text, with special tokens; of a long one its end.
        reference: what follows, up to the last trained token; of a long one its start.
    """

    ids: tuple[int, ...]
    text: str
    reference: str


def choose_prompts(data: TrainingData, tokenizer: PreTrainedTokenizerBase, count: int) -> tuple[Prompt, ...]:
    """The first validation rows, or training rows where there is no validation split."""
    rows, numbers = (data.validation, data.validation_numbers)
    if not len(numbers):
        rows, numbers = data.train, np.unique(np.concatenate(data.order.epoch_rows(0)))
    return tuple(_prompt(*rows[int(number)], tokenizer) for number in numbers[:count])


class Generator:
    """Gives the model's answers to the same prompts again and again.

    Args:
        tokenizer: names the tokens that end an answer, beside the model's generation config.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        placement: Placement,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
    ) -> None:
        self.prompts = prompts
        self._engine, self._tokenizer, self._placement = engine, tokenizer, placement
        ends = _end_tokens(engine, tokenizer)
        self._padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
        self._config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=ends or None,
            pad_token_id=self._padding,
            use_cache=True,
        )

    def answers(self, should_stop: Callable[[], bool]) -> list[str] | None:
        """One answer to each prompt, all in one batch padded on the left; without special tokens.

        None when asked to stop on the way.
        """
        if should_stop():
            return None
        ids, attention = self._padded()
        model = self._engine.model
        model.eval()
        try:
            with torch.inference_mode(), self._autocast():
                output = model.generate(
                    input_ids=ids,
                    attention_mask=attention,
                    generation_config=self._config,
                    stopping_criteria=StoppingCriteriaList([_Stop(should_stop)]),
                )
        finally:
            model.train()
        if should_stop():
            return None
        new_tokens = output[:, ids.shape[1] :]
        return [self._tokenizer.decode(row, skip_special_tokens=True).strip() for row in new_tokens]

    def _padded(self) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (len(self.prompts), max(len(prompt.ids) for prompt in self.prompts))
        ids, attention = torch.full(shape, self._padding), torch.zeros(shape, dtype=torch.int64)
        for row, prompt in enumerate(self.prompts):
            ids[row, shape[1] - len(prompt.ids) :] = torch.tensor(prompt.ids)
            attention[row, shape[1] - len(prompt.ids) :] = 1
        return ids.to(self._placement.device), attention.to(self._placement.device)

    def _autocast(self) -> ExitStack:
        """The numbers that the model is trained in."""
        stack = ExitStack()
        if self._placement.dtype is not torch.float32:
            stack.enter_context(torch.autocast(self._placement.device.type, dtype=self._placement.dtype))
        return stack


class _Stop(StoppingCriteria):
    """Ends all answers at the next token when the run is asked to stop."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __call__(self, input_ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return torch.full((len(input_ids),), self._should_stop(), device=input_ids.device)


def _prompt(ids: np.ndarray, mask: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    # A row whose first token counts as trained still needs one to begin with.
    trained = np.flatnonzero(mask == 1)
    first = max(1, int(trained[0])) if len(trained) else len(ids)
    last = int(trained[-1]) + 1 if len(trained) else len(ids)
    answer = tokenizer.decode(ids[first:last].tolist(), skip_special_tokens=True).strip()
    text = tokenizer.decode(ids[:first].tolist())
    return Prompt(tuple(ids[:first].tolist()), text[-_MAX_CHARACTERS:], answer[:_MAX_CHARACTERS])


def _end_tokens(engine: Engine, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    config = getattr(engine.model, "generation_config", None)
    of_model = getattr(config, "eos_token_id", None)
    named = of_model if isinstance(of_model, list) else [of_model]
    return sorted({int(end) for end in [*named, tokenizer.eos_token_id] if end is not None})
