"""SeaweedFS with users: Baleen's own, the pods', and one whose key no policy restrains."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from botocore.config import Config

from coordinator.pods.doctor.storage import policy
from coordinator.pods.doctor.texts import Patient
from coordinator.stack.ports import Ports
from coordinator.stack.process import ManagedProcess
from coordinator.stack.seaweedfs import BUCKET, EmbeddedS3

ROOT = "shared"


class Key(NamedTuple):
    user: str
    access: str
    secret: str


BALEEN = Key("baleen", "baleen-access", "baleen-secret")
POD = Key("pod", "pod-access", "pod-secret")
#: May write, and so delete, for no policy speaks of it.
THIEF = Key("thief", "thief-access", "thief-secret")


class Store(EmbeddedS3):
    def __init__(self, directory: Path) -> None:
        super().__init__(
            directory / "s3",
            directory / "s3.log",
            host="127.0.0.1",
            ports=Ports(directory / "s3-ports.json", "127.0.0.1"),
        )
        self._users = directory / "s3-users.json"

    def process(self) -> ManagedProcess:
        pods = [f"{action}:{BUCKET}" for action in ("Read", "Write", "List", "Tagging")]
        users = {BALEEN: ["Admin"], POD: pods, THIEF: pods}
        self._users.write_text(
            json.dumps(
                {
                    "identities": [
                        {
                            "name": key.user,
                            "credentials": [{"accessKey": key.access, "secretKey": key.secret}],
                            "actions": actions,
                        }
                        for key, actions in users.items()
                    ]
                }
            )
        )
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

    def restrain(self, *keys: Key) -> None:
        """Give the bucket the policy that the doctor himself proposes, for the users of these keys."""
        patient = Patient("all", "all", [], None, BUCKET, f"/{ROOT}", self.url)
        document = json.loads(policy(patient).partition("\n")[2])
        for statement in document["Statement"]:
            (named,) = statement["Principal"]["AWS"]
            statement["Principal"]["AWS"] = [named.replace("POD-USER", key.user) for key in keys]
        self.client().put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(document))
