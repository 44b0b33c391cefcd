"""A program that runs the stack until it is told to end, as the command does; the tests send it signals."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import FrameType

from coordinator.errors import StackError
from coordinator.stack.supervisor import Stack


def main() -> int:
    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    try:
        with Stack(Path(sys.argv[1])) as stack:
            assert stack._guard is not None
            started = {"children": [child.pid for child in stack._children], "guard": stack._guard.pid}
            print(json.dumps(started), flush=True)
            dead = stack.wait()
            print(json.dumps({"dead": None if dead is None else dead.name}), flush=True)
            return 1
    except KeyboardInterrupt:
        return 0
    except StackError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
