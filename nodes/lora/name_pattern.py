"""Regular expressions of a LoRA file's metadata, matched in linear time.

A pattern from a file is not trusted: Python's `re` needs exponential time for some, such as `(a+)+b`. Patterns here are
matched by simulating a nondeterministic automaton (Thompson 1968), which reads each character of a name once and holds
a set of states. `re` itself sees single characters only.

Of Python's syntax these are read: characters, `.`, classes such as `[0-9]` and `\\d`, groups, `|`, the anchors `^` and
`$`, and the quantifiers `*`, `+`, `?`, `{n}`, `{n,}` and `{n,m}`. Look-arounds, back references and flags are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

MOST_STATES = 2000  # of one pattern
MOST_DEPTH = 50  # of brackets in brackets
MOST_WORK = 20_000_000  # states times characters over all matches of one file: some seconds at the most

_LITERAL = re.compile(r"[\w.\-]+")
_BOUNDS = re.compile(r"\{(\d*)(,?)(\d*)\}")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_ESCAPE = re.compile(r"\\[dDwWsS]|\\[^0-9a-zA-Z]", re.DOTALL)


class PatternError(ValueError):
    """A pattern that is no regular expression, or more than is read here."""


@dataclass
class _State:
    """One state: the character that leads to `after`, or, where `test` is None, steps that read nothing.

    anchor: "^" or "$" where the steps may be taken at the name's beginning or end alone.
    """

    test: Callable[[str], bool] | None = None
    after: list[int] = field(default_factory=list)
    anchor: str = ""


class _Parser:
    """Builds the automaton of a pattern. Each method returns (first state, last state) of the part it has read."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0
        self.states: list[_State] = []

    def parse(self) -> tuple[int, int]:
        ends = self._alternatives()
        if self.at < len(self.text):
            raise PatternError("it has a bracket too many")
        return ends

    def _add(self, state: _State) -> int:
        if len(self.states) >= MOST_STATES:
            raise PatternError(f"it is larger than {MOST_STATES} states")
        self.states.append(state)
        return len(self.states) - 1

    def _link(self, one: int, other: int) -> None:
        self.states[one].after.append(other)

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _alternatives(self) -> tuple[int, int]:
        first, last = self._add(_State()), self._add(_State())
        while True:
            start, end = self._sequence()
            self._link(first, start)
            self._link(end, last)
            if self._peek() != "|":
                return first, last
            self.at += 1

    def _sequence(self) -> tuple[int, int]:
        first = last = self._add(_State())
        while self._peek() not in ("", "|", ")"):
            start, end = self._repeated()
            self._link(last, start)
            last = end
        return first, last

    def _repeated(self) -> tuple[int, int]:
        begin = self.at
        ends = self._atom()
        stop = self.at
        bounds = self._bounds()
        if bounds is None:
            return ends
        low, high = bounds
        first = last = self._add(_State())
        for number in range(max(low, 1) if high is None else high):
            if number:  # the first copy is the one that has been read
                ends = self._copy(begin, stop)
            self._link(last, ends[0])
            if number >= low:
                self._link(last, self._skip(ends[1]))
            last = ends[1] if number < low else self._joined(ends[1])
        if high is None:
            self._link(last, ends[0])
            out = self._add(_State())
            self._link(last, out)
            if low == 0:
                self._link(first, out)
            last = out
        return first, last

    def _skip(self, end: int) -> int:
        """A state behind `end`, which a repetition that is left out leads to."""
        out = self._add(_State())
        self._link(end, out)
        return out

    def _joined(self, end: int) -> int:
        return self.states[end].after[-1]

    def _copy(self, begin: int, stop: int) -> tuple[int, int]:
        after, self.at = self.at, begin
        ends = self._atom()
        assert self.at == stop
        self.at = after
        return ends

    def _bounds(self) -> tuple[int, int | None] | None:
        """(least, most) of the quantifier that stands here; most is None where there is no limit. None: none stands."""
        simple = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(self._peek())
        if simple is not None:
            self.at += 1
        else:
            found = _BOUNDS.match(self.text, self.at)
            if not found or not (found[1] or found[3]):
                return None
            self.at = found.end()
            if max(len(found[1]), len(found[3])) > 4:
                raise PatternError("it has a repetition larger than any name")
            low = int(found[1] or 0)
            simple = (low, (int(found[3]) if found[3] else None) if found[2] else low)
            if max(low, simple[1] or 0) > MOST_STATES or (simple[1] is not None and simple[1] < low):
                raise PatternError(f"the repetition {found[0]} is none that is read")
        if self._peek() in ("?", "+"):  # lazy or possessive: a lazy one matches the same names
            if self._peek() == "+":
                raise PatternError("it has a possessive quantifier")
            self.at += 1
        if self._peek() in ("*", "+"):
            raise PatternError("it repeats a repetition")
        return simple

    def _atom(self) -> tuple[int, int]:
        char = self._peek()
        if char == "(":
            return self._group()
        if char in ("^", "$"):
            self.at += 1
            state = self._add(_State(anchor=char))
            return state, state
        if char in ("*", "+", "?"):
            raise PatternError(f"nothing stands before {char!r}")
        if char == "[":
            found = _CLASS.match(self.text, self.at)
        elif char == "\\":
            found = _ESCAPE.match(self.text, self.at)
        else:
            found = re.compile(".", re.DOTALL).match(self.text, self.at)
        if not found:
            raise PatternError(f"{self.text[self.at : self.at + 2]!r} is nothing that is read")
        self.at = found.end()
        one, out = self._add(_State(test=_test(found[0]))), self._add(_State())
        self._link(one, out)
        return one, out

    def _group(self) -> tuple[int, int]:
        self.at += 1
        if self._peek() == "?":
            if not self.text.startswith("?:", self.at):
                raise PatternError(f"the group {self.text[self.at - 1 : self.at + 3]!r} is none that is read")
            self.at += 2
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise PatternError(f"its brackets are nested more than {MOST_DEPTH} deep")
        ends = self._alternatives()
        if self._peek() != ")":
            raise PatternError("it lacks a closing bracket")
        self.at += 1
        self.depth -= 1
        return ends


