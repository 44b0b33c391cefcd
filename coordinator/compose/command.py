"""The parts of commands that examine a pod."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from coordinator.compose.database import make_connections
from coordinator.compose.store import make_trial_store
from coordinator.compose.values import registry_credentials
from coordinator.doctor.visit import PATIENCE_S, Instruments
from coordinator.domain.names import PodName
from coordinator.errors import SettingsError
from coordinator.gitlab.databases import GitlabDatabases
from coordinator.kafka.log import LogInspector
from coordinator.kafka.tail import EventTail
from coordinator.settings import Settings
from coordinator.table import statements


@contextmanager
def open_instruments(settings: Settings, pod: PodName, *, patience: float | None = None) -> Iterator[Instruments]:
    """The instruments of a doctor for one visit."""
    secret = settings.pod_secret_key
    if (settings.pod_access_key is None) != (secret is None):
        raise SettingsError("BALEEN_POD_ACCESS_KEY and BALEEN_POD_SECRET_KEY belong together: set both or neither.")
    connected = make_connections(settings, name="baleen-doctor", prepare=statements.prepare_connection)
    try:
        with (
            LogInspector(settings) as inspector,
            EventTail(settings, inspector, pod) as tail,
            closing(GitlabDatabases(settings.gitlab_databases)) as databases,
        ):
            yield Instruments(
                settings,
                connected,
                make_trial_store(settings),
                None if secret is None else make_trial_store(settings, settings.pod_access_key, secret),
                registry_credentials(settings),
                inspector,
                tail,
                databases,
                PATIENCE_S if patience is None else patience,
            )
    finally:
        connected.close()
