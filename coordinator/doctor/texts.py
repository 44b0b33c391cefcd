"""What each finding means for a pod, and the exact lines that repair it. Data.

Lines contain what Baleen knows of the pod. A sentence beside them says what to fill in (a token, a user, an address).
Configuration is that of distribution, versions 2.8 and 3, unless a text says otherwise.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

from coordinator.domain.findings import Check, Result
from coordinator.domain.perimeter import REMEDY
from coordinator.domain.pods import ProbeMethod
from coordinator.gitlab.database import TABLES
from coordinator.pods import configuration
from coordinator.storage.layout import DATABASE_LOCK, FILESYSTEM_LOCK


class PodFacts(NamedTuple):
    """What the texts name of a pod."""

    pod: str
    #: The first of its prefixes.
    prefix: str
    registries: Sequence[str]
    #: Address of Baleen's API; None if BALEEN_URL is not set.
    url: str | None
    bucket: str
    #: In the form of `rootdirectory`.
    root: str
    #: Address of the object store; None is AWS.
    endpoint_url: str | None
    #: How Baleen probes the pod's registry.
    probe: ProbeMethod = ProbeMethod.PUSH


class CheckTexts(NamedTuple):
    proved: str
    refuted: str
    #: Completes the sentence "It is not known whether ".
    question: str
    fix: Callable[[PodFacts], str]

    def describe_result(self, result: Result) -> str:
        if result is Result.UNPROVED:
            return f"It is not known whether {self.question}."
        return self.proved if result is Result.PROVED else self.refuted


_NO_URL: Final = "http://BALEEN"


def describe_notifications(pod_facts: PodFacts) -> str:
    """Return how to configure a registry to send the pod's events."""
    section = configuration.notifications_section(
        f"{(pod_facts.url or _NO_URL).rstrip('/')}/v1/events/{pod_facts.pod}", configuration.TOKEN, pod_facts.probe
    )
    ignores = "nothing" if pod_facts.probe is ProbeMethod.PULL else "nothing but pulls"
    media_types = f"no other `ignore.mediatypes` than {configuration.NO_MEDIA_TYPE}"
    more = "no `ignore`" if pod_facts.probe is ProbeMethod.PULL else f"no action but `pull`, {media_types}"
    unset = "" if pod_facts.url else f" Replace {_NO_URL} by the address of Baleen's API (BALEEN_URL is not set here)."
    return (
        "Put this section into the configuration of each process of the registry, and restart the process. Replace "
        f"{configuration.TOKEN} by the token that `baleen pods add` showed (Baleen keeps only its hash; `baleen pods "
        f"rotate-token {pod_facts.pod}` makes a new one).{unset} `baleen pods config {pod_facts.pod}` prints the whole "
        f"file:\n{section}The endpoint must ignore {ignores}: {more}."
    )


def describe_token(pod_facts: PodFacts) -> str:
    """Return where to configure a registry's token, and how to get a token."""
    return (
        "Set the pod's token in `notifications.endpoints` of each process, and restart the process. `baleen pods add` "
        f"showed the token; Baleen keeps only its hash. `baleen pods rotate-token {pod_facts.pod}` makes a new one:\n"
        f"      headers:\n        Authorization: [Bearer {configuration.TOKEN}]"
    )


def describe_ignored(actions: Collection[str] = (), media_types: Collection[str] = ()) -> str:
    """Return which lines to remove from the `ignore` of a registry's endpoint."""
    lines = ["      ignore:"]
    if actions:
        lines.append(f"        actions: [{', '.join(sorted(actions))}]")
    if media_types:
        lines += ["        mediatypes:", *(f"          - {each}" for each in sorted(media_types))]
    also = " (or from `ignoredmediatypes`, its old name)" if media_types else ""
    return (
        f"In `notifications.endpoints` of each process, remove this from `ignore`{also}, and restart the process:\n"
        + "\n".join(lines)
    )


def set_registries_command(pod_facts: PodFacts, urls: Sequence[str], missing: str = "") -> str:
    """Return the command that sets these registries, followed by the placeholder `missing`."""
    given = " ".join(f"--registry {url}" for url in [*urls, *([missing] if missing else [])])
    return f"baleen pods set-registries {pod_facts.pod} {given}"


