"""Reads a job's journal (NAME.journal/*.seg), independently of the program: what src/engine/journal.h
and journal_segment.h say of its form, and no more of a payload than who it is about.
"""
import dataclasses
import pathlib
import struct

HEADER, ATTEMPT_BEGIN, ATTEMPT_END, MARK, REQUEST = 1, 2, 3, 4, 5  # record types
MAGIC = b"MBJ2"
HEAD = struct.Struct("<4sIII")  # magic, type, bytes, crc
ID_AT = 24                      # of the journal's number in a header's payload


def crc32c_table():
    table = []
    for i in range(256):
        for _ in range(8):
            i = i >> 1 ^ (0x82F63B78 if i & 1 else 0)
        table.append(i)
    return table


TABLE = crc32c_table()


def crc32c(data, crc=0):
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@dataclasses.dataclass
class Record:
    kind: int
    payload: bytes
    segment: str

    @property
    def index(self):
        """The request that a REQUEST record is about."""
        return struct.unpack_from("<q", self.payload)[0]

    @property
    def computed(self):
        """(prompt tokens computed, tokens decoded) of a REQUEST record that is ok."""
        status, _, prompt, cached, output = struct.unpack_from("<5i", self.payload, 40)
        return (prompt - cached, max(output - 1, 0)) if status == 1 else (0, 0)

    @property
    def mark(self):
        """(job time, prefill tokens, decode tokens) of a MARK record."""
        return struct.unpack_from("<dqq", self.payload)


def read_segment(path, check=True):
    """Records up to the first that is none, and the bytes behind it. check: also checksums, slowly."""
    data, at, number, records = pathlib.Path(path).read_bytes(), 0, 0, []
    while at + HEAD.size <= len(data):
        magic, kind, size, crc = HEAD.unpack_from(data, at)
        payload = data[at + HEAD.size:at + HEAD.size + size]
        if magic != MAGIC or len(payload) < size:
            break
        if check:
            start = 0 if kind == HEADER else number
            if crc32c(data[at + 4:at + 12] + payload, start) != crc:
                break
        if kind == HEADER:
            number = struct.unpack_from("<I", payload, ID_AT)[0]
        records.append(Record(kind, payload, pathlib.Path(path).name))
        at += HEAD.size + size
    return records, len(data) - at


def read_journal(folder, check=True):
    """All records in the order they were written, and the bytes in none."""
    records, torn = [], 0
    for path in sorted(pathlib.Path(folder).glob("*.seg")):
        found, rest = read_segment(path, check)
        records += found
        torn += rest
    return records, torn


def finished_in(records):
    """Indices of the requests that have a record."""
    return {r.index for r in records if r.kind == REQUEST}
