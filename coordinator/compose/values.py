"""Values from the settings that several processes use: safety times, limits, credentials."""

from datetime import timedelta

from coordinator.domain.findings import implied_checks
from coordinator.domain.gc import Amount, Limits, Times
from coordinator.errors import SettingsError
from coordinator.gc.conditions import ReadFactsWithRows, read_facts
from coordinator.leftovers.sweep import Ages
from coordinator.registry.auth import Credentials
from coordinator.settings import Settings
from coordinator.table.batch import DeadLetterLimits

#: Blobs and bytes that a collection may always hide: below this a percentage means nothing.
SMALL_RUN_AMOUNT = (1000, 10 << 30)


def safety_times(settings: Settings) -> Times:
    return Times(
        grace=timedelta(seconds=settings.safety_grace),
        quarantine=timedelta(seconds=settings.safety_quarantine),
        request_bound=timedelta(seconds=settings.safety_request_bound),
    )


def collection_limits(settings: Settings) -> Limits:
    return Limits(settings.gc_limit_percent, settings.gc_limit_history, Amount(*SMALL_RUN_AMOUNT))


def leftover_ages(settings: Settings) -> Ages:
    return Ages(
        uploads=timedelta(seconds=settings.leftovers_uploads),
        parts=timedelta(seconds=settings.leftovers_parts),
        versions=timedelta(seconds=settings.leftovers_versions),
        links=timedelta(seconds=settings.leftovers_links),
        delete_bound=timedelta(seconds=settings.safety_delete_bound),
    )


def dead_letter_limits(settings: Settings) -> DeadLetterLimits:
    """How many dead letters of a pod are kept."""
    return DeadLetterLimits(settings.dead_letters_limit, settings.dead_letters_bytes)


def parse_unsafe_findings(settings: Settings) -> frozenset[str]:
    """Checks of the doctor whose findings do not block GC."""
    return implied_checks(frozenset(settings.unsafe_findings.split(",")) - {""})


def make_facts_reader(settings: Settings) -> ReadFactsWithRows:
    """The reader of all facts that garbage collection needs besides single blobs."""
    times, silence = safety_times(settings), timedelta(seconds=settings.probe_silence)
    unsafe_findings = parse_unsafe_findings(settings)
    return lambda connection: read_facts(connection, times, silence, unsafe_findings)


def registry_credentials(settings: Settings) -> Credentials | None:
    """The credentials for registries; None if none are set."""
    if settings.registry_username is None and settings.registry_password is None:
        return None
    if settings.registry_username is None or settings.registry_password is None:
        raise SettingsError(
            "BALEEN_REGISTRY_USERNAME and BALEEN_REGISTRY_PASSWORD belong together: set both or neither."
        )
    return Credentials(settings.registry_username, settings.registry_password)
