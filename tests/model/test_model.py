"""The Spin model of garbage collection holds, and fails as soon as one of its rules is dropped.

Route: docs/model/gc.pml -> spin -a -> gcc -> pan in a directory of its own, with a bound on memory and time.
Three worlds together cover what one alone would make too large: in `REGISTRIES` much is pushed and deleted around one
hide, in `DEATHS` more dies, and in `JOBS` a job sleeps or dies in one of two hides and the next takes over.
Not here: what the model's parts stand for, and larger worlds (docs/model/README.md).
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.model

MODEL = Path(__file__).parents[2] / "docs" / "model" / "gc.pml"

MEMORY_MB = 2000
#: Far more steps than any history has: a search that were cut off here would say so, and fail.
DEPTH = 10_000
#: Tens of times what a run takes.
BOUND_SECONDS = 1800

REGISTRIES = ("-DREQUESTS=3", "-DCRASHES=1", "-DHIDES=1", "-DJOBS=1")
DEATHS = ("-DREQUESTS=2", "-DCRASHES=2", "-DHIDES=1", "-DJOBS=1")
JOBS = ("-DREQUESTS=2", "-DCRASHES=1", "-DHIDES=2", "-DJOBS=2")
#: With an unmanaged registry, or with somebody who shows a hidden blob: nothing but that dies, so that it stays small.
QUIET_JOBS = ("-DREQUESTS=2", "-DCRASHES=0", "-DHIDES=2", "-DJOBS=2")

#: Where a blob may also stay hidden, but its bytes are what is at stake.
BYTES_ONLY = "-DBYTES_ONLY"

VERSIONED: tuple[str, ...] = ()
UNVERSIONED = ("-DUNVERSIONED",)

both_buckets = pytest.mark.parametrize("bucket", [VERSIONED, UNVERSIONED], ids=["versioned", "unversioned"])


def search(directory: Path, *defines: str) -> str:
    """Build the model as it is defined, try all interleavings until one fails, and return what pan says."""

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=BOUND_SECONDS, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("spin", "-a", *defines, str(MODEL))
    # One process, and all it touches is global: nothing for partial order reduction to do.
    run("gcc", "-O1", "-DSAFETY", "-DNOREDUCE", f"-DMEMLIM={MEMORY_MB}", "-o", "pan", "pan.c")
    # -E: where nothing more can happen is no error, but rest.
    return run("./pan", "-E", f"-m{DEPTH}", "-w22")


def assert_holds(directory: Path, *defines: str) -> None:
    text = search(directory, *defines)
    assert "errors: 0" in text, text
    assert "Full statespace search" in text, text
    for cut_off in ("Search not completed", "max search depth too small", "reached -DMEMLIM bound", "out of memory"):
        assert cut_off not in text, text


def assert_fails(directory: Path, invariants: set[str], *defines: str) -> None:
    text = search(directory, *defines)
    violated = re.search(r"assertion violated \(?(\w+)", text)
    assert violated is not None, text
    assert violated[1] in invariants, text


LOST = {"bytes_lost"}
HIDDEN = {"stays_hidden"}


@both_buckets
@pytest.mark.parametrize("world", [REGISTRIES, DEATHS, JOBS], ids=["registries", "deaths", "jobs"])
def test_no_interleaving_loses_or_hides_a_linked_blob(
    world: tuple[str, ...], bucket: tuple[str, ...], tmp_path: Path
) -> None:
    """With all rules, what is linked has its bytes after every step, and at rest it is visible."""
    assert_holds(tmp_path, *world, *bucket)


@both_buckets
@pytest.mark.parametrize("place", [1, 2], ids=["second-hide-purged-by-second-job", "second-hide-restored-under-it"])
def test_the_search_gets_where_it_could_go_wrong(place: int, bucket: tuple[str, ...], tmp_path: Path) -> None:
    """A second job purges, and a restorer ends, the second hide: the invariants do not hold for want of histories."""
    assert_fails(tmp_path, {"got_there"}, f"-DREACH={place}", *JOBS, *bucket)


@both_buckets
def test_rule_1_t_h_is_read_after_the_hide_took_effect(bucket: tuple[str, ...], tmp_path: Path) -> None:
    """Read before, t_h is older than a request that still saw the blob, and purge does not wait for it."""
    assert_fails(tmp_path, LOST, "-DDROP=1", *REGISTRIES, *bucket)


@both_buckets
@pytest.mark.parametrize("half", [1, 2], ids=["source", "partition"])
def test_rule_2_purge_waits_for_every_source_and_partition(half: int, bucket: tuple[str, ...], tmp_path: Path) -> None:
    """A reference waits in the one source, or in the one partition, that was not asked."""
    assert_fails(tmp_path, LOST, "-DDROP=2", f"-DHALF={half}", *REGISTRIES, *bucket)


@both_buckets
def test_rule_3_purge_waits_for_requests_under_way_at_t_h(bucket: tuple[str, ...], tmp_path: Path) -> None:
    """A request saw the blob before t_h and links it after everything that was finished is applied."""
    assert_fails(tmp_path, LOST, "-DDROP=3", *REGISTRIES, *bucket)


@both_buckets
def test_rule_4_purge_deletes_only_what_its_own_hide_recorded(bucket: tuple[str, ...], tmp_path: Path) -> None:
    """A purge of whatever is there takes a version that was pushed anew, or the copy of a later hide."""
    assert_fails(tmp_path, LOST, "-DDROP=4", *JOBS, *bucket)


@both_buckets
def test_rule_5_links_of_removed_referrers_are_looked_up_before_a_hide(bucket: tuple[str, ...], tmp_path: Path) -> None:
    """A delete's event comes after that of a later push: no event will ever tell of the link that is there."""
    assert_fails(tmp_path, LOST, "-DDROP=5", BYTES_ONLY, *REGISTRIES, *bucket)


