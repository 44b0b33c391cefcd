"""Read pods, and what blocks garbage collection for each.

Route: `read_open_items` counts, for each pod, everything that is unresolved, and `read_pod_states` adds the other
facts; `pods show` and status turn them into sentences.
Every count uses a partial index of unresolved rows, except that of repositories (an index-only count).
Only the status shows dead letters of pods that are no longer registered.
"""

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Row, text

from coordinator.db import paging
from coordinator.db.session import driver_connection, read_connection
from coordinator.domain.findings import FailedVisit, Result, describe_block, sort_findings
from coordinator.domain.findings import Finding as Found
from coordinator.domain.names import Digest, PodName, format_digest
from coordinator.domain.pods import PodKind
from coordinator.domain.refusals import Refusals, describe_refusals_of_pod
from coordinator.domain.watermarks import PodWatermark, ProcessReport
from coordinator.errors import NotFoundError
from coordinator.pods import refusals
from coordinator.pods.shapes import (
    EndpointView,
    FindingView,
    Gaps,
    PodPage,
    PodView,
    ProcessView,
    TokenIssuer,
    WrongToken,
)
from coordinator.pods.vanished_view import EXAMPLES, read_examples
from coordinator.pods.watermarks import read_watermarks

#: How open dead letters end without a loss.
DEAD_LETTERS_REMEDY = (
    "the scheduler reconciles the pods that own their repositories, which resolves them; register repositories that no "
    "pod owns (`baleen pods add`, `baleen pods add-prefix`), then run `baleen dead-letters retry`"
)


class OpenItems(NamedTuple):
    """What is unresolved for one pod."""

    dead_letters: int = 0
    #: Dead letters beyond the pod's limit, which open gaps stand for.
    dead_letters_not_kept: int = 0
    gaps: int = 0
    oldest_gap: dt.datetime | None = None
    #: When a reconcile must begin at the earliest to resolve all gaps; None if one that begins now does.
    gaps_resolve_from: dt.datetime | None = None
    doubtful_removals: int = 0
    unread_manifests: int = 0
    #: A few manifests whose bytes do not say all that they need, in pods whose links cannot be listed.
    pending_examples: Sequence[str] = ()
    #: Links that are gone without a delete event, and a few of them.
    vanished_links: int = 0
    vanished_examples: Sequence[str] = ()

    def describe_blocks(self, pod: str, *, is_reconcilable: bool = True) -> list[str]:
        """Return a sentence for each kind of thing that is unresolved; empty if nothing is."""
        if not is_reconcilable:
            resolve = f"`baleen pods resolve-gaps {pod} --why …`"
            gap, removal = f"{resolve} resolves it", f"{resolve} cancels it"
            unread = f"delete it in the registry, or push the blobs that it needs again, then run {resolve}"
            if self.pending_examples:
                unread += f": {', '.join(self.pending_examples)}"
        else:
            gap = "a reconcile of the pod resolves it"
            if self.gaps_resolve_from is not None:
                gap = (
                    f"a reconcile of the pod that begins after {self.gaps_resolve_from:%Y-%m-%d %H:%M:%S} UTC resolves "
                    "it; the scheduler starts it"
                )
            removal = "it is resolved from the pod's links in storage"
            unread = "the workers retry every few seconds until the object store answers"
        counts = (
            (
                self.dead_letters,
                "open dead letter",
                "",
                DEAD_LETTERS_REMEDY,
            ),
            (
                self.dead_letters_not_kept,
                "dead letter",
                " beyond the limit of the pod",
                "a gap stands for them; find their sender among those that are kept with `baleen dead-letters list`",
            ),
            (
                self.gaps,
                "gap",
                " in which events may be lost",
                gap,
            ),
            (
                self.doubtful_removals,
                "doubtful removal",
                "",
                removal,
            ),
            (
                self.unread_manifests,
                "held manifest",
                " whose references are not known yet",
                unread,
            ),
        )
        reasons = [f"{n} {what}{'' if n == 1 else 's'}{more}: {remedy}" for n, what, more, remedy in counts if n]
        return reasons + self.describe_vanished(pod)

    def describe_vanished(self, pod: str) -> list[str]:
        """Return a sentence about links that vanished; empty if none did."""
        if not self.vanished_links:
            return []
        named = ", ".join(self.vanished_examples)
        more = ", …" if self.vanished_links > len(self.vanished_examples) else ""
        sentence = (
            f"{self.vanished_links} link{'' if self.vanished_links == 1 else 's'} vanished without a delete event "
            f"({named}{more}): list them with `baleen pods vanished {pod}`, find out what deleted them, push what "
            f"must stay again, then run `baleen pods accept-vanished {pod} --why …`"
        )
        return [sentence]


