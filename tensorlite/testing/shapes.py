"""Shape specifications: "x: B T C, w: C D" says what a layer takes, and inputs are drawn from it.

A specification names the inputs and their axes. Equal letters are axes of equal length, as in einops:

    x: B T C           a float array with three axes, of normal values
    x: ... C           up to two leading axes, the same ones wherever "..." stands
    x: B 3             a fixed length
    qkv: B T 3*H*D     products; 3C and (H D) are others. T+K is a sum.
    w: C gain          multipliers of either sign, not near 0
    a: C 0.1..0.9      floats between two bounds
    ids: B T int<V     integers from 0 to V-1; without axes a Python integer, such as a seed
    mask: T T bool     booleans; without axes a Python one
    scale:             a scalar, which is an array without axes
    b: D?              None in half of the examples
    n_head: =H         the length of an axis as a Python integer

`parse` reads the text. `Specification.example` draws lengths and a seed, from any source of integers: Hypothesis is one.
NumPy draws the values from that seed, so they are of size about 1 and never degenerate.
"""

import functools
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

LEADING = "..."
LONGEST = 5  # of an axis, as drawn; where all axes are unequal, some are longer
MOST_LEADING = 2
LARGEST_SEED = 2**16 - 1
KINDS = ("float", "int", "bool", "gain")

