"""The character tokenizer: a token is a character's place in the sorted alphabet of the training text."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from gpt.errors import DataError, UnknownCharactersError


class CharTokenizer:
    """`encode` turns text into token numbers, `decode` turns them back. The vocabulary is one string, in order."""

    def __init__(self, vocabulary: str) -> None:
        if not vocabulary or len(set(vocabulary)) != len(vocabulary):
            raise DataError("vocabulary must be a string of distinct characters")
        self.vocabulary = vocabulary
        self._codes = np.array([ord(c) for c in vocabulary], np.uint32)
        self._order = np.argsort(self._codes)  # a checkpoint's vocabulary need not be sorted

    @classmethod
    def of(cls, text: str) -> "CharTokenizer":
        """The tokenizer of a text's own characters."""
        return cls("".join(sorted(set(text))))

    @property
    def start(self) -> str:
        """What an empty prompt stands for: a line break, where the vocabulary has one."""
        return "\n" if "\n" in self.vocabulary else self.vocabulary[0]

    def __len__(self) -> int:
        return len(self.vocabulary)

    def unknown(self, text: str) -> Counter[str]:
        """The characters of a text that have no token, with their counts."""
        return Counter({c: n for c, n in Counter(text).items() if c not in self.vocabulary})

    def encode(self, text: str, what: str = "the text") -> np.ndarray:
        """Token numbers of a text: (n,) uint16 or uint32. Raises UnknownCharactersError listing the characters without a token."""
        unknown = self.unknown(text)
        if unknown:
            listed = ", ".join(f"{c!r} x{n}" for c, n in unknown.most_common(20))
            raise UnknownCharactersError(f"{what} has {len(unknown)} characters that the vocabulary lacks: {listed}")
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))
        place = np.searchsorted(self._codes[self._order], codes)
        return self._order[place].astype(np.uint16 if len(self) <= 65536 else np.uint32)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some token numbers."""
        return "".join(self.vocabulary[int(t)] for t in tokens)
