"""Generate the configuration of a pod's registry, in distribution's YAML, version 2.8 or 3.

`notifications_section` is the section with a pod's token, `whole_configuration` a complete file that a registry can be
started with, and `row_collector_configuration` one for the extra process of a GitLab registry that deletes rows.
If probes are pushes, pulls are ignored: a registry sends one event at a time, and many pulls would delay its pushes. If
probes are pulls, nothing is ignored. There is no descriptor cache: it would report a blob as present for ever.
`threshold` is when distribution pauses, not when it drops events; GitLab's registry drops events, and the comment in
the file says how to delay that. docs/REGISTRIES.md explains each line.
Not here: whether a running registry has this configuration (doctor/).
"""

import json
from typing import NamedTuple

from coordinator.domain.pods import ProbeMethod, RegistryUrl

#: Placeholders for secrets and for what is not known.
KEY, SECRET, TOKEN = "THE-PODS-ACCESS-KEY", "THE-PODS-SECRET-KEY", "THE-PODS-TOKEN"
HTTP_SECRET = "THE-SAME-FOR-ALL-PODS"  # noqa: S105 - a placeholder
DATABASE_PASSWORD = "THE-DATABASE-PASSWORD"  # noqa: S105 - a placeholder
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


#: A media type that nothing has: distribution 2.8 reads `actions` only if `mediatypes` is not empty.
NO_MEDIA_TYPE = "application/vnd.baleen.none"
IGNORE_PULLS = f"""\
      # Keep both lines: distribution 2.8 ignores no action while no media type is listed.
      ignore:
        mediatypes: [{NO_MEDIA_TYPE}]
        actions: [pull]
"""


class Store(NamedTuple):
    """The shared store, as a registry is configured for it. Without an endpoint it is S3 of AWS."""

    bucket: str
    root: str
    region: str
    endpoint_url: str | None = None
    access_key: str = KEY
    secret_key: str = SECRET
    #: The same for all pods, so that one can finish an upload that another began.
    http_secret: str = HTTP_SECRET


def notifications_section(
    url: str, token: str, probe: ProbeMethod = ProbeMethod.PUSH, *, drops_events: bool = False
) -> str:
    """`drops_events`: the registry is one of GitLab's from version 4.30 on."""
    ignore = IGNORE_PULLS if probe is ProbeMethod.PUSH else ""
    limits = _LIMITS if drops_events else _NO_LIMITS
    return f"""\
notifications:
  events:
    includereferences: true
  endpoints:
    - name: baleen
      url: {url}
      headers:
        Authorization: [Bearer {token}]
      timeout: 10s
      threshold: 5
      backoff: 1s
      # Only GitLab's registry knows these. It keeps sending for this long after SIGTERM: do not kill it sooner.
      queuepurgetimeout: 25s
{limits}{ignore}"""


_NO_LIMITS = """\
      # From version 4.30 on it drops events, and these two delay that. Before 4.30 and in distribution leave out
      # maxretries: with it, 3.93 to 4.29 drop events as well; see docs/REGISTRIES.md.
      # maxretries: 1000000
      # queuesizelimit: 1000000
"""
#: Such a registry has a schema that Baleen knows from 4.32 on only.
_LIMITS = """\
      # Without these two it drops events after two minutes, or when 3000 wait; with them after 15 minutes.
      maxretries: 1000000
      queuesizelimit: 1000000
"""


#: Of a GitLab registry with a metadata database. Its own collection must be off in every process that has the store.
_DATABASE = f"""\
# Start it with REGISTRY_FF_ENFORCE_LOCKFILES=true in its environment.
database:
  enabled: true
  host: THE-DATABASE-HOST
  port: 5432
  user: registry
  password: {DATABASE_PASSWORD}
  dbname: registry
  sslmode: verify-full
"""
_GC_OFF = """\
gc:
  disabled: true
"""
_DEBUG = """\
  # Baleen reads the metrics there. Let nobody else reach it: /debug/vars shows the webhook's token.
  debug:
    addr: :5099
    prometheus:
      enabled: true
      path: /metrics
"""


def row_collector_configuration() -> str:
    """Return the configuration of one more process on a GitLab registry's database, which deletes rows of dead blobs.

    It has no store, so that it can delete no bytes, and no notifications and no clients.
    """
    return f"""\
version: 0.1
log:
  level: info
storage:
  inmemory: {{}}
http:
  addr: 127.0.0.1:5098
{_DATABASE.partition(chr(10))[2]}\
gc:
  disabled: false
  # It would delete untagged manifests, and report none of them.
  manifests:
    disabled: true
"""


def whole_configuration(
    store: Store,
    listen: str,
    events_url: str,
    token: str = TOKEN,
    probe: ProbeMethod = ProbeMethod.PUSH,
    *,
    database: bool = False,
) -> str:
    """`database`: the registry has a metadata database."""
    endpoint = ""
    if store.endpoint_url is not None:
        endpoint = f"""\
    regionendpoint: {_quote(store.endpoint_url)}
    secure: {str(store.endpoint_url.startswith("https:")).lower()}
    forcepathstyle: true
"""
    return f"""\
version: 0.1
log:
  level: info
storage:
  s3:
    bucket: {_quote(store.bucket)}
    rootdirectory: {_quote("/" + store.root.strip("/"))}
    region: {_quote(store.region)}
{endpoint}\
    accesskey: {_quote(store.access_key)}
    secretkey: {_quote(store.secret_key)}
  delete:
    enabled: true
  redirect:
    disable: true
  maintenance:
    uploadpurging:
      enabled: false
http:
  addr: {_quote(listen)}
  secret: {_quote(store.http_secret)}
  relativeurls: true
{_DEBUG if database else ""}\
health:
  storagedriver:
    enabled: false
{_DATABASE + _GC_OFF if database else ""}\
{notifications_section(events_url, token, probe, drops_events=database)}"""


def listen_address(registry: RegistryUrl | None) -> str:
    """Return the address on which a registry of this URL listens: loopback if the URL is, else all interfaces."""
    if registry is None:
        return ":5000"
    if registry.host in LOOPBACK:
        return f"[{registry.host}]:{registry.port}" if ":" in registry.host else f"{registry.host}:{registry.port}"
    return f":{registry.port}"


def _quote(text: str) -> str:
    # A JSON string is valid YAML.
    return json.dumps(text, ensure_ascii=False)