_TOKEN = re.compile(
    r"""\s*(?: (?P<range> -?\d+(?:\.\d+)? \.\. -?\d+(?:\.\d+)? ) | (?P<number> \d+ ) | (?P<name> [A-Za-z_]\w* )
             | (?P<symbol> \.\.\. | [:,()*+<?=] ) | (?P<end> $ ) )""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Length:
    """The length of an axis: a sum of products of numbers and letters. 3*H*D + 1 is ((3, "H", "D"), (1,))."""

    terms: tuple[tuple[int | str, ...], ...]

    def value(self, letters: Mapping[str, int]) -> int:
        """Return the length, given that of every letter."""
        return sum(math.prod(letters[f] if isinstance(f, str) else f for f in term) for term in self.terms)

    @property
    def letters(self) -> list[str]:
        return [f for term in self.terms for f in term if isinstance(f, str)]

    def is_letter(self, letter: str) -> bool:
        """Whether this length is the letter alone."""
        return self.terms == ((letter,),)


@dataclass(frozen=True)
class Input:
    """One input of a specification."""

    name: str
    axes: tuple[Length | str, ...]  # a str is LEADING
    kind: str  # one of KINDS, "range" or "length"
    below: Length | None = None  # the bound of integers, or the value of a "length"
    bounds: tuple[float, float] = (0.0, 1.0)  # of a "range"
    optional: bool = False

    @property
    def letters(self) -> list[str]:
        lengths = [axis for axis in (*self.axes, self.below) if isinstance(axis, Length)]
        return [letter for length in lengths for letter in length.letters]

    def axis_of(self, letter: str, n_leading: int) -> int | None:
        """Return the number of the axis that is this letter alone, the first one for LEADING; None where there is none."""
        before = 0
        for axis in self.axes:
            if axis == LEADING and letter == LEADING:
                return before
            if isinstance(axis, Length) and axis.is_letter(letter):
                return before
            before += n_leading if axis == LEADING else 1
        return None


class Call(NamedTuple):
    """A call of a NumPy generator, to make or to print."""

    method: str
    arguments: tuple

    def made_on(self, random: np.random.Generator) -> Any:
        return getattr(random, self.method)(*self.arguments)

    def __str__(self) -> str:
        return f"random.{self.method}({', '.join(map(repr, self.arguments))})"


@dataclass(frozen=True)
class Example:
    """Inputs of one set of lengths."""

    specification: "Specification"
    letters: dict[str, int]
    leading: tuple[int, ...]
    absent: tuple[str, ...]  # names of the optional inputs that are None
    seed: int

    def inputs(self) -> dict[str, Any]:
        """Return the inputs by name, drawn anew on each call and equal each time."""
        random = np.random.default_rng(self.seed)
        integers = {i.name for i in self.specification.inputs if not i.axes and i.kind in ("int", "bool")}
        inputs = {}
        for name, value in self._values().items():
            if isinstance(value, list):
                a = np.asarray(functools.reduce(operator.mul, [call.made_on(random) for call in value]))
                inputs[name] = a.item() if name in integers else a
            else:
                inputs[name] = value
        return inputs

    def code(self) -> str:
        """Return Python code that draws the inputs."""
        lines = [f"random = np.random.default_rng({self.seed})", "inputs = {"]
        for name, value in self._values().items():
            text = " * ".join(map(str, value)) if isinstance(value, list) else repr(value)
            drawn = self.inputs()[name]
            if isinstance(value, list) and np.ndim(drawn) == 0:
                text = f"{type(drawn).__name__ if isinstance(drawn, int) else 'np.asarray'}({text})"
            lines.append(f'    "{name}": {text},')
        return "\n".join([*lines, "}"])

    def __str__(self) -> str:
        lengths = [f"{letter}={n}" for letter, n in self.letters.items()]
        if self.specification.has_leading:
            lengths.append(f"...={self.leading}")
        lengths += [f"{name}=None" for name in self.absent]
        return ", ".join([*lengths, f"seed {self.seed}"])

    def smaller(self) -> Iterator["Example"]:
        """Yield the examples that are one step smaller: fewer leading axes, a shorter axis, an input absent, seed 0."""
        for n in range(len(self.leading)):
            yield replace(self, leading=self.leading[:n])
        for axis, length in enumerate(self.leading):
            for shorter in range(1, length):
                yield replace(self, leading=(*self.leading[:axis], shorter, *self.leading[axis + 1 :]))
        for letter, length in self.letters.items():
            for shorter in range(1, length):
                yield replace(self, letters=self.letters | {letter: shorter})
        for i in self.specification.inputs:
            if i.optional and i.name not in self.absent:
                yield replace(self, absent=(*self.absent, i.name))
        if self.seed:
            yield replace(self, seed=0)

    def axes_of(self, letter: str) -> dict[str, int]:
        """Return, by name of the input, which axis is this letter. For LEADING it is the first of the leading axes."""
        if letter == LEADING and not self.leading:
            return {}
        present = [i for i in self.specification.inputs if i.name not in self.absent]
        axes = {i.name: i.axis_of(letter, len(self.leading)) for i in present}
        return {name: axis for name, axis in axes.items() if axis is not None}

    def _values(self) -> dict[str, Any]:
        """Return, by name, the calls whose product is the value, or the value itself."""
        return {i.name: None if i.name in self.absent else self._value(i) for i in self.specification.inputs}

    def _value(self, i: Input) -> Any:
        if i.kind == "length":
            assert i.below is not None
            return i.below.value(self.letters)
        shape: tuple[int, ...] = ()
        for axis in i.axes:
            shape += (axis.value(self.letters),) if isinstance(axis, Length) else self.leading
        if i.kind == "int":
            assert i.below is not None
            return [Call("integers", (0, i.below.value(self.letters), shape))]
        if i.kind == "bool":
            return [Call("integers", (0, 2, shape, "bool"))]
        if i.kind == "range":
            return [Call("uniform", (*i.bounds, shape))]
        if i.kind == "gain":
            return [Call("uniform", (0.5, 2.0, shape)), Call("choice", ([-1.0, 1.0], shape))]
        return [Call("standard_normal", (shape,))]


@dataclass(frozen=True)
class Specification:
    """What inputs a layer takes."""

    text: str
    inputs: tuple[Input, ...] = field(repr=False)

    @cached_property
    def letters(self) -> list[str]:
        """The letters in their order of appearance."""
        return list(dict.fromkeys(letter for i in self.inputs for letter in i.letters))

    @property
    def has_leading(self) -> bool:
        return any(LEADING in i.axes for i in self.inputs)

    def example(self, integer: Callable[[int, int], int]) -> Example:
        """Draw an example. In three of four all lengths differ; in the others, axes of equal length and of length 1 are common.

        integer: draws an integer between two bounds, which may both occur, as `random.randint` does.
        """
        unequal = integer(0, 3) > 0
        n_leading = integer(0, MOST_LEADING) if self.has_leading else 0
        lengths = [integer(1, LONGEST) for _ in range(len(self.letters) + n_leading)]
        if unequal:
            lengths = _made_unequal(lengths)
        n = len(self.letters)
        absent = tuple(i.name for i in self.inputs if i.optional and integer(0, 1) == 0)
        letters = dict(zip(self.letters, lengths[:n], strict=True))
        return Example(self, letters, tuple(lengths[n:]), absent, seed=integer(0, LARGEST_SEED))

    def equal_lengths(self, length: int) -> Example:
        """Return an example in which every letter and each leading axis has this length, and nothing is absent."""
        leading = (length,) * MOST_LEADING if self.has_leading else ()
        return Example(self, dict.fromkeys(self.letters, length), leading, (), seed=0)


def _made_unequal(lengths: list[int]) -> list[int]:
    """Lengthen every axis that is as long as an earlier one, to the next length that is free."""
    unequal: list[int] = []
    for length in lengths:
        while length in unequal:
            length += 1
        unequal.append(length)
    return unequal


def drawn_inputs(specification: str) -> Any:
    """Return a Hypothesis strategy for the inputs of a layer, a dict of arrays by name.

    specification: such as "x: B T C, w: C D, b: D?"; the notation is explained at the top of this file.

    Hypothesis draws the lengths and a seed, NumPy the values. A failing example shrinks to the shortest axes and to seed 0.
    Raises ValueError for a specification that cannot be read, with the place.
    """
    return drawn_examples(parse(specification)).map(lambda example: example.inputs())


def drawn_examples(specification: Specification) -> Any:
    """Return a Hypothesis strategy for the examples of a specification."""
    from hypothesis import strategies as st

    @st.composite
    def examples(draw: Callable) -> Example:
        return specification.example(lambda low, high: draw(st.integers(low, high)))

    return examples()


# ---- reading the text ----


def parse(text: str) -> Specification:
    """Read a specification. Raises ValueError, with the place, for one that cannot be read."""
    return _Parser(text).specification()


class _Token(NamedTuple):
    kind: str  # a group of _TOKEN
    text: str
    start: int
    end: int


class _Parser:
    """Recursive descent over the tokens of a specification, one method per part of the grammar."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self._tokens()
        self.position = 0

    def specification(self) -> Specification:
        inputs: list[Input] = []
        while not self.at_end():
            start = self.token
            new = self.input()
            if new.name in [i.name for i in inputs]:
                raise self.error(f"the input {new.name} is already there", start)
            inputs.append(new)
            if not self.at_end():
                self.take(",", "expected an axis, or a comma before the next input")
        if not inputs:
            raise self.error("a specification names at least one input, as in 'x: B T C'")
        return Specification(self.text, tuple(inputs))

    def input(self) -> Input:
        """Read name: axes kind ?"""
        if self.token.kind != "name":
            raise self.error("expected the name of an input")
        name = self.next().text
        self.take(":", f"expected a colon after the input {name}, as in '{name}: B T C'")
        axes: list[Length | str] = []
        while (token := self.token).text in (LEADING, "(") or (token.kind in ("name", "number") and token.text not in KINDS):
            if token.text == LEADING and LEADING in axes:
                raise self.error("'...' stands once per input")
            axes.append(self.next().text if token.text == LEADING else self.length())
        options = self.kind(axes)
        return Input(name, tuple(axes), **options, optional=self.skip("?"))

    def kind(self, axes: list[Length | str]) -> dict[str, Any]:
        """Read what the values are. Returns the fields of Input that say so."""
        if self.skip("="):
            if axes:
                raise self.error("'=' gives a Python integer, which has no axes")
            return {"kind": "length", "below": self.length()}
        if self.token.kind == "range":
            low, _, high = self.token.text.partition("..")
            if not float(low) < float(high):
                raise self.error("the lower bound comes first")
            self.next()
            return {"kind": "range", "bounds": (float(low), float(high))}
        if self.token.text not in KINDS:
            return {"kind": "float"}
        kind = self.next().text
        if kind != "int":
            return {"kind": kind}
        self.take("<", "expected the bound of the integers, as in 'ids: B T int<V'")
        return {"kind": kind, "below": self.length()}

    def length(self) -> Length:
        """Read a sum of products."""
        terms = [self.product()]
        while self.skip("+"):
            terms.append(self.product())
        return Length(tuple(terms))

    def product(self) -> tuple[int | str, ...]:
        """Read factors with * between them. A number may stand directly before a letter or parenthesis."""
        factors = self.factor()
        while True:
            before, token = self.tokens[self.position - 1], self.token
            sticks = before.kind == "number" and before.end == token.start and (token.kind == "name" or token.text == "(")
            if not sticks and not self.skip("*"):
                return factors
            factors += self.factor()

    def factor(self) -> tuple[int | str, ...]:
        """Read a number, a letter, or a product in parentheses, with or without * between its factors."""
        if self.skip("("):
            factors = self.product()
            while not self.skip(")"):
                factors += self.product()
            return factors
        if self.token.kind not in ("name", "number") or self.token.text in KINDS:
            raise self.error("expected the letter or the length of an axis")
        if self.token.kind == "number" and int(self.token.text) == 0:
            raise self.error("a length is at least 1")
        token = self.next()
        return (int(token.text),) if token.kind == "number" else (token.text,)

    # ---- tokens ----

    def _tokens(self) -> list[_Token]:
        tokens: list[_Token] = []
        end = 0
        while not tokens or tokens[-1].kind != "end":
            match = _TOKEN.match(self.text, end)
            if match is None:
                rest = self.text[end:]
                start = end + len(rest) - len(rest.lstrip())
                raise self.error(f"{self.text[start]!r} has no meaning", _Token("unknown", "", start, start))
            kind = match.lastgroup or ""
            end = match.end()
            tokens.append(_Token(kind, match[kind], match.start(kind), end))
        return tokens

    @property
    def token(self) -> _Token:
        return self.tokens[self.position]

    def at_end(self) -> bool:
        return self.token.kind == "end"

    def next(self) -> _Token:
        """Return this token and go on to the next one."""
        self.position += 1
        return self.tokens[self.position - 1]

    def skip(self, symbol: str) -> bool:
        """Go on if this token is the symbol, and return whether it was."""
        found = self.token.text == symbol
        self.position += found
        return found

    def take(self, symbol: str, otherwise: str) -> None:
        if not self.skip(symbol):
            raise self.error(otherwise)

    def error(self, message: str, at: _Token | None = None) -> ValueError:
        """Return the error, with the line of the text and a mark below the place."""
        start = (at or self.token).start
        first = self.text.rfind("\n", 0, start) + 1
        line = self.text[first:].partition("\n")[0]
        return ValueError(f"{message}:\n    {line}\n    {' ' * (start - first)}^")