class PodState(NamedTuple):
    """What is known about one pod, and what is unresolved."""

    open_items: OpenItems
    watermark: PodWatermark
    reconciled_at: dt.datetime | None
    #: When its first event was applied. Only a later reconcile shows what was pushed before.
    first_echo: dt.datetime | None = None
    #: Something other than its events shows what it holds, and a reconcile reads it.
    is_reconcilable: bool = True
    #: If not: when an operator last confirmed that the table has everything that the pod holds.
    resolved_at: dt.datetime | None = None
    #: When Kafka had acknowledged the events of the last retried dead letter.
    retried_at: dt.datetime | None = None
    #: Of the doctor's last visit.
    findings: Sequence[Found] = ()
    #: Processes that count and that this visit did not examine.
    unexamined: int = 0
    #: How long after the first event a request of an earlier process may still write.
    request_bound: dt.timedelta = dt.timedelta()
    #: The scheduler's own visit to the newer processes, if it did not prove every check it made.
    failed: FailedVisit | None = None
    #: Checks of a doctor that block nothing (settings.unsafe_findings).
    unsafe_findings: Collection[str] = ()
    #: Its registry sends events. If it does not, only reconciles show what it holds, and only they are required.
    managed: bool = True
    #: Reports of what manifests list that the manifests' bytes contradicted.
    false_reports: int = 0
    kind: PodKind = PodKind.LINK

    def _describe_remedy(self, pod: str) -> str:
        if self.is_reconcilable:
            return f"run `baleen pods reconcile {pod}`"
        return (
            f"compare what its registry holds with `GET /v1/repositories?pod={pod}`, then run "
            f"`baleen pods resolve-gaps {pod} --why …`"
        )

    def _describe_unproved(self, examined: Mapping[str, Result], pod: str) -> str | None:
        unexamined = self.unexamined if self.managed else 0
        return describe_block(
            examined,
            pod,
            unexamined,
            self.unsafe_findings,
            kind=self.kind,
            managed=self.managed,
            failed=self.failed,
        )

    def describe_blocks(self, pod: str, waits_at: str = "") -> list[str]:
        """Return the reasons why garbage collection may not run for the pod; empty if it may.

        `waits_at`: where everything that the watermark waits for is shown, if not by `pods show`.
        """
        reasons = self.open_items.describe_blocks(pod, is_reconcilable=self.is_reconcilable)
        compared_at = self.reconciled_at if self.is_reconcilable else self.resolved_at
        if compared_at is None:
            reasons.append(
                f"never reconciled: what it held before its first event is not known; {self._describe_remedy(pod)}"
            )
        elif self.managed and self.first_echo is not None and compared_at < self.first_echo + self.request_bound:
            after = f"after {self.first_echo + self.request_bound:%Y-%m-%d %H:%M:%S} UTC"
            reasons.append(
                "reconciled before its first event, or before the requests of that time had ended: "
                + (
                    f"the scheduler starts another reconcile {after}"
                    if self.is_reconcilable
                    else f"{after}, {self._describe_remedy(pod)}"
                )
            )
        if self.managed and self.watermark.waits_for:
            first, *others = self.watermark.waits_for
            where = waits_at or f"`baleen pods show {pod}`"
            more = f" (and {len(others)} more: {where})" if others else ""
            reasons.append(f"watermark: {first}{more}")
        if (
            self.managed
            and self.retried_at is not None
            and (self.watermark.at is None or self.watermark.at <= self.retried_at)
        ):
            # Until then its events may still be in Kafka, although the watermark is past their own times.
            reasons.append(
                "dead letter retried and perhaps not applied yet: wait until the watermark has passed "
                f"{self.retried_at:%Y-%m-%d %H:%M:%S} UTC"
            )
        examined = {found.check: found.result for found in self.findings}
        if (not_proved := self._describe_unproved(examined, pod)) is not None:
            reasons.append(not_proved)
        return reasons


