"""Serves external metrics from Prometheus by the API that autoscalers ask, over TLS.

It runs in a pod of a world, by itself: only the standard library is there.
"""

import http.server
import json
import ssl
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

GROUP = "external.metrics.k8s.io/v1beta1"
PORT = 9443


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer the discovery of the group, and requests for the values of a metric."""
        path, _, query = self.path.partition("?")
        parts = path.split("/")
        body: dict[str, Any] = {"kind": "APIResourceList", "groupVersion": GROUP, "resources": []}
        if "namespaces" in parts:
            items = list(_values(parts[-2], parts[-1], query))
            body = {"kind": "ExternalMetricValueList", "apiVersion": GROUP, "items": items}
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def _values(namespace: str, metric: str, query: str) -> Iterator[dict[str, Any]]:
    selector = urllib.parse.parse_qs(query)["labelSelector"][0]
    label, _, value = selector.partition("=")
    series = f'max({metric}{{exported_namespace="{namespace}",{label}="{value}"}})'
    url = f"{sys.argv[4]}/api/v1/query?{urllib.parse.urlencode({'query': series})}"
    with urllib.request.urlopen(url) as response:  # noqa: S310 - the Prometheus of the world
        rows = json.load(response)["data"]["result"]
    for row in rows:
        time = "2026-01-01T00:00:00Z"
        yield {
            "metricName": metric,
            "metricLabels": {},
            "timestamp": time,
            "value": row["value"][1],
        }


def main() -> None:
    """Serve at an address, with a certificate and its key, from a Prometheus."""
    address, certificate, key, _ = sys.argv[1:]
    server = http.server.ThreadingHTTPServer((address, PORT), _Handler)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
