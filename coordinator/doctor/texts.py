"""What each check's verdict means for a pod, and the exact line that mends it. Data.

A line names what Baleen knows of the pod; what it cannot know (a token, a user, an address) is said in words beside it.
Configuration is distribution's, the same in versions 2.8 and 3 where nothing else is said.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

from coordinator.domain.findings import Check, Verdict
from coordinator.domain.perimeter import REMEDY
from coordinator.domain.pods import ProbeMethod
from coordinator.pods import configuration


class Patient(NamedTuple):
    """A pod, as far as lines that mend something name it."""

    pod: str
    #: The first of its prefixes.
    prefix: str
    registries: Sequence[str]
    #: Where Baleen's API is found; None if no setting says it.
    url: str | None
    bucket: str
    #: As `rootdirectory` has it.
    root: str
    #: Of the store; None is AWS.
    endpoint_url: str | None
    #: How the pod's registry is probed.
    probe: ProbeMethod = ProbeMethod.PUSH


class Texts(NamedTuple):
    proved: str
    refuted: str
    #: What it is not known of: completes "It is not known whether ".
    question: str
    mend: Callable[[Patient], str]

    def meaning(self, verdict: Verdict) -> str:
        if verdict is Verdict.UNPROVED:
            return f"It is not known whether {self.question}."
        return self.proved if verdict is Verdict.PROVED else self.refuted


_NO_URL: Final = "http://BALEEN"


def notifications(patient: Patient) -> str:
    """The section of a registry's configuration that a pod's events come by."""
    section = configuration.notifications(
        f"{(patient.url or _NO_URL).rstrip('/')}/v1/events/{patient.pod}", configuration.TOKEN, patient.probe
    )
    ignores = "nothing" if patient.probe is ProbeMethod.PULL else "nothing but pulls"
    media_types = f"no other `ignore.mediatypes` than {configuration.NO_MEDIA_TYPE}"
    more = "no `ignore`" if patient.probe is ProbeMethod.PULL else f"no action but `pull`, {media_types}"
    unset = "" if patient.url else f", and of {_NO_URL} the address of Baleen's API (BALEEN_URL is not set here)"
    return (
        "In the configuration of each process of the registry, and restart it. In place of "
        f"{configuration.TOKEN} stands what `baleen pods add` showed (only its hash is kept; `baleen pods rotate-token "
        f"{patient.pod}` makes another){unset}; `baleen pods config {patient.pod}` prints the whole file:\n{section}"
        f"Its endpoint ignores {ignores}: {more}."
    )


def token(patient: Patient) -> str:
    """Where a registry's token stands, and where one is had."""
    return (
        "In `notifications.endpoints` of each process, and restart it. The token is what `baleen pods add` showed; "
        f"only its hash is kept, and `baleen pods rotate-token {patient.pod}` makes another:\n"
        f"      headers:\n        Authorization: [Bearer {configuration.TOKEN}]"
    )


def ignored(actions: Collection[str] = (), media_types: Collection[str] = ()) -> str:
    """What to take out of a registry's `ignore`, as it stands there."""
    lines = ["      ignore:"]
    if actions:
        lines.append(f"        actions: [{', '.join(sorted(actions))}]")
    if media_types:
        lines += ["        mediatypes:", *(f"          - {each}" for each in sorted(media_types))]
    also = " (or of `ignoredmediatypes`, as it was called once)" if media_types else ""
    return (
        f"In `notifications.endpoints` of each process, take this out of `ignore`{also}, and restart it:\n"
        + "\n".join(lines)
    )


def set_registries(patient: Patient, urls: Sequence[str], missing: str = "") -> str:
    """The command that lists these, and one in words."""
    given = " ".join(f"--registry {url}" for url in [*urls, *([missing] if missing else [])])
    return f"baleen pods set-registries {patient.pod} {given}"


def endpoint_option(patient: Patient) -> str:
    return "" if patient.endpoint_url is None else f" --endpoint-url {patient.endpoint_url}"


