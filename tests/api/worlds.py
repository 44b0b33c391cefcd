"""Random facts: manifests, holdings and links of two pods."""

from hypothesis import strategies as st

from coordinator.domain.references import ManifestKind
from tests.api.harness import Facts

KINDS = st.sampled_from(list(ManifestKind))


@st.composite
def worlds(draw: st.DrawFn) -> list[tuple[str, int, int, object]]:
    """Steps that build facts: manifests 0-9 over blobs 10-19, held and linked by repositories of two pods."""
    steps: list[tuple[str, int, int, object]] = []
    for manifest in range(draw(st.integers(1, 6))):
        below = list(range(manifest)) + list(range(10, 20))
        refs = draw(st.none() | st.lists(st.sampled_from(below), unique=True, max_size=6))
        steps.append(("manifest", manifest, 0, (draw(KINDS), refs)))
        for pod, name in draw(st.sets(st.tuples(st.integers(0, 1), st.integers(0, 2)), max_size=4)):
            steps.append(("hold", manifest, pod, f"r{name}"))
    for blob, pod, name in draw(
        st.sets(st.tuples(st.integers(10, 21), st.integers(0, 1), st.integers(0, 2)), max_size=6)
    ):
        steps.append(("link", blob, pod, f"r{name}"))
    return steps


def build(facts: Facts, steps: list[tuple[str, int, int, object]]) -> None:
    for what, blob, pod, rest in steps:
        if what == "manifest":
            kind, refs = rest  # type: ignore[misc]
            facts.manifest(blob, kind, refs)
        elif what == "hold":
            facts.hold(facts.repository(pod, str(rest)), blob)
        else:
            facts.link(facts.repository(pod, str(rest)), blob)
