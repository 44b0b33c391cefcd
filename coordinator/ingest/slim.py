r"""Take the references out of an envelope while it arrives: what Baleen needs of a large event is small.

A manifest of 4 MiB can make an event of six times as much: a registry writes each `<` of a media type as `\u003c`. The
manifest's own bytes are in storage, so its references can be left out and are read there (workers/contents.py).
Not here: what the rest means (normalise.py).
"""

import re

#: `events[].target.references` stands below so many brackets.
_DEPTH = 4
_KEY = b"references"
_STRUCTURE = re.compile(rb'["{}\[\],]')
_NESTED = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}
_IN_STRING = re.compile(rb'["\\]')


class Slim:
    """Give it the bytes of a JSON text in pieces of any size; returns them with the lists of references emptied."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        #: The last string, as far as it may be the name that is looked for.
        self._name = b""
        #: The depth of the list that is left out.
        self._skipping: int | None = None

    def feed(self, chunk: bytes) -> bytes:
        kept: list[bytes] = []
        at = begin = 0
        while True:
            if self._in_string:
                at = self._string(chunk, at)
                if self._in_string:
                    break
                continue
            found = _STRUCTURE.search(chunk, at)
            if found is None:
                break
            at, sign = found.end(), found.group()
            if sign == b"[" and self._skipping is None and self._depth == _DEPTH and self._name == _KEY:
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

    def _string(self, chunk: bytes, at: int) -> int:
        """Go on in a string; return where it ends, or where the piece does."""
        while at < len(chunk):
            if self._escaped:
                self._escaped = False
                self._take(chunk, at, at + 1)
                at += 1
                continue
            found = _IN_STRING.search(chunk, at)
            if found is None:
                self._take(chunk, at, len(chunk))
                return len(chunk)
            self._take(chunk, at, found.start())
            at = found.end()
            if found.group() == b'"':
                self._in_string = False
                return at
            self._escaped = True
            self._take(chunk, found.start(), at)
        return at

    def _take(self, chunk: bytes, begin: int, end: int) -> None:
        if len(self._name) <= len(_KEY):
            self._name += chunk[begin : min(end, begin + len(_KEY) + 1)]


def values(body: bytes) -> int:
    """Count the commas of a JSON text that are in no string: it has little more values than that."""
    return _STRINGS.sub(b"", body).count(b",")


_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
