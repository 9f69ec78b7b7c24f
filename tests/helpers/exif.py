"""EXIF data for pictures of the tests, also such as no library would write."""

import struct


def exif_of(tags: dict[int, tuple[int, object]]) -> bytes:
    """EXIF data with tags of any type: 2 is ASCII, 3 is SHORT, 5 is RATIONAL."""
    entries, after = b"", b""
    at = 8 + 2 + 12 * len(tags) + 4
    for tag, (kind, value) in sorted(tags.items()):
        if isinstance(value, int):
            entries += struct.pack("<HHIHH", tag, kind, 1, value, 0)
            continue
        data = struct.pack("<II", *value) if isinstance(value, tuple) else f"{value}\0".encode()
        entries += struct.pack("<HHII", tag, kind, 1 if kind == 5 else len(data), at + len(after))
        after += data
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + after