def key_policy(patient: Patient) -> str:
    """Where the policy of a pod's key is had, and what it is given to."""
    return (
        "Give the key a user of its own, with the policy that this prints, and no other permission:\n"
        f"baleen pods policy {patient.pod}\n"
        "(with AWS: `aws iam put-user-policy`. A store that keeps policies with the bucket has one for all pods: name "
        "all of them, and the principal of each one's key. The account is 000000000000 for SeaweedFS:)\n"
        f"baleen pods policy {patient.pod} … --principal 'arn:aws:iam::000000000000:user/{{pod}}' > policy.json\n"
        f"aws s3api put-bucket-policy{endpoint_option(patient)} --bucket {patient.bucket} --policy file://policy.json"
    )


def put_versioning(patient: Patient) -> str:
    return (
        f"aws s3api put-bucket-versioning{endpoint_option(patient)} --bucket {patient.bucket} "
        "--versioning-configuration Status=Enabled"
    )


def same_root(patient: Patient) -> str:
    return (
        f"storage:\n  s3: {{bucket: {patient.bucket}, rootdirectory: {patient.root}}}\n"
        "(or BALEEN_S3_BUCKET and BALEEN_S3_ROOT, if those of Baleen are wrong; a registry that keeps its links in a "
        "database of its own is registered with `baleen pods add --linker relay`)"
    )


def probe_comes_back(patient: Patient) -> str:
    """What to change where probes do not come back though other events do."""
    if patient.probe is ProbeMethod.PULL:
        return (
            f"{ignored(['pull'])}\n"
            f"Or let Baleen probe by pushes, which no flood of pulls delays: baleen pods set-probe {patient.pod} push"
        )
    return (
        "The nonce is in the User-Agent of the push: let whatever stands before the registry pass it on. Or send pull "
        f"events and probe by them: baleen pods set-probe {patient.pod} pull"
    )


