"""Objects written into a cache as dduct stores them, far faster than by requests: to see a cache with very many."""

from __future__ import annotations

import os
import time
from pathlib import Path

from storage.record import Metadata, Record
from storage.records import ATTRIBUTE, boot_id

SIZE = 4096  # bytes of an object
_FIELDS = (("Content-Type", "application/octet-stream"), ("Cache-Control", "max-age=86400"))


def write_objects(files: Path, authority: str, top: str, folders: int, count: int) -> Path:
    """Write the objects `https://AUTHORITY/TOP/FOLDER/NUMBER.deb` below `files`, `count` in each folder.

    The result is the path of `top`. The origin at `authority` has to be one of this machine.
    """
    root = files / "https" / authority / top
    body = os.urandom(SIZE)
    for folder in range(folders):
        (root / str(folder)).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            path = f"{root}/{folder}/{number}.deb"
            url = f"https://{authority}/{top}/{folder}/{number}.deb"
            metadata = Metadata(url, _FIELDS, time.time(), near=True)
            record = Record(metadata, SIZE, "0" * 64, boot=boot_id(), durable=True)
            with open(path, "wb") as file:
                file.write(body)
            os.setxattr(path, ATTRIBUTE, record.encode())
    return root
