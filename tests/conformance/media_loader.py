"""Fetches images with vLLM's own loader: media_loader.py HOSTS URL..., HOSTS joined by commas.

Runs in the engine's environment. Prints for each URL the size of its image, or null where the
loader refuses it.
"""

import json
import sys

from vllm.multimodal.media.connector import MediaConnector

if __name__ == "__main__":
    hosts, *urls = sys.argv[1:]
    loader = MediaConnector(allowed_media_domains=hosts.split(",") if hosts else None)
    sizes = []
    for url in urls:
        try:
            sizes.append(loader.fetch_image(url).size)
        except Exception as error:  # noqa: BLE001 - of any kind
            print(f"{url}: {error}", file=sys.stderr)
            sizes.append(None)
    print(json.dumps(sizes))
