from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.conftest import temporary_directory

if TYPE_CHECKING:
    from tests.gitlab.registry import GitlabStage


@pytest.fixture(scope="module")
def gitlab_stage() -> Iterator[GitlabStage]:
    """A running Baleen, a pod of distribution and one of a real GitLab registry."""
    from tests.gitlab.registry import GitlabStage  # noqa: PLC0415 - only runs that name a program need it

    with temporary_directory() as directory, GitlabStage.opened(directory) as stage:
        yield stage
