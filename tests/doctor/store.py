"""SeaweedFS with users: Baleen's own, those of pods, and one whose key no policy restrains."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from coordinator.pods.policy import KeyOwner, bucket_policy
from coordinator.stack.ports import Ports
from coordinator.stack.process import ManagedProcess
from coordinator.stack.seaweedfs import BUCKET, EmbeddedS3
from coordinator.storage.layout import REPOSITORIES
from tests.support.wait import eventually

ROOT = "shared"


class Key(NamedTuple):
    user: str
    access: str
    secret: str


BALEEN = Key("baleen", "baleen-access", "baleen-secret")
#: Of two pods and a pull-through cache: the bucket's policy alone says what they are permitted to do.
POD = Key("pod", "pod-access", "pod-secret")
OTHER_POD = Key("other-pod", "other-pod-access", "other-pod-secret")
CACHE = Key("cache", "cache-access", "cache-secret")
#: May read, write and delete everything in the bucket: the store has it so, and a policy of the bucket only adds to it.
THIEF = Key("thief", "thief-access", "thief-secret")


class Store(EmbeddedS3):
    def __init__(self, directory: Path) -> None:
        ports = Ports(directory / "s3-ports.json", "127.0.0.1")
        super().__init__(directory / "s3", directory / "s3.log", host="127.0.0.1", ports=ports)
        self._users = directory / "s3-users.json"

    def process(self) -> ManagedProcess:
        everything = [f"{action}:{BUCKET}" for action in ("Read", "Write", "List", "Tagging")]
        users: dict[Key, list[str]] = {BALEEN: ["Admin"], POD: [], OTHER_POD: [], CACHE: [], THIEF: everything}
        identities = []
        for key, actions in users.items():
            credentials = [{"accessKey": key.access, "secretKey": key.secret}]
            identities.append({"name": key.user, "credentials": credentials, "actions": actions})
        self._users.write_text(json.dumps({"identities": identities}))
        process = super().process()
        process.argv = [*process.argv, f"-s3.config={self._users}"]
        process.env = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "TMPDIR", "TZ"}}
        return process

    def client(self, key: Key = BALEEN) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=key.access,
            aws_secret_access_key=key.secret,
            config=Config(s3={"addressing_style": "path"}, proxies={}),
        )

    def everything(self, bucket: str = BUCKET) -> set[tuple[str, str]]:
        """Key and version of all that the bucket keeps, and unfinished uploads in parts."""
        client = self.client()
        found: set[tuple[str, str]] = set()
        for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
            for entry in (*page.get("Versions", []), *page.get("DeleteMarkers", [])):
                found.add((entry["Key"], entry["VersionId"]))
        for entry in client.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
            found.add((entry["Key"], entry["UploadId"]))
        return {(key, version) for key, version in found if not key.endswith("/")}

    def restrain(
        self,
        pods: Mapping[Key, Sequence[str]],
        roots: Sequence[str] = (ROOT,),
        more: Mapping[Key, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        """Give the bucket the policy that `baleen pods policy` prints, for the prefixes of the pod with each key.

        `more`: objects of the root that a key may read and write besides.
        """
        principals = {
            f"arn:aws:iam::000000000000:user/{key.user}": KeyOwner(prefixes) for key, prefixes in pods.items()
        }
        documents = [bucket_policy(BUCKET, root, principals) for root in roots]
        statements = [
            statement | {"Sid": f"{statement['Sid']}Root{number}"}
            for number, document in enumerate(documents)
            for statement in document["Statement"]
        ]
        for key, names in more.items():
            paths, bucket = [f"{ROOT}/{name}" for name in names], f"arn:aws:s3:::{BUCKET}"
            below = {"StringLike": {"s3:prefix": paths}}
            allowed: list[dict[str, Any]] = [
                {"Action": ["s3:GetObject", "s3:PutObject"], "Resource": [f"{bucket}/{path}" for path in paths]},
                {"Action": ["s3:ListBucket"], "Resource": [bucket], "Condition": below},
            ]
            principal = {"AWS": [f"arn:aws:iam::000000000000:user/{key.user}"]}
            statements += [
                each | {"Sid": f"More{key.user}{number}", "Effect": "Allow", "Principal": principal}
                for number, each in enumerate(allowed)
            ]
        document = documents[0] | {"Statement": statements}
        self.client().put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(document))
        for key, prefixes in pods.items():
            # The server may take a moment until the policy is in force.
            folder = f"{roots[-1]}/{REPOSITORIES}{prefixes[-1]}/"
            eventually(lambda key=key, folder=folder: self._may_list(key, folder))  # type: ignore[misc]

    def _may_list(self, key: Key, folder: str) -> bool:
        try:
            self.client(key).list_objects_v2(Bucket=BUCKET, Prefix=folder, MaxKeys=1)
        except ClientError:
            return False
        return True
