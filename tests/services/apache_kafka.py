"""Apache Kafka 4.1 for the tests: one node, KRaft, on loopback, its data kept over restarts.

It listens twice: in plain text, and with TLS for users with a password.

Route: Maven fetches the broker once into a cache folder -> format a directory -> run `kafka.Kafka`.
Not here: topics. Each test makes its own, with names of its own.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import uuid
from pathlib import Path
from typing import Self

from coordinator.errors import StackError
from coordinator.stack.guard import Guard
from coordinator.stack.noida import speaks_kafka
from coordinator.stack.ports import Ports
from coordinator.stack.process import ManagedProcess
from tests.services.cache import HOME, cached_directory, run_build
from tests.services.certificates import make_certificate

VERSION = "4.1.0"
HOST = "127.0.0.1"
CACHE = HOME / f"kafka-{VERSION}"
POM = Path(__file__).with_name("kafka-pom.xml")
FETCH_SECONDS = 300.0
FORMAT_SECONDS = 60.0

SERVER = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners=PLAINTEXT://{host}:{port},SASL_SSL://{host}:{secured},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port},SASL_SSL://{host}:{secured}
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location={certificate}
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.sasl_ssl.plain.sasl.jaas.config={plain} required user_{user}="{password}";
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={scram} required;
log.dirs={logs}
num.partitions=1
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
auto.create.topics.enable=false
"""

LOG4J = """\
Configuration:
  Appenders:
    Console:
      name: STDOUT
      PatternLayout:
        pattern: "%d %p %c{1}: %m%n"
  Loggers:
    Root:
      level: WARN
      AppenderRef:
        ref: STDOUT
"""


def fetch_libraries() -> Path:
    """The folder with the broker's jars; fetched on first use, and complete or absent."""
    return cached_directory(CACHE.name, _fetch)


def _fetch(directory: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise StackError("Tests on Apache Kafka need Maven and Java 17: install the packages maven and a JDK.")
    copy = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={directory}"]
    run_build([maven, "-q", "-B", "-f", POM, *copy], "Maven could not fetch Apache Kafka", FETCH_SECONDS)


#: Who may use the secured listener.
USER, PASSWORD = "baleen", uuid.uuid4().hex
_MODULES = "org.apache.kafka.common.security"


class ApacheKafka:
    """One broker on one directory, which can be stopped, killed and started again."""

    def __init__(self, directory: Path, *, guard: Guard | None = None, heap: str = "1g") -> None:
        self._directory = directory
        self._guard = guard  # ends the broker when the test run is killed
        self._heap = heap
        self._classpath = f"{fetch_libraries()}/*"
        directory.mkdir(parents=True, exist_ok=True)
        ports = Ports(directory / "ports.json", HOST)
        self._port = ports.take("kafka")
        self._controller = ports.take("controller")
        self._secured = ports.take("secured")
        ports.save()
        self._process: ManagedProcess | None = None
        self._format()

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self._port}"

    @property
    def secured_address(self) -> str:
        """Where users with a password are served, by TLS; `ca_file` holds the certificate."""
        return f"{HOST}:{self._secured}"

    @property
    def ca_file(self) -> Path:
        return self._directory / "ca.pem"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Run until ready; what an earlier run wrote is there."""
        self._process = ManagedProcess(
            name="Apache Kafka",
            argv=[
                *("java", f"-Xmx{self._heap}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
                f"-Dlog4j2.configurationFile={self._directory / 'log4j2.yaml'}",
                *("-cp", self._classpath, "kafka.Kafka", self._directory / "server.properties"),
            ],
            env=_make_environment(),
            cwd=self._directory,
            log_file=self._directory / "kafka.log",
            stop_timeout=60.0,
            ready_timeout=240.0,
            probe=lambda: speaks_kafka(HOST, self._port),
        )
        pid = self._process.spawn()
        if self._guard is not None:
            self._guard.add_pid(pid, signal.SIGKILL)
        try:
            self._process.wait_ready()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._forget()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._forget()

    def restart(self) -> None:
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _forget(self) -> None:
        if self._guard is not None:
            self._guard.remove(self.pid)

    def _format(self) -> None:
        logs = self._directory / "data"
        properties = self._directory / "server.properties"
        certificate = self._directory / "server.pem"
        properties.write_text(
            SERVER.format(
                host=HOST,
                port=self._port,
                secured=self._secured,
                controller=self._controller,
                logs=logs,
                certificate=certificate,
                plain=f"{_MODULES}.plain.PlainLoginModule",
                scram=f"{_MODULES}.scram.ScramLoginModule",
                user=USER,
                password=PASSWORD,
            )
        )
        (self._directory / "log4j2.yaml").write_text(LOG4J)
        if (logs / "meta.properties").exists():
            return
        make_certificate(HOST, certificate, self.ca_file)
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        java = ["java", "-Xmx256m", f"-Dlog4j2.configurationFile={self._directory / 'log4j2.yaml'}"]
        tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(properties)]
        tool += ["--add-scram", f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"]
        format_it = [*java, "-cp", self._classpath, *tool]
        run_build(format_it, f"Apache Kafka cannot format {logs}", FORMAT_SECONDS, env=_make_environment())


def _make_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("KAFKA_")}
