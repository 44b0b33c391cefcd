"""What each check's verdict means for a pod, and the exact line that mends it. Data.

Configuration is distribution's, the same in versions 2.8 and 3 where nothing else is said.
"""

from typing import NamedTuple

from coordinator.domain.findings import Check, Verdict
from coordinator.pods import configuration


class Texts(NamedTuple):
    proved: str
    refuted: str
    #: What it is not known of: completes "It is not known whether ".
    question: str
    mend: str

    def meaning(self, verdict: Verdict) -> str:
        if verdict is Verdict.UNPROVED:
            return f"It is not known whether {self.question}."
        return self.proved if verdict is Verdict.PROVED else self.refuted


_NOTIFICATIONS = (
    "In the configuration of each process of the registry, and restart it (`baleen pods config POD` prints it whole):\n"
    + configuration.notifications("BALEEN_URL/v1/events/POD", configuration.TOKEN)
)

TEXTS: dict[Check, Texts] = {
    Check.REGISTRY_ANSWERS: Texts(
        "Every process of the registry that is listed can be asked.",
        "A process that nobody can ask may do what nobody has examined.",
        "every listed process of the registry can be asked",
        "baleen pods set-registries POD --registry URL …: a URL for each process, as this machine reaches it. If the "
        "registry wants to know who asks, set BALEEN_REGISTRY_USERNAME and BALEEN_REGISTRY_PASSWORD here too.",
    ),
    Check.PROCESSES_REACHED: Texts(
        "Every process that counts for the watermark was examined, each at an address of its own.",
        "A process that counts for the watermark was not examined: it may be configured in another way.",
        "every process of the registry was examined",
        "baleen pods set-registries POD --registry URL …: an address for each process, not one that several share. "
        "One that you have seen end: baleen pods retire-source POD INSTANCE --why …",
    ),
    Check.KAFKA_DURABLE: Texts(
        "What Kafka has acknowledged, it keeps.",
        "Kafka may lose what it has acknowledged: a reference in it would never be known, and its blob collected.",
        "Kafka keeps what it has acknowledged",
        "baleen topics create tells what is not safe, with the command that mends it.",
    ),
    Check.VERSIONED: Texts(
        "The bucket keeps versions: a blob is hidden by a delete marker, and brought back by taking that away.",
        "The bucket says that it keeps versions, and does not: what is hidden would be lost.",
        "the bucket keeps versions",
        "aws s3api put-bucket-versioning --bucket BUCKET --versioning-configuration Status=Enabled",
    ),
    Check.EVENTS_ARRIVE: Texts(
        "What is pushed is told, and the table has it.",
        "Pushes are not told, or not of all things: blobs that they need would look unreferenced.",
        "pushes are told and reach the table",
        _NOTIFICATIONS,
    ),
    Check.REFERENCES_ARRIVE: Texts(
        "Events say what a manifest lists.",
        "Events do not say what a manifest lists: each new one has to be read from storage, and one that cannot be "
        "read holds garbage collection.",
        "events say what a manifest lists",
        "notifications:\n  events:\n    includereferences: true",
    ),
    Check.EVENTS_IN_ORDER: Texts(
        "One process's events come in the order in which things happened, so that a later one proves the earlier.",
        "Events overtake each other on their way: that one has come says nothing of those before it, and the watermark "
        "may claim too much.",
        "events come in the order in which things happened",
        "Let the registry post to Baleen itself: take out what stands between them and passes events on by itself "
        "(a queue, a fan-out, a proxy that answers before Baleen has).",
    ),
    Check.PULLS_ARRIVE: Texts(
        "A probe comes back in the registry's pull event: that is how it proves what it has told.",
        "Pull events are not sent: no probe comes back, and the watermark stands still for ever.",
        "a probe comes back in a pull event",
        "In `notifications.endpoints` of each process, take `pull` out of `ignore.actions`, and out of "
        "`ignore.mediatypes` what names manifests:\n      ignore: {actions: []}",
    ),
    Check.SAME_ROOT: Texts(
        "What is pushed lies in the shared bucket and root.",
        "The registry keeps its things elsewhere: what is collected in the shared bucket says nothing of it.",
        "the registry stores in the shared bucket and root",
        "storage:\n  s3: {bucket: BUCKET, rootdirectory: ROOT}\n(a registry that keeps its links in a database of its "
        "own is registered with `baleen pods add --linker relay`)",
    ),
    Check.CLOCKS: Texts(
        "The clocks of registry, object store and database agree well enough for pushes and deletes to be ordered.",
        "A clock is wrong: a delete may look newer than the push that came after it.",
        "the clocks of registry, object store and database agree",
        "Run a time service (chrony, ntpd) on the machine whose clock is off, or raise BALEEN_SAFETY_CLOCK_SKEW to "
        "more than twice the difference, for every process of Baleen.",
    ),
    Check.UPLOAD_SECRET: Texts(
        "An upload that one process began is finished by another.",
        "An upload that one process began is refused by another: pushes fail whenever their requests reach several.",
        "an upload that one process began can be finished by another",
        "http:\n  secret: SECRET\n(the same in every process of every pod)",
    ),
    Check.NO_DESCRIPTOR_CACHE: Texts(
        "The registry looks at storage each time: of a blob that is hidden it says that it is not there, and the "
        "client uploads it anew.",
        "The registry remembers blobs that are gone: pushes skip their layers, mounts and manifests are accepted, and "
        "the images are broken.",
        "the registry remembers blobs that are gone",
        "Take this out of the configuration of each process, and restart it (Debian's default has it):\n"
        "storage:\n  cache:\n    blobdescriptor: inmemory   # or redis",
    ),
    Check.CANNOT_DELETE: Texts(
        "The pod's key can write blobs and cannot delete them: only Baleen does.",
        "The pod's key can delete blobs that other pods need: its registry's own `garbage-collect` would.",
        "the pod's key is kept from deleting blobs",
        "",
    ),
    Check.DELETES_ARRIVE: Texts(
        "What is deleted in the registry is told, and the table lets go of it.",
        "Deletes are not told: the table keeps what is gone until a reconcile, and nothing becomes free. No blob is "
        "lost by it, but events are.",
        "deletes are told and reach the table",
        "In `notifications.endpoints` of each process, take `delete` out of `ignore.actions`:\n"
        "      ignore: {actions: []}",
    ),
}