_OPEN = text("""
SELECT p.name, 'dead_letters' AS what, count(*) AS n, NULL::timestamptz AS oldest, NULL::timestamptz AS resolve_from
FROM dead_letters d JOIN pods p ON p.name = d.pod WHERE d.resolved_at IS NULL GROUP BY 1
UNION ALL
SELECT p.name, 'gaps', count(*), min(g.noticed_at), max(g.resolves_from) FILTER (WHERE g.resolves_from > now())
FROM gaps g JOIN pods p ON p.id = g.pod_id WHERE g.resolved_at IS NULL GROUP BY 1
UNION ALL
SELECT p.name, 'dead_letters_not_kept', sum(g.dead_letters)::bigint, NULL, NULL
FROM gaps g JOIN pods p ON p.id = g.pod_id WHERE g.resolved_at IS NULL AND g.dead_letters IS NOT NULL GROUP BY 1
UNION ALL
SELECT p.name, 'doubtful_removals', count(*), NULL, NULL
FROM removals x JOIN repositories r ON r.id = x.repository_id JOIN pods p ON p.id = r.pod_id
WHERE x.doubtful_since IS NOT NULL GROUP BY 1
UNION ALL
SELECT p.name, 'unread_manifests', count(DISTINCT x.manifest_id), NULL, NULL
FROM (
    SELECT h.manifest_id, h.repository_id FROM manifests m JOIN repository_manifests h ON h.manifest_id = m.id
    WHERE m.refs IS NULL
    UNION ALL
    SELECT manifest_id, repository_id FROM repository_manifests WHERE links_pending
) x
JOIN repositories r ON r.id = x.repository_id
JOIN pods p ON p.id = r.pod_id
GROUP BY 1
UNION ALL
SELECT p.name, 'vanished_links', count(*), NULL, NULL
FROM removals x JOIN repositories r ON r.id = x.repository_id JOIN pods p ON p.id = r.pod_id
WHERE x.vanished_since IS NOT NULL GROUP BY 1
""")
#: Only of pods whose links are elsewhere: of others the workers list the links.
_PENDING = text("""
SELECT p.name AS pod, x.repository, x.digest FROM pods p CROSS JOIN LATERAL (
    SELECT r.name AS repository, b.digest FROM repository_manifests h
    JOIN repositories r ON r.id = h.repository_id JOIN blobs b ON b.id = h.manifest_id
    WHERE h.links_pending AND r.pod_id = p.id ORDER BY r.name, b.digest LIMIT :limit
) x WHERE NOT p.links_in_store AND p.name = ANY(CAST(:pods AS text[])) ORDER BY 1, 2, 3
""")
_ORPHANS = text("""
SELECT count(*) FROM dead_letters d
WHERE resolved_at IS NULL AND NOT EXISTS (SELECT FROM pods p WHERE p.name = d.pod)
""")

_RECONCILED = text("""
SELECT p.name, max(j.began_at) AS at FROM jobs j JOIN pods p ON p.id = j.pod_id
WHERE j.kind = 'reconcile' AND j.state = 'done' AND j.began_at <= clock_timestamp() GROUP BY 1
""")
_POD_FACTS = text("""
SELECT p.name, p.kind, p.is_reconcilable, p.managed,
       (SELECT max(g.resolved_at) FROM gaps g
        WHERE g.pod_id = p.id AND starts_with(g.resolved_why, 'operator: ')
          AND g.resolved_at <= clock_timestamp()) AS resolved_at,
       (SELECT max(d.resolved_at) FROM dead_letters d
        WHERE d.pod = p.name AND d.resolved_at IS NOT NULL AND d.resolution = 'retried') AS retried_at,
       coalesce((SELECT f.count FROM false_reports f WHERE f.pod_id = p.id), 0) AS false_reports,
       (SELECT min(s.first_seen) FROM processes s WHERE s.pod_id = p.id) AS first_echo
FROM pods p
""")

