r"""Remove the references from an envelope while it arrives, because Baleen needs little of a large event.

A manifest of 4 MiB can cause an event six times as large: a registry writes each `<` of a media type as `\u003c`. The
manifest's own bytes are in storage, so its references can be removed here and read there (workers/contents.py).
Not here: what the rest means (normalise.py).
"""

import re

#: Nesting depth of `events[].target.references`; `events[].target` is one level up.
_DEPTH = 4
_KEY = b"references"
_PARENT = b"target"
_STRUCTURE = re.compile(rb'["{}\[\],]')
_NESTED = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}
_INSIDE = rb'(?:[^"\\]++|\\.)*+'
_REST_OF_STRING = re.compile(_INSIDE, re.DOTALL)
_STRING = rb'"' + _INSIDE + rb'"'
_FLAT = rb'[^"{}\[\]]++|' + _STRING
#: Whole strings and what is between them, up to a bracket or to a string that continues in the next piece.
_STRINGS = re.compile(rb"(?:" + _FLAT + rb")*+", re.DOTALL)
#: Also matches objects of strings and numbers: a client chooses how many of them there are.
_OBJECTS = re.compile(rb"(?:" + _FLAT + rb"|\{(?:" + _FLAT + rb")*+\})*+", re.DOTALL)


class ReferenceRemover:
    """Takes the bytes of a JSON text in pieces of any size; returns them with the lists of references emptied."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        #: The last string, as far as it may be the wanted name.
        self._name = b""
        #: What is open at _DEPTH is the target of an event.
        self._in_target = False
        #: The depth of the list that is being removed.
        self._skipping: int | None = None

    def feed(self, chunk: bytes) -> bytes:
        kept: list[bytes] = []
        at = begin = 0
        while True:
            if self._in_string:
                at = self._continue_string(chunk, at)
                if self._in_string:
                    break
                continue
            if self._skipping is not None:
                at = _match_end(_OBJECTS, chunk, at)
            elif self._depth not in {_DEPTH - 1, _DEPTH}:
                at = _match_end(_STRINGS, chunk, at)
            found = _STRUCTURE.search(chunk, at)
            if found is None:
                break
            at, sign = found.end(), found.group()
            if self._is_left_out(sign):
                kept.append(chunk[begin:at])
                self._skipping = self._depth
            self._in_string, self._name = sign == b'"', b""
            self._depth += _NESTED.get(sign, 0)
            if sign == b"]" and self._depth == self._skipping:
                self._skipping = None
                begin = at - 1
        if self._skipping is None:
            kept.append(chunk[begin:])
        return b"".join(kept)

    def _is_left_out(self, sign: bytes) -> bool:
        """Whether to remove what this bracket opens."""
        if sign in {b"{", b"["} and self._depth == _DEPTH - 1:
            self._in_target = sign == b"{" and self._name == _PARENT
        is_list = sign == b"[" and self._depth == _DEPTH and self._skipping is None
        return is_list and self._in_target and self._name == _KEY

    def _continue_string(self, chunk: bytes, at: int) -> int:
        """Continue in a string; return where it ends, or where the piece ends."""
        begin = at
        if self._escaped and at < len(chunk):
            self._escaped = False
            at += 1
        end = _match_end(_REST_OF_STRING, chunk, at)
        self._keep_piece(chunk, begin, end)
        if end == len(chunk):
            return end
        self._in_string = chunk[end : end + 1] != b'"'
        if self._in_string:
            # Nothing follows the backslash in this piece.
            self._escaped = True
            self._keep_piece(chunk, end, end + 1)
        return end + 1

    def _keep_piece(self, chunk: bytes, begin: int, end: int) -> None:
        if len(self._name) <= len(_KEY):
            self._name += chunk[begin : min(end, begin + len(_KEY) + 1)]


def _match_end(pattern: re.Pattern[bytes], chunk: bytes, at: int) -> int:
    """Return where the match of a pattern ends that can also match the empty string."""
    found = pattern.match(chunk, at)
    assert found is not None
    return found.end()


def count_values(body: bytes) -> int:
    """Count the commas of a JSON text outside strings: it has only a few more values than commas."""
    return _ANY_STRING.sub(b"", body).count(b",")


_ANY_STRING = re.compile(rb'"' + _INSIDE + rb'(?:"|\\?\Z)', re.DOTALL)
