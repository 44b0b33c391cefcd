"""States of a blob. The numbers are stored: never reuse one.

| state          | meaning                                               |
|----------------|-------------------------------------------------------|
| `live`         | referenced, or a link still counts                    |
| `unreferenced` | nothing references it since `unreferenced_since`      |
| `hidden`       | registries see 404; the bytes are kept                |
| `purged`       | the recorded bytes are deleted                        |
| `missing`      | referenced, but no bytes                              |

The batch apply moves only between `live` and `unreferenced`.
"""

from enum import IntEnum


class BlobState(IntEnum):
    LIVE = 0
    UNREFERENCED = 1
    HIDDEN = 2
    PURGED = 3
    MISSING = 4
