"""Healthy clients, as a process of their own: each asks for one object again and again, and times the answers.

healthy.py PORT URL LENGTH CLIENTS SECONDS    prints the answers, the errors, and the 50th and 95th percentile (ms)
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from typing import List


def main() -> None:
    port, url, length, clients, seconds = int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
    times: List[float] = []
    errors: List[str] = []
    end = time.monotonic() + seconds

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        while time.monotonic() < end:
            began = time.monotonic()
            try:
                connection.request("GET", url)
                answer = connection.getresponse()
                if answer.status != 200 or len(answer.read()) != length:
                    errors.append(str(answer.status))
            except OSError as error:
                errors.append(str(error))
                connection.close()
            times.append(1000 * (time.monotonic() - began))
            time.sleep(0.02)
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.sort()
    print(
        json.dumps(
            {
                "answers": len(times),
                "errors": errors[:5],
                "p50": times[len(times) // 2],
                "p95": times[int(len(times) * 0.95)],
            }
        )
    )


main()
