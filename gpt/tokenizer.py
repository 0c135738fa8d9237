"""The character tokenizer: a token is a character's place in the sorted alphabet of the training text."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from gpt.errors import DataError, UnknownCharactersError

CODE_POINTS = 0x110000  # of Unicode: a table of them is small


def code_points(text: str) -> np.ndarray:
    """The characters' numbers: (len(text),) uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


class CharTokenizer:
    """`encode` turns text into token numbers, `decode` turns them back. The vocabulary is one string, in order."""

    def __init__(self, vocabulary: str) -> None:
        self._places = np.full(CODE_POINTS, -1, np.int32)  # of each code point; -1: it has no token
        self._places[code_points(vocabulary)] = np.arange(len(vocabulary), dtype=np.int32)
        if not vocabulary or np.count_nonzero(self._places >= 0) != len(vocabulary):
            raise DataError("vocabulary must be a string of distinct characters")
        self.vocabulary = vocabulary
        self.dtype = np.dtype(np.uint16 if len(vocabulary) <= 65536 else np.uint32)  # of tokens

    @classmethod
    def of(cls, text: str) -> "CharTokenizer":
        """The tokenizer of a text's own characters."""
        return cls.of_codes(np.unique(code_points(text)))

    @classmethod
    def of_codes(cls, codes: np.ndarray) -> "CharTokenizer":
        """The tokenizer of the characters with these numbers, which are in order."""
        return cls(codes.astype("<u4", copy=False).tobytes().decode("utf-32-le", "surrogatepass"))

    @property
    def start(self) -> str:
        """What an empty prompt stands for: a line break, where the vocabulary has one."""
        return "\n" if "\n" in self.vocabulary else self.vocabulary[0]

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode_codes(self, codes: np.ndarray) -> tuple[np.ndarray, Counter[str]]:
        """Token numbers of code points, and the characters without a token, with their counts; they are left out."""
        places = self._places[codes]
        known = places >= 0
        if known.all():
            return places.astype(self.dtype), Counter()
        unknown, counts = np.unique(codes[~known], return_counts=True)
        return places[known].astype(self.dtype), Counter(dict(zip(map(chr, unknown), counts.tolist(), strict=True)))

    def unknown(self, text: str) -> Counter[str]:
        """The characters of a text that have no token, with their counts."""
        return self.encode_codes(code_points(text))[1]

    def encode(self, text: str, what: str = "the text") -> np.ndarray:
        """Token numbers of a text: (n,) uint16 or uint32. Raises UnknownCharactersError listing the characters without a token."""
        tokens, unknown = self.encode_codes(code_points(text))
        if unknown:
            raise unknown_characters(unknown, what)
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some token numbers."""
        return "".join(self.vocabulary[int(t)] for t in tokens)


def unknown_characters(unknown: Counter[str], what: str) -> UnknownCharactersError:
    """The error that lists them."""
    listed = ", ".join(f"{c!r} x{n}" for c, n in unknown.most_common(20))
    return UnknownCharactersError(f"{what} has {len(unknown)} characters that the vocabulary lacks: {listed}")
