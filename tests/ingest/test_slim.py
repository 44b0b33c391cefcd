"""References are taken out of an envelope, however its bytes come in pieces, and nothing else is."""

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from coordinator.ingest.slim import ReferenceRemover, count_values

TEXTS = st.text(max_size=6) | st.sampled_from(["references", '"references": [', "\\", '\\"', "]", "<" * 40, "events"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)


@example([], {}, {"references": [None]}, [], False)
@given(JSON, JSON, JSON, st.lists(st.integers(1, 40), max_size=30), st.booleans())
def test_only_references_are_taken_out(references: Any, target: Any, event: Any, cuts: list[int], spaced: bool) -> None:
    """What is left is the same envelope with an empty list for the references of its events' targets."""
    inner = (target if isinstance(target, dict) else {"x": target}) | {"references": [references], "digest": "d"}
    outer = {"before": event, "target": inner, "after": event}
    wanted = {"events": [outer | {"target": inner | {"references": []}}] * 2}
    body = json.dumps({"events": [outer] * 2}, indent=1 if spaced else None).encode()
    slim, out, at = ReferenceRemover(), b"", 0
    for cut in cuts:
        out += slim.feed(body[at : at + cut])
        at += cut
    out += slim.feed(body[at:])
    assert json.loads(out) == wanted


@given(st.lists(TEXTS))
def test_values_are_counted_outside_of_strings(texts: list[str]) -> None:
    """Commas count where they part values, and not in a string."""
    assert count_values(json.dumps(texts).encode()) == max(0, len(texts) - 1)