def endpoint_option(pod_facts: PodFacts) -> str:
    return "" if pod_facts.endpoint_url is None else f" --endpoint-url {pod_facts.endpoint_url}"


def describe_key_policy(pod_facts: PodFacts) -> str:
    """Return how to get the policy of a pod's key, and where to attach it."""
    return (
        "Give the key a user of its own, with the policy that this command prints, and no other permission:\n"
        f"baleen pods policy {pod_facts.pod}\n"
        "(On AWS: attach it with `aws iam put-user-policy`. A store with bucket policies has one policy for all pods: "
        "name all pods, and the principal of each pod's key. For SeaweedFS the account is 000000000000:)\n"
        f"baleen pods policy {pod_facts.pod} … --principal 'arn:aws:iam::000000000000:user/{{pod}}' > policy.json\n"
        f"aws s3api put-bucket-policy{endpoint_option(pod_facts)} --bucket {pod_facts.bucket} --policy file://policy.json"
    )


def put_versioning_command(pod_facts: PodFacts) -> str:
    return (
        f"aws s3api put-bucket-versioning{endpoint_option(pod_facts)} --bucket {pod_facts.bucket} "
        "--versioning-configuration Status=Enabled"
    )


def describe_same_root(pod_facts: PodFacts) -> str:
    return (
        f"storage:\n  s3: {{bucket: {pod_facts.bucket}, rootdirectory: {pod_facts.root}}}\n"
        "(Or correct BALEEN_S3_BUCKET and BALEEN_S3_ROOT, if Baleen's settings are wrong. Register a registry that "
        "keeps its links in its own database with `baleen pods add --kind relay`, or GitLab's with `--kind gitlab`.)"
    )


def describe_registry_database(pod_facts: PodFacts) -> str:
    """Return how to let Baleen read a registry's database."""
    return (
        "Write the URL of the database that `database` in the configuration of each process names, with its primary as "
        f"the host, to the file {pod_facts.pod} in the directory that BALEEN_GITLAB_DATABASES names, for every process "
        "of Baleen:\npostgresql://BALEEN_READER:…@HOST:5432/registry?sslmode=verify-full\n"
        "Let that user read these tables, and nothing else:\n"
        f"GRANT SELECT ON {', '.join(TABLES)} TO BALEEN_READER;\n"
        "(A schema that Baleen was not compared with needs another release of Baleen, or of the registry.)"
    )


def describe_registry_gc(pod_facts: PodFacts) -> str:
    """Return how to switch a registry's own GC off, and how to show that to Baleen."""
    return (
        f"Write the debug address of each process that serves clients, one a line, to the file {pod_facts.pod}.debug "
        "in the directory that BALEEN_GITLAB_DATABASES names. A name with several addresses stands for all of them. "
        "Leave out the process that has `storage: inmemory` and no clients:\nhttp://HOST:5099\n"
        "Each of them needs this in its configuration, and a restart:\n"
        "gc: {disabled: true}\n"
        "http:\n  debug:\n    addr: :5099\n    prometheus: {enabled: true, path: /metrics}"
    )


def describe_lock_file(pod_facts: PodFacts) -> str:
    return (
        "Set this in the environment of each process of the registry, and restart a process with its database: it "
        f"writes {DATABASE_LOCK}, which its key must be permitted to read and write.\n"
        "REGISTRY_FF_ENFORCE_LOCKFILES=true\n"
        f"If {FILESYSTEM_LOCK} is there, find the process of GitLab's registry that runs without a database below "
        f"/{pod_facts.root.strip('/')}, and end it; then delete that object."
    )


def describe_probe_events(pod_facts: PodFacts) -> str:
    """Return what to change where other events come and probes do not."""
    if pod_facts.probe is ProbeMethod.PULL:
        return (
            f"{describe_ignored(['pull'])}\n"
            "Or let Baleen probe by pushes, which a flood of pulls does not delay: "
            f"baleen pods set-probe {pod_facts.pod} push"
        )
    return (
        "The nonce is in the User-Agent of the push: make each proxy before the registry forward that header. Or send "
        f"pull events and probe by pulls: baleen pods set-probe {pod_facts.pod} pull"
    )


