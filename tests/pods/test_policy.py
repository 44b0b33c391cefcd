"""The policy of a pod's key, as data."""

from typing import Any

import pytest

from coordinator.errors import UsageError
from coordinator.pods.policy import PolicyLine, bucket_policy, pod_policy

ROOT = "arn:aws:s3:::b/shared/docker/registry/v2"


def lines(policy: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["Sid"]: each for each in policy["Statement"]}


def test_what_it_allows() -> None:
    """A key may read and write blobs and, below the pod's prefixes, delete objects, and nothing else."""
    policy = lines(pod_policy("b", "/shared/", ["team-a", "apps/one"]))
    assert list(policy) == list(PolicyLine)
    own = [f"{ROOT}/repositories/team-a/*", f"{ROOT}/repositories/apps/one/*"]
    assert {each["Effect"] for each in policy.values()} == {"Allow"}
    assert policy[PolicyLine.BLOBS]["Resource"] == [f"{ROOT}/blobs/*"]
    assert policy[PolicyLine.BLOBS]["Action"] == ["s3:GetObject", "s3:PutObject"]
    assert policy[PolicyLine.REPOSITORIES]["Resource"] == own
    assert policy[PolicyLine.LIST]["Condition"]["StringLike"]["s3:prefix"] == [
        f"{each.removeprefix('arn:aws:s3:::b/')}" for each in (f"{ROOT}/blobs/*", *own)
    ]
    deleting = [line for line, each in policy.items() if any("Delete" in action for action in each["Action"])]
    assert deleting == [PolicyLine.REPOSITORIES]
    assert not any("Version" in action or "*" in action for each in policy.values() for action in each["Action"])


def test_a_bucket_has_one_policy() -> None:
    """The policy of a bucket has the statements of every pod, each for its own principal."""
    policy = bucket_policy("b", "", {"arn:a": ["team-a"], "arn:b": ["team-b"]})
    found = policy["Statement"]
    assert len({each["Sid"] for each in found}) == len(found) == 2 * len(PolicyLine)
    assert all(each["Sid"].isalnum() for each in found)
    of_a = [each for each in found if each["Principal"] == {"AWS": ["arn:a"]}]
    assert len(of_a) == len(PolicyLine)
    assert not any("team-b" in str(each) for each in of_a)
    assert list(lines(bucket_policy("b", "", {"arn:a": ["team-a"]}))) == list(PolicyLine)


@pytest.mark.parametrize("root", ["shared*", "sha?red", "${aws:username}"])
def test_a_root_that_would_be_a_pattern(root: str) -> None:
    """A root that a policy would read as a pattern is refused."""
    with pytest.raises(UsageError, match="No policy can name the root"):
        pod_policy("b", root, ["team-a"])