@both_buckets
def test_rule_6_a_vanished_source_freezes_its_watermark(bucket: tuple[str, ...], tmp_path: Path) -> None:
    """A killed process took the event of a link with it, and its successor's probe proves nothing about it."""
    assert_fails(tmp_path, LOST, "-DDROP=6", BYTES_ONLY, *REGISTRIES, *bucket)


@both_buckets
def test_rule_7_a_reconcile_lists_after_the_last_write_of_the_dead(bucket: tuple[str, ...], tmp_path: Path) -> None:
    """A killed process's last link write lands behind the listing that should have seen it."""
    assert_fails(tmp_path, LOST, "-DDROP=7", BYTES_ONLY, *REGISTRIES, *bucket)


@both_buckets
def test_rule_8_a_restore_is_final_when_no_delete_can_land(bucket: tuple[str, ...], tmp_path: Path) -> None:
    """The hide's own delete lands after the restore: the bytes are hidden or, without versions, gone."""
    assert_fails(tmp_path, HIDDEN if bucket == VERSIONED else LOST, "-DDROP=8", *JOBS, *bucket)


@both_buckets
def test_rule_11_a_reference_cancels_a_hide_whose_intent_is_written(bucket: tuple[str, ...], tmp_path: Path) -> None:
    """The reference is counted, nothing was hidden yet to be restored, and then the hide takes effect."""
    assert_fails(tmp_path, HIDDEN, "-DWITHOUT=11", *JOBS, *bucket)


@both_buckets
def test_rule_12_t_h_is_read_when_no_other_delete_of_the_hide_can_land(bucket: tuple[str, ...], tmp_path: Path) -> None:
    """A job finishes the hide of one that sleeps, whose delete then takes what was pushed after t_h."""
    assert_fails(tmp_path, HIDDEN if bucket == VERSIONED else LOST, "-DWITHOUT=12", *JOBS, *bucket)


@both_buckets
def test_rule_12_a_delete_that_was_sent_twice_must_have_landed_twice(bucket: tuple[str, ...], tmp_path: Path) -> None:
    """The client retries the hide's delete, one is answered, t_h is read, and the other lands on a later push."""
    world = ("-DREQUESTS=2", "-DCRASHES=0", "-DHIDES=1", "-DJOBS=1")
    assert_fails(tmp_path, HIDDEN if bucket == VERSIONED else LOST, "-DWITHOUT=12", "-DRETRY", *world, *bucket)


