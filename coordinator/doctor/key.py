"""Check by experiment what the key of the pod's registry is permitted to do in the bucket: the lines of its policy.

Each attempt uses the pod's key on a scratch object that Baleen's key has stored. What is in the bucket afterwards
decides, whatever the store answered. Below prefixes of pods nothing is stored, not for a moment: there an upload is
begun and aborted, and the deleted key never existed. Only a refusal that names the key's rights (`AccessDenied`) is a
proof.
What the registry needs is tried too: a key that may do nothing proves nothing about the registry.
Not tried: setting a lifecycle, since no such request is harmless (each GC run looks for rules that delete:
storage/port.py `keeps_versions`); overwriting and deleting the mark itself, for the same reason: a multipart upload to
its key is begun, and all else is tried on an object beside it.
Not here: the policy (pods/policy.py). What no experiment shows: whether every process uses just this key.
"""

from collections.abc import Callable, Iterator

from coordinator.doctor.results import Part, make_finding, not_tried, proved, refuted, unproved
from coordinator.doctor.scratch import CONTENT, PREFIXES_TRIED
from coordinator.doctor.texts import describe_key_policy
from coordinator.doctor.visit import Visit
from coordinator.domain.findings import Check, Finding
from coordinator.domain.names import RepositoryName
from coordinator.pods.policy import PolicyLine
from coordinator.storage.layout import BLOBS, MARK, MARK_COPY, REPOSITORIES
from coordinator.storage.trial import Attempt, TrialStore

#: Answers of a store that has no bucket policies.
_NO_POLICIES = frozenset({"NotImplemented", "MethodNotAllowed"})
_MISSING = "NoSuchKey"
#: Prefixes that a sentence names; the others are counted.
NAMED = 3
_IS_IT = "Check that it is the key that the registry uses"

#: Tries to change the object at a key. Gets the key and, if there are versions, the served version.
_Request = Callable[[str, str | None], Attempt]


def check_cannot_delete(visit: Visit) -> Finding:
    """Try to delete a scratch blob in every way there is. The key must be able to read and write it."""
    key = visit.instruments.pod_store
    if key is None:
        part = unproved("", "the pod's key was not given")
        given = (
            "Give the key that the registry uses for the bucket, for this command alone (Baleen must not have its "
            f"secret otherwise):\nBALEEN_POD_ACCESS_KEY=… BALEEN_POD_SECRET_KEY=… baleen pods doctor {visit.pod.name}\n"
        )
        return make_finding(
            Check.CANNOT_DELETE, [part], visit.pod_facts, fix=f"{given}{describe_key_policy(visit.pod_facts)}"
        )
    blob = visit.scratch.make_layer()
    # Baleen cannot see which key the registry uses: the operator compares the two.
    parts = [proved("", f"tried with the access key {visit.instruments.settings.pod_access_key}")]
    for what, attempt in _delete_requests(visit, key):
        name = visit.scratch.store_blob(blob)
        parts.append(_try_request(visit, name, blob.content, "a scratch blob", what, attempt, PolicyLine.BLOBS))
    name = visit.scratch.store_blob(blob)
    tried = {
        "PUT of the same bytes": key.attempt_put(name, blob.content),
        "GET": key.attempt_get(name),
        "LIST": key.attempt_list(BLOBS),
    }
    parts.append(_usable_part("of a scratch blob", tried, key.attempt_get(f"{name}-missing"), PolicyLine.BLOBS))
    return make_finding(Check.CANNOT_DELETE, parts, visit.pod_facts)


