"""The character tokenizer: a token is the index of a character in the sorted alphabet of the text."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from gpt.errors import DataError, UnknownCharactersError

CODE_POINTS = 0x110000  # in Unicode: few enough for a table


def code_points(text: str) -> np.ndarray:
    """Return the code points of a text: (len(text),) uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


class CharTokenizer:
    """`encode` turns text into tokens and `decode` turns tokens into text. The vocabulary is one string, in token order."""

    def __init__(self, vocabulary: str) -> None:
        self._tokens = np.full(CODE_POINTS, -1, np.int32)  # the token of each code point; -1: it has none
        self._tokens[code_points(vocabulary)] = np.arange(len(vocabulary), dtype=np.int32)
        if not vocabulary or np.count_nonzero(self._tokens >= 0) != len(vocabulary):
            raise DataError("vocabulary must be a non-empty string of distinct characters")
        self.vocabulary = vocabulary
        self.dtype = np.dtype(np.uint16 if len(vocabulary) <= 65536 else np.uint32)  # of the tokens

    @classmethod
    def of(cls, text: str) -> "CharTokenizer":
        """Return the tokenizer of the characters in a text."""
        return cls.of_codes(np.unique(code_points(text)))

    @classmethod
    def of_codes(cls, codes: np.ndarray) -> "CharTokenizer":
        """Return the tokenizer of these code points, which must be sorted."""
        return cls(codes.astype("<u4", copy=False).tobytes().decode("utf-32-le", "surrogatepass"))

    @property
    def start(self) -> str:
        """The text that replaces an empty prompt: a line break, if the vocabulary has one."""
        return "\n" if "\n" in self.vocabulary else self.vocabulary[0]

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode_codes(self, codes: np.ndarray) -> tuple[np.ndarray, Counter[str]]:
        """Return the tokens of code points, and the counts of the characters that have no token and are left out."""
        tokens = self._tokens[codes]
        known = tokens >= 0
        if known.all():
            return tokens.astype(self.dtype), Counter()
        unknown, counts = np.unique(codes[~known], return_counts=True)
        counted = Counter(dict(zip(map(chr, unknown), counts.tolist(), strict=True)))
        return tokens[known].astype(self.dtype), counted

    def unknown(self, text: str) -> Counter[str]:
        """Return the characters of a text that have no token, with their counts."""
        return self.encode_codes(code_points(text))[1]

    def encode(self, text: str, what: str = "the text") -> np.ndarray:
        """Return the tokens of a text: (len(text),) uint16 or uint32.

        what: the name of the text in the error message.
        Raises UnknownCharactersError, which lists the characters that have no token.
        """
        tokens, unknown = self.encode_codes(code_points(text))
        if unknown:
            raise unknown_characters(unknown, what)
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of some tokens."""
        return "".join(self.vocabulary[int(t)] for t in tokens)


def unknown_characters(unknown: Counter[str], what: str) -> UnknownCharactersError:
    """Return the error that lists these characters."""
    listed = ", ".join(f"{c!r} x{n}" for c, n in unknown.most_common(20))
    return UnknownCharactersError(f"{what} has {len(unknown)} characters that the vocabulary lacks: {listed}")
