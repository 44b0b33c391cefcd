"""Tables of pods: what operators registered, registry processes with their watermarks, and findings; tokens of the API.

    pods ─< pod_prefixes    api_tokens
    pods ─< endpoints >─ processes ─< watermarks    pods ─< probes
    pods ─< findings    pods ─ failed_examinations    pods ─ token_refusals    pods ─ false_reports

A *source* is one registry process. W(source, partition), a row of `watermarks`, is a time by the database's clock such
that every event of that source whose request finished before it, and that belongs to the partition, is applied.
Not here: how a pod's watermark follows from these (domain/watermarks.py), SQL that changes them (pods/, tokens/,
table/processes.py, doctor/table.py).
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    ForeignKey,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    UniqueConstraint,
    Uuid,
)
from sqlalchemy.dialects.postgresql import ARRAY

from coordinator.db.schema.columns import (
    BEGIN,
    NOW,
    TRUE,
    check,
    column,
    derived,
    digest,
    flag,
    identity,
    index,
    one_of,
    pod_id,
    table,
    time,
)
from coordinator.domain.pods import LINKS_IN_STORE, RECONCILABLE, PodKind

#: One registry deployment that owns repository name prefixes.
pods = table(
    "pods",
    identity(SmallInteger),
    column("name", Text),
    column("mode", Text, default="manifest"),
    column("kind", Text, default="link"),
    derived("links_in_store", one_of("kind", LINKS_IN_STORE)),
    derived("is_reconcilable", one_of("kind", RECONCILABLE)),
    column("registries", ARRAY(Text), default="{}"),
    # Hash of the bearer token of its notifications. The token has 256 random bits, so a plain hash is enough.
    digest("event_token_sha256"),
    time("created_at", default=BEGIN),
    # The issuer of the tokens for its registry, all set or none: URL, `iss`, `aud`, public keys and their ids.
    column("token_url", Text, null=True),
    column("token_issuer", Text, null=True),
    column("token_service", Text, null=True),
    column("token_keys", Text, null=True),
    column("token_key_ids", ARRAY(Text), null=True),
    # Its registry sends events. If not, only listings of its links show what it holds. With the reason, and the
    # operator who declared it.
    column("managed", Boolean, default=TRUE),
    column("unmanaged_why", Text, null=True),
    column("unmanaged_by", Text, null=True),
    # How its registry is probed.
    column("probe", Text, default="push"),
    UniqueConstraint("name"),
    check("mode", "mode IN ('manifest', 'link')"),
    check("kind", one_of("kind", list(PodKind))),
    check("probe", "probe IN ('push', 'pull')"),
    check("token_issuer", "num_nulls(token_url, token_issuer, token_service, token_keys, token_key_ids) IN (0, 5)"),
    check("unmanaged", "num_nulls(unmanaged_why, unmanaged_by) = CASE WHEN managed THEN 2 ELSE 0 END"),
)

#: Prefix `team` owns `team` and `team/…`. That no two overlap is checked under a lock (pods/table.py).
pod_prefixes = table(
    "pod_prefixes",
    column("prefix", Text, key=True),
    pod_id(),
    index("ix_pod_prefixes_pod_id", "pod_id"),
)

#: A token of the API, with its role.
api_tokens = table(
    "api_tokens",
    column("name", Text, key=True),
    column("role", Text),
    digest("token_sha256"),
    time("created_at", default=BEGIN),
    UniqueConstraint("token_sha256"),
    check("role", "role IN ('read', 'operate')"),
)

#: One registry process: a pod, and the `source.instanceID` that its events carry. It counts for the pod's watermark
#: until it is retired: by a reconcile that began late enough after its death was known, or by an operator with a
#: reason.
processes = table(
    "processes",
    identity(BigInteger),
    pod_id(),
    column("instance_id", Text),
    time("first_seen", default=BEGIN),
    # When its last watermark was applied.
    time("echoed_at", null=True),
    # When it was first known to have ended.
    time("dead_since", null=True),
    column("dead_why", Text, null=True),
    time("retired_at", null=True),
    column("retired_why", Text, null=True),
    # Incremented each time that it counts again after it was dead or retired: its configuration may have changed.
    column("life", Integer, default="1"),
    # The life that the doctor's last visit examined.
    column("examined_life", Integer, null=True),
    # When it returned a probe again after a long silence (domain/watermarks.py, `was_paused`).
    time("paused_until", null=True),
    UniqueConstraint("pod_id", "instance_id"),
    check("dead", "(dead_since IS NULL) = (dead_why IS NULL)"),
    check("retired", "(retired_at IS NULL) = (retired_why IS NULL)"),
)

#: W(source, partition); moves only forward, unless the clock was set back (pods/clock.py).
#: Also for registry.dead-letters: a dead letter blocks GC only once it is in the table.
watermarks = table(
    "watermarks",
    column("process_id", BigInteger, ForeignKey("processes.id", ondelete="CASCADE"), key=True),
    column("topic", Text, default="registry.events", key=True),
    column("partition", Integer, key=True),
    # -infinity while it is only known that the partition exists.
    time("at"),
)

#: One network address of a pod's registry: a URL, and an address that its host's name resolves to.
endpoints = table(
    "endpoints",
    pod_id(key=True),
    column("url", Text, key=True),
    column("address", Text, key=True),
    time("first_seen", default=BEGIN),
    # The last look-up that gave this address; if later ones did not, it is not probed. -infinity: not known.
    time("resolved_at", default=BEGIN),
    time("answered_at", null=True),
    # Since when every probe has failed, and the last error.
    time("failing_since", null=True),
    column("error", Text, null=True),
    # When the last probe was sent whose connection was refused: no process was there.
    time("refused_at", null=True),
    # The process that last returned a nonce, and when that probe was sent.
    column("process_id", BigInteger, ForeignKey("processes.id", ondelete="SET NULL"), null=True),
    time("echoed_at", null=True),
    # More than one process answers here: an answer of another one does not prove that the first is dead.
    flag("shared"),
)

#: A probe: a nonce sent to a registry. `sent_at` is taken before sending, so W never covers too much.
probes = table(
    "probes",
    column("nonce", Uuid, key=True),
    pod_id(),
    column("url", Text),
    column("address", Text),
    time("sent_at", default=NOW),
    # Up to when it was known which process is there, at the time of sending; NULL if that was never known. -infinity:
    # it was sent while the clock was ahead, so its echo is ignored.
    time("known_until", null=True),
    # When the registry had answered it as expected: a process is there.
    time("answered_at", null=True),
    # An event has returned it, in at least one partition: it is known which process answered it.
    flag("echoed"),
    index("ix_probes_sent_at", "sent_at"),
    index("ix_probes_unechoed", "pod_id", "url", "address", where="answered_at IS NOT NULL AND NOT echoed"),
)

#: The doctor's last result for one check of a pod. What is not `proved` blocks GC.
findings = table(
    "findings",
    pod_id(key=True),
    column("check", Text, key=True),
    column("result", Text),
    # What the result means for the pod, the evidence, and what to change and where.
    column("meaning", Text),
    column("proof", Text),
    column("fix", Text),
    time("found_at", default=BEGIN),
    # The identity of what was proved last, where that has to stay the same; else empty.
    column("subject", Text, default=""),
    check("result", "result IN ('proved', 'refuted', 'unproved')"),
)

#: The scheduler's last own visit to unexamined processes of a pod, if it did not prove every check it made.
failed_examinations = table(
    "failed_examinations",
    pod_id(key=True, ondelete="CASCADE"),
    time("at", default=BEGIN),
    # Sentences for the operator.
    column("why", ARRAY(Text)),
)

#: When events in a pod's name were first and last refused for their token. For information only.
token_refusals = table("token_refusals", pod_id(key=True, ondelete="CASCADE"), time("since"), time("last_at"))

#: How often a pod reported references of a manifest that its bytes contradict. For information only.
false_reports = table(
    "false_reports",
    pod_id(key=True, ondelete="CASCADE"),
    column("count", BigInteger),
    time("last_at", default=BEGIN),
    # The manifest of the last one.
    column("manifest", LargeBinary),
)
