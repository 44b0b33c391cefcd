"""Delete older versions of the link that probes write, in a bucket that keeps versions.

A probe by push puts the known manifest by its digest, and the registry writes that manifest's link again: 71 bytes,
one version per probe. All versions have the same content, and registries read only the newest.
Not here: what a probe is (pods/prober.py).
"""

from coordinator.domain.names import Digest, RepositoryName
from coordinator.domain.own import PROBE_REPOSITORY
from coordinator.gc.leftovers import LeftoverKind
from coordinator.leftovers import table
from coordinator.leftovers.sweep import Item, Sweep, split_pages
from coordinator.storage.layout import revision_link_key


def delete_probe_versions(sweep: Sweep, manifest: Digest) -> None:
    """Delete versions that are neither the newest nor a marker, and are older than the age of versions."""
    before = sweep.cut_off(sweep.ages.versions)
    with sweep.connections.use() as connection:
        prefixes = table.read_prefixes(connection)
    with sweep.batch(LeftoverKind.PROBES, sweep.allow) as batch:
        for prefix in prefixes:
            key = revision_link_key(RepositoryName(f"{prefix}/{PROBE_REPOSITORY}"), manifest)
            # Probes use the pod's first prefix, which may have been another one: check all of them.
            old = (
                each
                for each in sweep.list_entries(key)
                if each.key == key and not each.latest and each.size is not None and each.modified_at <= before
            )
            for some in split_pages(old, sweep.sizes.deletes):
                batch.add(Item(key, [each.target for each in some], len(some), sum(each.size or 0 for each in some)))