def check_others_closed(visit: Visit) -> Finding:
    """Use the pod's own prefixes, and try to read, write and delete outside of them."""
    key = visit.instruments.pod_store
    if key is None:
        return _make_no_key_finding(visit, Check.OTHERS_CLOSED)
    pod, where = visit.pod, "a scratch object outside of every pod's prefixes"
    parts = list(_try_object(visit, key, visit.scratch.outside, where, PolicyLine.REPOSITORIES))
    parts += _try_foreign_prefixes(visit, key)
    parts += [_try_own_prefix(visit, key, prefix) for prefix in pod.prefixes[:PREFIXES_TRIED]]
    if len(pod.prefixes) > PREFIXES_TRIED:
        parts.append(proved("", f"{len(pod.prefixes) - PREFIXES_TRIED} more prefixes of the pod were not tried"))
    return make_finding(Check.OTHERS_CLOSED, parts, visit.pod_facts)


def check_quarantine_closed(visit: Visit) -> Finding:
    """Try to read, write and delete in the quarantine and beside the mark, and to overwrite the mark."""
    key, store = visit.instruments.pod_store, visit.instruments.store
    if key is None:
        return _make_no_key_finding(visit, Check.QUARANTINE_CLOSED)
    scratch = visit.scratch
    parts = [
        _forbidden_part(f"an upload of {mark} that was begun and aborted", key.attempt_upload(mark, store))
        for mark in (MARK, MARK_COPY)
    ]
    parts += _try_object(visit, key, scratch.quarantined, "a scratch object in quarantine/", None)
    parts += _try_object(visit, key, scratch.beside_mark, f"a scratch object beside {MARK}", None)
    return make_finding(Check.QUARANTINE_CLOSED, parts, visit.pod_facts)


def check_bucket_closed(visit: Visit) -> Finding:
    """Try to set the bucket's versioning to its present state, and its policy to one that no store accepts."""
    key = visit.instruments.pod_store
    if key is None:
        return _make_no_key_finding(visit, Check.BUCKET_CLOSED)
    parts = []
    status = visit.instruments.store.read_versioning()
    if status is not None:
        tried = key.attempt_versioning(status)
        parts.append(_forbidden_part("setting the bucket's versioning to its present state", tried))
    tried, what = key.attempt_policy(), "setting an invalid bucket policy"
    has_none = tried.reply in _NO_POLICIES
    parts.append(proved("", f"{what}: {tried.reply}") if has_none else _forbidden_part(what, tried))
    return make_finding(Check.BUCKET_CLOSED, parts, visit.pod_facts)


def _make_no_key_finding(visit: Visit, check: Check) -> Finding:
    return make_finding(check, [not_tried("", "the pod's key was not given", Check.CANNOT_DELETE)], visit.pod_facts)


def _delete_requests(visit: Visit, key: TrialStore) -> list[tuple[str, _Request]]:
    ways: list[tuple[str, _Request]] = [
        ("DELETE", lambda name, _: key.attempt_delete(name)),
        ("DELETE of many", lambda name, _: key.attempt_delete_many(name)),
    ]
    if visit.instruments.store.read_versioning() is not None:
        ways += [
            ("DELETE of its version", key.attempt_delete),
            ("DELETE of many versions", key.attempt_delete_many),
        ]
    return ways


def _try_object(visit: Visit, key: TrialStore, name: str, where: str, line: PolicyLine | None) -> Iterator[Part]:
    """Try everything on a scratch object, which is stored again before each attempt."""
    scratch = visit.scratch
    read = key.attempt_get(scratch.store_object(name))
    yield _forbidden_part(f"GET of {where}", read, line)
    ways: list[tuple[str, _Request]] = [("PUT", lambda name, _: key.attempt_put(name, CONTENT[::-1]))]
    for what, attempt in [*ways, *_delete_requests(visit, key)]:
        yield _try_request(visit, scratch.store_object(name), CONTENT, where, what, attempt, line)