TEXTS: dict[Check, CheckTexts] = {
    Check.REGISTRY_ANSWERS: CheckTexts(
        "Every listed process of the registry answers.",
        "A listed process of the registry does not answer, so it was not examined: it may work in another way.",
        "every listed process of the registry answers",
        lambda pod_facts: (
            "List each process of the registry. Replace URL by its address, as this machine reaches it:\n"
            + set_registries_command(pod_facts, [], "URL")
        ),
    ),
    Check.PROCESSES_REACHED: CheckTexts(
        "Every process that counts for the watermark was examined, each at its own address.",
        "A process that counts for the watermark was not examined: its configuration may differ.",
        "every process of the registry was examined",
        lambda pod_facts: (
            "List one address for each process, not one that several processes share. Listed now:\n"
            + set_registries_command(pod_facts, pod_facts.registries)
        ),
    ),
    Check.KAFKA_DURABLE: CheckTexts(
        "Kafka keeps each event that it has acknowledged.",
        "Kafka may lose events that it has acknowledged: Baleen would never learn of the references in them, and would "
        "collect their blobs.",
        "Kafka keeps each event that it has acknowledged",
        lambda _: "baleen topics create\n(names each unsafe setting, with the command that repairs it)",
    ),
    Check.VERSIONED: CheckTexts(
        "The bucket keeps versions: Baleen hides a blob by a delete marker, and restores it by removing the marker.",
        "The bucket claims to keep versions, and does not: a hidden blob would be lost.",
        "the bucket keeps versions",
        put_versioning_command,
    ),
    Check.REPOSITORIES_OWNED: CheckTexts(
        "Every repository in the root belongs to a registered pod.",
        "The root has repositories that no registered pod owns: Baleen does not know which blobs they need. Each GC "
        "run looks again, and is blocked while there are any.",
        "every repository in the root belongs to a registered pod",
        lambda _: f"{REMEDY[0].upper()}{REMEDY[1:]}.",
    ),
    Check.EVENTS_ARRIVE: CheckTexts(
        "The registry reports pushes of every kind of manifest, and mounts, and the table has them.",
        "The registry does not report all pushes and mounts: blobs that they need would look unreferenced.",
        "the registry reports all pushes and mounts, and they reach the table",
        describe_notifications,
    ),
    Check.REFERENCES_ARRIVE: CheckTexts(
        "Events say what a manifest lists.",
        "Events do not say what a manifest lists: Baleen must read each new manifest from storage, and one that it "
        "cannot read blocks GC.",
        "events say what a manifest lists",
        lambda _: "notifications:\n  events:\n    includereferences: true",
    ),
    Check.EVENTS_IN_ORDER: CheckTexts(
        "The events of one process arrive in the order of what it did: a later one proves that the earlier ones came.",
        "Events of one process overtake each other: an event does not prove that the earlier ones came, and the "
        "watermark may be too late.",
        "the events of one process arrive in the order of what it did",
        lambda _: (
            "Let the registry post to Baleen directly. Remove anything between them that forwards events on its own (a "
            "queue, a fan-out, a proxy that answers before Baleen does). Configure one endpoint for Baleen in "
            "`notifications.endpoints`, which ignores nothing but pulls: each endpoint has a queue of its own."
        ),
    ),
    Check.PROBES_ARRIVE: CheckTexts(
        "A probe comes back in an event of the registry: it proves that all earlier events came.",
        "No probe comes back in an event: the watermark stands still for ever, and GC with it.",
        "a probe comes back in an event of the registry",
        describe_probe_events,
    ),
    Check.SAME_ROOT: CheckTexts(
        "The registry stores what is pushed in the shared bucket and root.",
        "The registry stores elsewhere: the shared bucket and root do not show what it has.",
        "the registry stores in the shared bucket and root",
        describe_same_root,
    ),
    Check.REGISTRY_DATABASE: CheckTexts(
        "Baleen reads the registry's database: what is pushed has its rows there.",
        "Baleen reads a database that does not have what is pushed to the registry: its rows say nothing of the pod.",
        "Baleen reads the registry's database",
        describe_registry_database,
    ),
    Check.REGISTRY_GC_OFF: CheckTexts(
        "No process of the registry collects garbage by itself.",
        "A process of the registry collects garbage by itself: it deletes bytes that other pods need, and sends no "
        "event.",
        "a process of the registry collects garbage by itself",
        describe_registry_gc,
    ),
    Check.LOCK_FILE: CheckTexts(
        "The lock file of the registry's database is in the root: no process that has REGISTRY_FF_ENFORCE_LOCKFILES "
        "starts there without its database. Check that each process of this registry has it: Baleen cannot.",
        "A process of the registry can be started without its database. It keeps links in the bucket, which Baleen "
        "does not read for this pod, and their blobs would be collected.",
        "the registry's root is locked for processes without a database",
        describe_lock_file,
    ),
    Check.CLOCKS: CheckTexts(
        "The clocks of registry, object store and database agree well enough to order pushes and deletes.",
        "A clock is wrong: a delete may look newer than the push that came after it.",
        "the clocks of registry, object store and database agree",
        lambda _: "Run a time service (chrony, ntpd) on the machines of registry, object store and database.",
    ),
    Check.UPLOAD_SECRET: CheckTexts(
        "A process of the registry can finish an upload that another one began.",
        "A process of the registry refuses an upload that another one began: pushes fail whenever their requests reach "
        "several processes.",
        "a process of the registry can finish an upload that another one began",
        lambda pod_facts: (
            "http:\n  secret: …\n(Set the same secret in every process of every pod. `baleen pods config "
            f"{pod_facts.pod} --with-secrets` prints one; findings contain no secrets.)"
        ),
    ),
    Check.NO_DESCRIPTOR_CACHE: CheckTexts(
        "The registry looks at storage for each request: it answers that a hidden blob is missing, and the client "
        "uploads the blob again.",
        "The registry caches blobs that are gone: pushes skip their layers, mounts and manifests are accepted, and the "
        "images are broken.",
        "the registry caches blobs that are gone",
        lambda _: (
            "Remove this section from the configuration of each process that the proof names, and restart the process "
            "(Debian's default has it; Baleen cannot see whether it says inmemory or redis):\n"
            "storage:\n  cache:\n    blobdescriptor: …"
        ),
    ),
    Check.CANNOT_DELETE: CheckTexts(
        "The given key can write blobs and cannot delete them: only Baleen deletes blobs, if every process of the "
        "registry uses this key. Check that: Baleen cannot.",
        "The given key can delete blobs that other pods need: the registry's own `garbage-collect` would do so.",
        "the pod's key is forbidden to delete blobs",
        describe_key_policy,
    ),
    Check.OTHERS_CLOSED: CheckTexts(
        "The given key can use the pod's own repositories, and no other pod's: only a pod's own registry removes its "
        "links.",
        "The given key has access to repositories of other pods: it can delete their links, and Baleen would collect "
        "blobs that only those pods need.",
        "the pod's key can use the pod's own repositories, and no others",
        describe_key_policy,
    ),
    Check.QUARANTINE_CLOSED: CheckTexts(
        "The given key has no access to hidden blobs in quarantine/, and none to the mark: only Baleen has.",
        "The given key has access to quarantine/ or the mark: it can destroy blobs that may be needed again, or let "
        "another database collect garbage here.",
        "the pod's key has no access to quarantine/ and the mark",
        describe_key_policy,
    ),
    Check.BUCKET_CLOSED: CheckTexts(
        "The given key cannot change the bucket's versioning and policy.",
        "The given key can change the bucket itself: it could switch versioning off, or remove its own policy.",
        "the pod's key is forbidden to change the bucket's versioning and policy",
        describe_key_policy,
    ),
    Check.DELETES_ARRIVE: CheckTexts(
        "The registry reports deletes, and the table removes the references.",
        "The registry does not report deletes: the table keeps their references until a reconcile, and no blob becomes "
        "free. That loses no blob, but it does lose events.",
        "the registry reports deletes, and they reach the table",
        lambda _: describe_ignored(["delete"]),
    ),
}