TEXTS: dict[Check, Texts] = {
    Check.REGISTRY_ANSWERS: Texts(
        "Every process of the registry that is listed can be asked.",
        "A process that nobody can ask may do what nobody has examined.",
        "every listed process of the registry can be asked",
        lambda patient: (
            "For each process of the registry its URL, as this machine reaches it, in place of URL:\n"
            + set_registries(patient, [], "URL")
        ),
    ),
    Check.PROCESSES_REACHED: Texts(
        "Every process that counts for the watermark was examined, each at an address of its own.",
        "A process that counts for the watermark was not examined: it may be configured in another way.",
        "every process of the registry was examined",
        lambda patient: (
            "An address for each process, not one that several share. Those that are listed now:\n"
            + set_registries(patient, patient.registries)
        ),
    ),
    Check.KAFKA_DURABLE: Texts(
        "What Kafka has acknowledged, it keeps.",
        "Kafka may lose what it has acknowledged: a reference in it would never be known, and its blob collected.",
        "Kafka keeps what it has acknowledged",
        lambda _: "baleen topics create\n(tells what is not safe, with the command that mends it)",
    ),
    Check.VERSIONED: Texts(
        "The bucket keeps versions: a blob is hidden by a delete marker, and brought back by taking that away.",
        "The bucket says that it keeps versions, and does not: what is hidden would be lost.",
        "the bucket keeps versions",
        put_versioning,
    ),
    Check.REPOSITORIES_OWNED: Texts(
        "Every repository in the root belongs to a registered pod, this one's or another's.",
        "The root has repositories of a registry that is not registered: Baleen knows nothing of what they need. Each "
        "run looks again, and is blocked while there are any.",
        "every repository in the root belongs to a registered pod",
        lambda _: f"{REMEDY[0].upper()}{REMEDY[1:]}.",
    ),
    Check.EVENTS_ARRIVE: Texts(
        "What is pushed and mounted is told, of every kind of manifest, and the table has it.",
        "Pushes are not told, or not of all things: blobs that they need would look unreferenced.",
        "pushes are told and reach the table",
        notifications,
    ),
    Check.REFERENCES_ARRIVE: Texts(
        "Events say what a manifest lists.",
        "Events do not say what a manifest lists: each new one has to be read from storage, and one that cannot be "
        "read holds garbage collection.",
        "events say what a manifest lists",
        lambda _: "notifications:\n  events:\n    includereferences: true",
    ),
    Check.EVENTS_IN_ORDER: Texts(
        "One process's events come in the order in which things happened, so that a later one proves the earlier.",
        "Events overtake each other on their way: that one has come says nothing of those before it, and the watermark "
        "may claim too much.",
        "events come in the order in which things happened",
        lambda _: (
            "Let the registry post to Baleen itself: take out what stands between them and passes events on by itself "
            "(a queue, a fan-out, a proxy that answers before Baleen has). Have one endpoint of it in "
            "`notifications.endpoints`, which ignores nothing but pulls: each has a queue of its own."
        ),
    ),
    Check.PROBES_ARRIVE: Texts(
        "A probe comes back in an event of the registry: that is how it proves what it has reported.",
        "No probe comes back in an event: the watermark stands still for ever.",
        "a probe comes back in an event of the registry",
        probe_comes_back,
    ),
    Check.SAME_ROOT: Texts(
        "What is pushed lies in the shared bucket and root.",
        "The registry keeps its things elsewhere: what is collected in the shared bucket says nothing of it.",
        "the registry stores in the shared bucket and root",
        same_root,
    ),
    Check.CLOCKS: Texts(
        "The clocks of registry, object store and database agree well enough for pushes and deletes to be ordered.",
        "A clock is wrong: a delete may look newer than the push that came after it.",
        "the clocks of registry, object store and database agree",
        lambda _: "Run a time service (chrony, ntpd) on the machines of registry, object store and database.",
    ),
    Check.UPLOAD_SECRET: Texts(
        "An upload that one process began is finished by another.",
        "An upload that one process began is refused by another: pushes fail whenever their requests reach several.",
        "an upload that one process began can be finished by another",
        lambda patient: (
            "http:\n  secret: …\n(the same in every process of every pod: `baleen pods config "
            f"{patient.pod} --with-secrets` prints one, which no finding may)"
        ),
    ),
    Check.NO_DESCRIPTOR_CACHE: Texts(
        "The registry looks at storage each time: of a blob that is hidden it says that it is not there, and the "
        "client uploads it anew.",
        "The registry remembers blobs that are gone: pushes skip their layers, mounts and manifests are accepted, and "
        "the images are broken.",
        "the registry remembers blobs that are gone",
        lambda _: (
            "Take this section out of the configuration of each process that the proof names, and restart it "
            "(Debian's default has it; whether it says inmemory or redis cannot be seen from outside):\n"
            "storage:\n  cache:\n    blobdescriptor: …"
        ),
    ),
    Check.CANNOT_DELETE: Texts(
        "The key that was given can write blobs and cannot delete them: if it is the one that every process of the "
        "registry uses, which nothing here can tell, only Baleen deletes.",
        "The key that was given can delete blobs that other pods need: a registry's own `garbage-collect` would.",
        "the pod's key is kept from deleting blobs",
        key_policy,
    ),
    Check.OTHERS_CLOSED: Texts(
        "The key that was given can use the pod's own repositories, and no other pod's: only a pod's own registry "
        "removes its links.",
        "The key that was given reaches repositories of other pods: it can delete their links, and blobs that only "
        "they need would be collected.",
        "the pod's key can use the pod's own repositories, and no others",
        key_policy,
    ),
    Check.QUARANTINE_CLOSED: Texts(
        "The key that was given reaches neither hidden blobs in quarantine/ nor the mark: only Baleen does.",
        "The key that was given reaches quarantine/ or the mark: it can destroy blobs that may be needed again, or let "
        "another database collect here.",
        "the pod's key is kept from quarantine/ and the mark",
        key_policy,
    ),
    Check.BUCKET_CLOSED: Texts(
        "The key that was given cannot change the bucket's versioning and policy.",
        "The key that was given can change the bucket itself: it could switch versioning off, or lift its own policy.",
        "the pod's key is kept from changing the bucket's versioning and policy",
        key_policy,
    ),
    Check.DELETES_ARRIVE: Texts(
        "What is deleted in the registry is told, and the table lets go of it.",
        "Deletes are not told: the table keeps what is gone until a reconcile, and nothing becomes free. No blob is "
        "lost by it, but events are.",
        "deletes are told and reach the table",
        lambda _: ignored(["delete"]),
    ),
}