_FINDINGS = text("""
SELECT p.name, f."check", f.result, f.meaning, f.proof, f.fix, f.found_at
FROM findings f JOIN pods p ON p.id = f.pod_id
""")
_UNEXAMINED = text("""
SELECT p.name, count(*) AS n FROM processes s JOIN pods p ON p.id = s.pod_id
WHERE s.retired_at IS NULL AND s.dead_since IS NULL
  AND s.examined_life IS DISTINCT FROM s.life
GROUP BY 1
""")

_FAILED = text("SELECT p.name, f.at, f.why FROM failed_examinations f JOIN pods p ON p.id = f.pod_id")

_POD = """
SELECT p.name, p.mode, p.kind, p.probe, p.registries, p.created_at, p.managed, p.unmanaged_why, p.unmanaged_by,
       p.token_url, p.token_issuer, p.token_service, p.token_key_ids,
       ARRAY(SELECT prefix FROM pod_prefixes x WHERE x.pod_id = p.id ORDER BY prefix) AS prefixes,
       (SELECT count(*) FROM repositories r WHERE r.pod_id = p.id) AS repositories
FROM pods p
"""
_ONE = text(f"{_POD} WHERE p.name = :name")
_PAGE = text(f'{_POD} WHERE p.name > :after COLLATE "C" ORDER BY p.name COLLATE "C" LIMIT :limit')


def read_open_items(connection: Connection) -> dict[str, OpenItems]:
    """Return what is unresolved, for each pod that has any."""
    found: dict[str, OpenItems] = {}
    for row in connection.execute(_OPEN):
        values: dict[str, Any] = {row.what: row.n}
        if row.what == "gaps":
            values |= {"oldest_gap": row.oldest, "gaps_resolve_from": row.resolve_from}
        found[row.name] = found.get(row.name, OpenItems())._replace(**values)
    unread = [name for name, opened in found.items() if opened.unread_manifests]
    if unread:
        for row in connection.execute(_PENDING, {"pods": unread, "limit": EXAMPLES}):
            example = f"{row.repository}@{format_digest(Digest(row.digest))}"
            found[row.pod] = found[row.pod]._replace(pending_examples=(*found[row.pod].pending_examples, example))
    alarmed = [name for name, opened in found.items() if opened.vanished_links]
    if alarmed:
        for name, named in (read_examples(connection, alarmed)).items():
            found[name] = found[name]._replace(vanished_examples=named)
    return found


def read_pod_states(
    connection: Connection, silence: dt.timedelta, request_bound: dt.timedelta, unsafe_findings: Collection[str] = ()
) -> dict[str, PodState]:
    """Return what is known about every pod. A process without an echo for `silence` is reported as silent."""
    # Watermarks first: each statement sees what is committed when it starts, and a batch may commit between two of
    # them. In this order, whatever a reported watermark has passed is also reported if it is unresolved. So are
    # manifests that a reconcile has found and could not read.
    marks = read_watermarks(connection, silence)
    reconciled: dict[str, dt.datetime] = {row.name: row.at for row in connection.execute(_RECONCILED)}
    opened = read_open_items(connection)
    # In this order, a visit that ends in between has no effect yet. In the other, processes that it met would pass with
    # the findings of the visit before.
    newer: dict[str, int] = {row.name: row.n for row in connection.execute(_UNEXAMINED)}
    failed = {row.name: FailedVisit(row.at, row.why) for row in connection.execute(_FAILED)}
    examined = _read_findings(connection)
    return {
        row.name: PodState(
            opened.get(row.name, OpenItems()),
            marks[row.name],
            reconciled.get(row.name),
            row.first_echo,
            row.is_reconcilable,
            row.resolved_at,
            row.retried_at,
            examined.get(row.name, []),
            newer.get(row.name, 0),
            request_bound,
            failed.get(row.name),
            unsafe_findings,
            row.managed,
            row.false_reports,
            PodKind(row.kind),
        )
        for row in connection.execute(_POD_FACTS)
        # A pod that was added between these statements is reported the next time.
        if row.name in marks
    }


def _read_findings(connection: Connection) -> dict[str, list[Found]]:
    """Return the doctor's findings for each pod, in the order of the checks."""
    found: dict[str, list[Found]] = {}
    for row in connection.execute(_FINDINGS):
        result = Result(row.result)
        each = Found(row.check, result, row.meaning, row.proof, row.fix, row.found_at)
        found.setdefault(row.name, []).append(each)
    return {name: sort_findings(each) for name, each in found.items()}