@both_buckets
def test_rule_13_the_intent_is_void_after_a_reference_since_the_decision(
    bucket: tuple[str, ...], tmp_path: Path
) -> None:
    """A push and an older delete are applied after the look at links: the count is zero again and the link is there."""
    assert_fails(tmp_path, LOST, "-DWITHOUT=13", BYTES_ONLY, *REGISTRIES, *bucket)


@both_buckets
def test_rule_14_the_last_check_of_a_restore_is_after_the_bound(bucket: tuple[str, ...], tmp_path: Path) -> None:
    """The delete lands between the look at the bytes and the look at the bound."""
    assert_fails(tmp_path, HIDDEN if bucket == VERSIONED else LOST, "-DWITHOUT=14", *JOBS, *bucket)


def test_rule_15_a_restorer_deletes_only_markers_of_its_own_hide(tmp_path: Path) -> None:
    """One that slept deletes a later hide's marker after t_h: a request sees what purge then deletes."""
    assert_fails(tmp_path, LOST, "-DWITHOUT=15", "-DREQUESTS=3", "-DCRASHES=0", "-DHIDES=2", "-DJOBS=1")


@both_buckets
def test_a_link_without_any_event_defeats_the_eight_rules(bucket: tuple[str, ...], tmp_path: Path) -> None:
    """The client was told 500; later an index that lists the manifest is accepted, and no watermark waits for it."""
    assert_fails(tmp_path, LOST, "-DLOSSY=2", BYTES_ONLY, *REGISTRIES, *bucket)


@both_buckets
def test_listings_begun_after_the_bound_find_links_without_events(bucket: tuple[str, ...], tmp_path: Path) -> None:
    """If purge also waits for a listing of each pod begun after t_h + R, nothing that is linked at all is lost."""
    assert_holds(tmp_path, "-DLOSSY=1", "-DRELIST", "-DREQUESTS=2", "-DCRASHES=0", "-DHIDES=1", "-DJOBS=1", *bucket)


@both_buckets
@pytest.mark.parametrize("world", [REGISTRIES, QUIET_JOBS], ids=["registries", "jobs"])
def test_listings_are_enough_of_a_registry_that_sends_nothing(
    world: tuple[str, ...], bucket: tuple[str, ...], tmp_path: Path
) -> None:
    """Nothing an unmanaged registry links is lost, and what a listing has found is visible at rest."""
    assert_holds(tmp_path, "-DUNMANAGED", *world, *bucket)


@both_buckets
@pytest.mark.parametrize("half", [0, 1], ids=["any-listing", "begun-after-t-h-alone"])
def test_rule_16_purge_waits_for_a_listing_begun_after_the_bound(
    half: int, bucket: tuple[str, ...], tmp_path: Path
) -> None:
    """An unmanaged registry's link is written behind the last listing, or by a request under way at t_h behind one."""
    world = ("-DREQUESTS=2", "-DCRASHES=0", "-DHIDES=1", "-DJOBS=1")
    assert_fails(tmp_path, LOST, "-DWITHOUT=16", f"-DHALF={half}", "-DUNMANAGED", BYTES_ONLY, *world, *bucket)


@both_buckets
def test_what_others_show_before_the_check_is_not_lost(bucket: tuple[str, ...], tmp_path: Path) -> None:
    """Whenever somebody shows a hidden blob, but between a look and its delete, what is linked then has its bytes."""
    assert_holds(tmp_path, "-DSHOWN", *QUIET_JOBS, *bucket)


def test_rule_17_a_purge_checks_before_it_deletes(tmp_path: Path) -> None:
    """Somebody removes the marker, a client links what it sees, and its event comes after the purge."""
    assert_fails(tmp_path, LOST, "-DWITHOUT=17", "-DSHOWN", "-DREQUESTS=2", "-DCRASHES=0", "-DHIDES=1", "-DJOBS=1")


def test_rule_17_is_about_versions(tmp_path: Path) -> None:
    """Without versions a purge deletes a copy: what somebody puts back stays, with or without a look."""
    world = ("-DREQUESTS=2", "-DCRASHES=0", "-DHIDES=2", "-DJOBS=1")
    assert_holds(tmp_path, "-DWITHOUT=17", "-DSHOWN", *world, *UNVERSIONED)
