"""What asking a language model may cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stella_ray.learn.asking import AskSettings, Request, body


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may be spent in a folder, over all runs; None is no limit.

    Attributes:
        most_tokens: of prompts and answers together.
        most_cost: in the currency of the prices.
        price_in: of a million tokens of prompts.
        price_out: of a million tokens of answers.
    """

    most_tokens: int | None
    most_cost: float | None
    price_in: float
    price_out: float

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """What so many tokens cost."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    def affordable(
        self, requests: Sequence[Request], ask: AskSettings, spent: tuple[int, int]
    ) -> int:
        """How many of these, from the first on, surely stay below the limits.

        A character is taken for a token and a half, and each answer for as long as it may be:
        Chinese vocabularies need less, so that more is affordable once these are answered.
        """
        if self.most_tokens is None and self.most_cost is None:
            return len(requests)
        tokens_in, tokens_out = spent
        for number, request in enumerate(requests):
            words = body(request, ask)["messages"]
            tokens_in += 32 + math.ceil(1.5 * sum(len(word["content"]) for word in words))
            tokens_out += ask.answer_tokens
            if self.most_tokens is not None and tokens_in + tokens_out > self.most_tokens:
                return number
            if self.most_cost is not None and self.cost(tokens_in, tokens_out) > self.most_cost:
                return number
        return len(requests)