def count_orphaned_dead_letters(connection: Connection) -> int:
    """Count open dead letters of pods that are no longer registered."""
    return int(connection.scalar(_ORPHANS) or 0)


def read_pod(
    engine: Engine,
    name: PodName,
    silence: dt.timedelta,
    request_bound: dt.timedelta,
    unsafe_findings: Collection[str] = (),
) -> PodView:
    """Return one pod; raises NotFoundError."""
    with read_connection(engine) as connection:
        # In this order, a pod that is removed in between is not found.
        known = read_pod_states(connection, silence, request_bound, unsafe_findings)
        row = connection.execute(_ONE, {"name": name}).one_or_none()
        if row is None or name not in known:
            raise NotFoundError(f"There is no pod {name}: see `baleen pods list`.")
        return _make_pod(row, known[name], refusals.read_recent_by_pod(driver_connection(connection)).get(name))


def read_pod_page(
    engine: Engine,
    silence: dt.timedelta,
    request_bound: dt.timedelta,
    unsafe_findings: Collection[str] = (),
    *,
    cursor: str | None = None,
    limit: int = paging.DEFAULT_LIMIT,
) -> PodPage:
    """Return a page of pods by name."""
    after = paging.decode_cursor("pods", cursor, str) or ""
    with read_connection(engine) as connection:
        rows = connection.execute(_PAGE, {"after": after, "limit": limit}).all()
        known = read_pod_states(connection, silence, request_bound, unsafe_findings)
        refused = refusals.read_recent_by_pod(driver_connection(connection))
    return PodPage(
        items=[_make_pod(row, known[row.name], refused.get(row.name)) for row in rows if row.name in known],
        next=paging.encode_cursor("pods", rows[-1].name) if len(rows) == limit else None,
    )


def _make_pod(row: Row[Any], state: PodState, refused: Refusals | None) -> PodView:
    opened = state.open_items
    return PodView(
        name=row.name,
        mode=row.mode,
        kind=PodKind(row.kind),
        probe=row.probe,
        prefixes=row.prefixes,
        registries=row.registries,
        token_issuer=_make_issuer(row),
        created_at=row.created_at,
        managed=row.managed,
        unmanaged_why=row.unmanaged_why,
        unmanaged_by=row.unmanaged_by,
        repositories=row.repositories,
        gaps=Gaps(open=opened.gaps, oldest=opened.oldest_gap),
        dead_letters=opened.dead_letters,
        dead_letters_not_kept=opened.dead_letters_not_kept,
        doubtful_removals=opened.doubtful_removals,
        unread_manifests=opened.unread_manifests,
        vanished_links=opened.vanished_links,
        false_reports=state.false_reports,
        reconciled_at=state.reconciled_at,
        watermark=state.watermark.at,
        waits_for=state.watermark.waits_for if state.managed else [],
        processes=[_make_process(process) for process in state.watermark.processes],
        endpoints=[EndpointView(**endpoint._asdict()) for endpoint in state.watermark.endpoints],
        wrong_token=None
        if refused is None
        else WrongToken(since=refused.since, last=refused.last, sentence=describe_refusals_of_pod(refused, row.name)),
        findings=[_make_finding(found) for found in state.findings],
        blocked_by=state.describe_blocks(row.name, "see `waits_for`"),
    )


def _make_issuer(row: Row[Any]) -> TokenIssuer | None:
    if row.token_url is None:
        return None
    return TokenIssuer(url=row.token_url, issuer=row.token_issuer, service=row.token_service, key_ids=row.token_key_ids)


def _make_finding(found: Found) -> FindingView:
    return FindingView(
        check=found.check,
        result=found.result.value,
        meaning=found.meaning,
        proof=found.proof,
        fix=found.fix,
        found_at=found.found_at,
    )


def _make_process(process: ProcessReport) -> ProcessView:
    return ProcessView(
        instance_id=process.instance_id,
        state=process.state.value,
        watermark=process.at,
        echoed_at=process.echoed_at,
        dead_since=process.dead_since,
        dead_why=process.dead_why,
        retired_at=process.retired_at,
        retired_why=process.retired_why,
        partitions={str(number): at for number, at in process.partitions.items()},
        dead_letters={str(number): at for number, at in process.dead_letters.items()},
    )