def _try_request(
    visit: Visit, name: str, content: bytes, where: str, what: str, attempt: _Request, line: PolicyLine | None
) -> Part:
    """Try one way on an existing object; the bytes decide, whatever the store answered."""
    store = visit.instruments.store
    version = next((each.version for each in store.list_versions(name) if each.latest), None)
    tried = attempt(name, version)
    after = next((each for each in store.list_versions(name) if each.latest and not each.is_marker), None)
    is_there = after is not None and store.head(name) is not None
    is_same = is_there and after is not None and after.version == version and store.get(name) == content
    became = "still there" if is_same else "overwritten" if is_there else "gone"
    return _part(f"{what} of {where}: {tried.reply}, and it is {became}", tried, line, changed=not is_same)


def _try_foreign_prefixes(visit: Visit, key: TrialStore) -> Iterator[Part]:
    """Try, below each prefix of other pods, requests that leave nothing there, and to read an existing object."""
    closed: list[str] = []
    for prefix in visit.pod.foreign:
        folder, name = f"{REPOSITORIES}{prefix}/", visit.scratch.absent_key(prefix)
        tried = {
            "beginning an upload": key.attempt_upload(name, visit.instruments.store),
            "DELETE": key.attempt_delete(name),
            "DELETE of many": key.attempt_delete_many(name),
        }
        if existing := visit.instruments.store.list(folder, limit=1):
            tried["GET"] = key.attempt_get(existing[0].key)
        if all(each.is_forbidden for each in tried.values()):
            closed.append(f"{prefix}/")
            continue
        sentence = f"below {prefix}/, which is another pod's, {_describe(tried)}"
        reaches = any(each.allowed for each in tried.values())
        yield (
            refuted("", f"{sentence}; {_describe_line(PolicyLine.REPOSITORIES)}") if reaches else unproved("", sentence)
        )
    if closed:
        named = ", ".join(closed[:NAMED]) + (f" and {len(closed) - NAMED} more" if len(closed) > NAMED else "")
        yield proved("", f"below {named} of other pods uploads, DELETE and GET: AccessDenied")


def _try_own_prefix(visit: Visit, key: TrialStore, prefix: RepositoryName) -> Part:
    """Try, below one of the pod's prefixes, what the registry does there, so that nothing is left."""
    name = visit.scratch.absent_key(prefix)
    tried = {
        "beginning an upload": key.attempt_upload(name, visit.instruments.store),
        "LIST": key.attempt_list(f"{REPOSITORIES}{prefix}/"),
        "DELETE": key.attempt_delete(name),
    }
    return _usable_part(f"below {prefix}/", tried, key.attempt_get(name), PolicyLine.REPOSITORIES)


def _usable_part(where: str, tried: dict[str, Attempt], missing: Attempt, line: PolicyLine) -> Part:
    """Check that all of it is allowed, and that a missing object is missing: else the registry cannot take a push."""
    sentence = f"{where}, with the pod's key, {_describe(tried)}"
    if all(each.allowed for each in tried.values()) and missing.reply == _MISSING:
        return proved("", sentence)
    if missing.reply != _MISSING:
        sentence += f"; GET of a missing object: {missing.reply}, and not {_MISSING}"
    wrong = PolicyLine.LIST if all(each.allowed for what, each in tried.items() if what != "LIST") else line
    return unproved("", f"{sentence} (line {wrong} of the policy). {_IS_IT}")


def _forbidden_part(what: str, tried: Attempt, line: PolicyLine | None = None) -> Part:
    return _part(f"{what}: {tried.reply}", tried, line, changed=tried.allowed)


def _part(sentence: str, tried: Attempt, line: PolicyLine | None, *, changed: bool) -> Part:
    """Return proved only if the attempt was forbidden: any other obstacle may be gone the next time."""
    if tried.is_forbidden and not changed:
        return proved("", sentence)
    return refuted("", f"{sentence}; {_describe_line(line)}") if changed else unproved("", sentence)


def _describe_line(line: PolicyLine | None) -> str:
    return "no line of the policy allows it" if line is None else f"the policy's line {line} does not allow it"


def _describe(tried: dict[str, Attempt]) -> str:
    return ", ".join(f"{what}: {each.reply}" for what, each in tried.items())
