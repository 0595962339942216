"""The encoder actors as mteb wants an encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from mteb.models.model_meta import ModelMeta
from mteb.similarity_functions import cos_sim, pairwise_cos_sim

Embed = Callable[[Sequence[str]], np.ndarray]


class ActorEncoder:
    """One task's encoder: mteb's `EncoderProtocol` over a function from texts to unit vectors.

    mteb asks for the same texts again: both sides of pairs, each set of a clustering. So vectors
    of texts without a role (neither query nor document) are kept while the task lasts; corpora, of
    which it asks once and in parts, aren't.

    Args:
        embed: texts, prefixes included, to float32 [texts, dim].
        prefixes: what stands before a `query` and a `document`.
    """

    def __init__(self, embed: Embed, prefixes: Mapping[str, str]) -> None:
        self.mteb_model_meta = ModelMeta.create_empty()
        self._embed = embed
        self._prefixes = prefixes
        self._place: dict[str, int] = {}
        self._kept: list[np.ndarray] = []
        self.texts = 0

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: Any = None, **_: Any
    ) -> np.ndarray:
        """Vectors of a loader's batches in their order, float32 [texts, dim]."""
        texts = [text for batch in inputs for text in batch["text"]]
        if prompt_type is None:
            return self.vectors(texts)
        self.texts += len(texts)
        prefix = self._prefixes[prompt_type.value]
        return self._embed([prefix + text for text in texts])

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of texts without a role; what is new is embedded in one go."""
        new = [text for text in dict.fromkeys(texts) if text not in self._place]
        if new:
            self.texts += len(new)
            self._place |= {text: len(self._place) + i for i, text in enumerate(new)}
            self._kept = [np.concatenate([*self._kept, self._embed(new)])]
        return self._kept[0][[self._place[text] for text in texts]]

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of all with all."""
        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of each with its own."""
        return pairwise_cos_sim(embeddings1, embeddings2)
