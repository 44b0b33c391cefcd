"""An object store with scripted faults, around any other: it refuses calls, answers late, or does what it denies.

Route: `FaultyStore(store)` -> `before`, `after`, `fail`, `instead`, `lose`, … script it -> the code under test calls it
-> `calls` and `count` show what was called, and `land` delivers requests that were sent and not answered.
A moment is a method's name: the call is about to be made. `delete_many` has two more: SEND, after each permit and
before the request is sent, and ANSWERED; a script may also act at ASK, before each permit. To make a call hang, wait
for an event: `store.before("head", event.wait)`.
Without a script it passes the contract tests of the store that it is around.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from coordinator.errors import UnavailableError
from coordinator.storage.port import DeleteResult, Permit, Target

if TYPE_CHECKING:
    # To a type checker it is a store; when it runs every call goes through `__getattr__`.
    from tests.storage.memory import MemoryObjectStore as _Store
else:
    _Store = object

ASK, SEND, ANSWERED = "ask", "send", "answered"
#: Any call, whatever its method.
ANY = ""

#: Called with each moment and its key, of `delete_many` with all keys, separated by spaces. What it raises is raised.
Observer = Callable[[str, str], object]
#: Makes the answer, given the method that it replaces and the arguments.
Instead = Callable[..., Any]


def raise_unavailable() -> None:
    """Raise what a store says that does not answer."""
    raise UnavailableError("The object store does not answer: try again.")


def from_nth(nth: int) -> range:
    """The nth time and every later one."""
    return range(nth, sys.maxsize)


class _Rule:
    """What happens at a moment, if its key has `key` in it: each time, the nth time only, or those of a range."""

    def __init__(self, moment: str, act: Callable[..., Any], key: str, nth: int | range | None) -> None:
        self.moment = moment
        self.act = act
        self._key = key
        self._nth = range(nth, nth + 1) if isinstance(nth, int) else nth
        self._seen = 0

    def applies(self, moment: str, key: str) -> bool:
        is_meant = moment == self.moment or (self.moment == ANY and moment not in {ASK, SEND, ANSWERED})
        if not is_meant or self._key not in key:
            return False
        self._seen += 1
        return self._nth is None or self._seen in self._nth


class FaultyStore(_Store):
    def __init__(self, inner: Any, observe: Observer = lambda moment, key: None) -> None:
        """`observe` is called at every moment, before anything of the script happens."""
        self.inner = inner
        self._observe = observe
        self._lock = threading.Lock()
        #: Each moment with its key, in order.
        self.calls: list[tuple[str, str]] = []
        #: Targets of requests that were permitted and sent, and that have not been deleted.
        self.in_flight: list[Sequence[Target]] = []
        self.clear()

    # The script

    def before(self, moment: str, act: Callable[[], object], *, key: str = "", nth: int | range | None = None) -> None:
        """Do something at a moment."""
        self._before.append(_Rule(moment, act, key, nth))

    def after(self, method: str, act: Callable[[], object], *, key: str = "", nth: int | range | None = None) -> None:
        """Do something once a call is done: of a listing when it has ended, of an open object when it is closed."""
        self._after.append(_Rule(method, act, key, nth))

    def fail(
        self,
        moment: str = ANY,
        *,
        key: str = "",
        nth: int | range | None = None,
        done: bool = False,
        error: BaseException | None = None,
    ) -> None:
        """Raise an error at a moment, or with `done` once the call is done: then only its answer is lost."""

        def refuse() -> None:
            if error is not None:
                raise error
            raise_unavailable()

        (self.after if done else self.before)(moment, refuse, key=key, nth=nth)

    def instead(self, method: str, do: Instead, *, key: str = "", nth: int | range | None = None) -> None:
        """Answer by `do(real, *arguments)`, where `real` is the method of the store itself."""
        self._instead.append(_Rule(method, do, key, nth))

    def lose(self, *, nth: int | range | None = None, error: BaseException | None = None) -> None:
        """Send requests for deletes and lose their answers: they `land` later."""

        def sent(_: Any, targets: Sequence[Target], permit: Permit) -> Sequence[DeleteResult]:
            permit()
            self.in_flight.append(targets)
            raise error or UnavailableError("The object store does not answer: try again.")

        self.instead("delete_many", sent, nth=nth)

    def send_again(self, between: Callable[[], object], *, nth: int | range | None = 1) -> None:
        """Send a request for deletes, lose its answer, and send it again, as clients of S3 do; the first may `land`."""

        def sent(real: Any, targets: Sequence[Target], permit: Permit) -> Sequence[DeleteResult]:
            permit()
            self.in_flight.append(targets)
            between()
            return real(targets, permit)  # type: ignore[no-any-return]

        self.instead("delete_many", sent, nth=nth)

    def withhold(self, choose: Callable[[Sequence[Target]], Collection[Target]], *, error: str | None = None) -> None:
        """Delete only some targets of each request: the others get an error, or else the answer that they are deleted.

        These may `land` later.
        """

        def sent(real: Any, targets: Sequence[Target], permit: Permit) -> Sequence[DeleteResult]:
            kept = [each for each in choose(targets) if each in targets]
            gone = [each for each in targets if each not in kept]
            if kept:
                self.in_flight.append(kept)
            done = dict(zip(gone, real(gone, permit), strict=True))
            return [done.get(each, DeleteResult(each, error=error)) for each in targets]

        self.instead("delete_many", sent)

    def clear(self) -> None:
        """Remove the script: from now on every call only passes through."""
        self._before: list[_Rule] = []
        self._after: list[_Rule] = []
        self._instead: list[_Rule] = []

    # What happened

    def keys(self, moment: str) -> Sequence[str]:
        """The key of each call so far, in order."""
        return [key for what, key in self.calls if what == moment]

    def count(self, moment: str, key: str = "") -> int:
        return sum(key in each for each in self.keys(moment))

    def land(self) -> None:
        """Carry out the requests that are in flight."""
        landing, self.in_flight = self.in_flight, []
        for targets in landing:
            self.inner.delete_many(targets, lambda: None)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        return partial(self._call, name) if callable(found) else found

    def _call(self, name: str, *arguments: Any, **named: Any) -> Any:
        if name == "delete_many":
            key = " ".join(each.key for each in arguments[0])
        else:
            key = next((each for each in arguments if isinstance(each, str)), "")
        self._reach(name, key)
        real = partial(self._send, key) if name == "delete_many" else getattr(self.inner, name)
        for rule in self._applying(self._instead, name, key):
            real = partial(rule.act, real)
        # A store copies from one of its own kind.
        given = [each.inner if isinstance(each, FaultyStore) else each for each in arguments]
        answer = real(*given, **named)
        done = self._applying(self._after, name, key)
        return _add_end(answer, done) if done else answer

    def _send(self, key: str, targets: Sequence[Target], permit: Permit) -> Sequence[DeleteResult]:
        def permitted() -> None:
            self._act(self._before, ASK, key)
            permit()
            self._reach(SEND, key)

        answers: Sequence[DeleteResult] = self.inner.delete_many(targets, permitted)
        self._reach(ANSWERED, key)
        return answers

    def _reach(self, moment: str, key: str) -> None:
        with self._lock:
            self.calls.append((moment, key))
        self._observe(moment, key)
        self._act(self._before, moment, key)

    def _act(self, rules: Sequence[_Rule], moment: str, key: str) -> None:
        for rule in self._applying(rules, moment, key):
            rule.act()

    def _applying(self, rules: Sequence[_Rule], moment: str, key: str) -> Sequence[_Rule]:
        with self._lock:
            return [rule for rule in rules if rule.applies(moment, key)]


def _add_end(answer: Any, done: Sequence[_Rule]) -> Any:
    """The answer of a call, with what happens at its end."""

    def end() -> None:
        for rule in done:
            rule.act()

    if isinstance(answer, Iterator):
        return _end_listing(answer, end)
    if isinstance(answer, AbstractContextManager):
        return _end_opening(answer, end)
    end()
    return answer


def _end_listing(entries: Iterator[Any], end: Callable[[], None]) -> Iterator[Any]:
    yield from entries
    end()


@contextmanager
def _end_opening(opening: AbstractContextManager[Any], end: Callable[[], None]) -> Iterator[Any]:
    with opening as opened:
        yield opened
    end()
