"""`python -m bench.paced BOOTSTRAP RATE SECONDS SEED`: write the workload's records to Kafka at a steady rate.

A separate process, so that it does not share an interpreter with the measurement. Prints `sending` when the records are
made and sending begins, and `sent N in S s` at its end.
"""

import asyncio
import sys
import time

from aiokafka import AIOKafkaProducer

from bench.events import Record, make_records
from coordinator.kafka.topics import EVENTS

TICK_S = 0.005
LIMIT = 1_000_000


async def _send_records(bootstrap: str, rate: float, found: list[Record]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=0, max_batch_size=256 * 1024)
    await producer.start()
    try:
        sys.stdout.write("sending\n")
        sys.stdout.flush()
        start, sent = time.perf_counter(), 0
        last = None
        while sent < len(found):
            due = min(len(found), int((time.perf_counter() - start) * rate))
            for record in found[sent:due]:
                last = await producer.send(EVENTS, record.value, key=record.key, headers=record.headers)
            sent = max(sent, due)
            await asyncio.sleep(TICK_S)
        if last is not None:
            await last
        sys.stdout.write(f"sent {sent} in {time.perf_counter() - start:.1f} s\n")
    finally:
        await producer.stop()


def main() -> None:
    bootstrap, rate, seconds, seed = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    found = list(make_records(seed, min(LIMIT, int(rate * seconds))))
    asyncio.run(_send_records(bootstrap, rate, found))


if __name__ == "__main__":
    main()
