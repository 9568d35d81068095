"""The HTTP session to Prometheus: each answer has a deadline and a largest size."""

import io
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import requests
from typing_extensions import override

from tessera.adapters.prometheus.access import PrometheusAccess

MAX_ANSWER_BYTES = 32 * 2**20
# What Prometheus begins a good answer with; any other beginning is parsed to learn its status.
_SUCCESS = b'{"status":"success"'
ResultT = TypeVar("ResultT")


class PrometheusSession(requests.Session):
    """Adds the credentials, and reads an answer no longer and no further than its limits."""

    def __init__(self, access: PrometheusAccess) -> None:
        super().__init__()
        self._access = access

    @override
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Follow no redirect: credentials go to the configured URL alone."""

    @override
    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        deadline = time.monotonic() + options["timeout"]
        request.headers.update({"Accept-Encoding": "identity"} | self._access.headers())
        if (ca := self._access.ca) is not None:
            options["verify"] = str(ca)
        response = super().send(request, **options | {"stream": True})
        content = bytearray()
        with response:
            # Returns what is there: `read` would wait for all of it, however slowly it comes.
            while part := response.raw.read1(2**16):
                content += part
                if len(content) > MAX_ANSWER_BYTES:
                    raise requests.RequestException(f"answer over {MAX_ANSWER_BYTES // 2**20} MiB")
                if time.monotonic() > deadline:
                    raise requests.Timeout(f"no complete answer after {options['timeout']} s")
        response.raw = io.BytesIO(content)
        if response.status_code == requests.codes.ok and not content.startswith(_SUCCESS):
            status = json.loads(content)["status"]
            if status != "success":
                raise requests.RequestException(f"status {status!r}")
        return response


def start_daemon(function: Callable[[], ResultT]) -> Future[ResultT]:
    """Run the function in a thread of its own, which the end of the process does not wait for."""
    future: Future[ResultT] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
