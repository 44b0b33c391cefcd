from tests.gc.conftest import garbage, store
from tests.storage.conftest import buckets, connect_s3

__all__ = ["buckets", "connect_s3", "garbage", "store"]