@lru_cache(maxsize=4096)
def _test(atom: str) -> Callable[[str], bool]:
    """Whether a character is matched by an atom: a character, `.`, a class or an escape."""
    try:
        compiled = re.compile(atom if len(atom) > 1 or atom == "." else re.escape(atom))
    except re.error as error:
        raise PatternError(str(error)) from error
    return lambda char: compiled.fullmatch(char) is not None


class NamePattern:
    """PEFT's rule for a key of `rank_pattern` and `alpha_pattern`: `re.match(r"(.*\\.)?(KEY)$", name)`.

    Raises `PatternError` for a key that is no regular expression, or one that is not read here.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.states: Sequence[_State] = ()
        if not _LITERAL.fullmatch(key):
            parser = _Parser(f"(?:.*\\.)?(?:{key})$")
            _balanced(key)
            self.first, self.last = parser.parse()
            self.states = parser.states

    def work(self, name: str) -> int:
        """States times characters: what a match may cost."""
        return len(self.states) * (len(name) + 1)

    def matches(self, name: str) -> bool:
        if not self.states:
            # A key without operators: it is the name's end, after a dot; a dot in it is any character.
            rest = len(name) - len(self.key)
            if rest < 0 or (rest and name[rest - 1] != "."):
                return False
            return all(own in (".", char) for own, char in zip(self.key, name[rest:], strict=True))
        current = self._reach([self.first], 0, name)
        for at, char in enumerate(name):
            steps = [after for i in current if (test := self.states[i].test) and test(char) for after in self._after(i)]
            current = self._reach(steps, at + 1, name)
            if not current:
                return False
        return self.last in current

    def _after(self, state: int) -> list[int]:
        return self.states[state].after

    def _reach(self, start: Sequence[int], at: int, name: str) -> set[int]:
        """The states that are reached from `start` without reading a character."""
        found, stack = set[int](), list(start)
        while stack:
            i = stack.pop()
            if i in found:
                continue
            found.add(i)
            state = self.states[i]
            if state.test is not None or (state.anchor == "^" and at) or (state.anchor == "$" and at < len(name)):
                continue
            stack.extend(state.after)
        return found


def _balanced(key: str) -> None:
    """The key is whole by itself: `a)|(b` would be whole only between the brackets that the rule puts around it."""
    _Parser(key).parse()
