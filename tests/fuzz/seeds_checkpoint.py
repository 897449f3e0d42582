#!/usr/bin/env python3
"""Writes seed files for fuzz_safetensors and fuzz_config below DIR/safetensors and DIR/config.

    python3 tests/fuzz/seeds_checkpoint.py build/fuzz-seeds

Seeds are small valid files and near misses; configurations are those of tests/golden.
"""
import glob
import json
import os
import struct
import sys


def image(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors_seeds():
    one = {"a": tensor("F32", [1], 0, 4)}
    yield image({})
    yield image({"__metadata__": {"format": "pt"}, **one}, bytes(4))
    yield image({**one, "b": tensor("BF16", [2, 3], 4, 16), "s": tensor("F8_E8M0", [], 16, 17),
                 "e": tensor("F8_E4M3", [0, 4], 17, 17)}, bytes(17))
    yield image({**one, "b": tensor("F32", [1], 2, 6)}, bytes(6))       # overlap
    yield image({"a": tensor("F32", [1 << 40, 1 << 40], 0, 4)}, bytes(4))
    yield image(one, bytes(3))                                          # truncated
    yield image({}, length=1 << 62)
    yield image(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "a":1}', bytes(4))


def config_seeds(root):
    for path in sorted(glob.glob(os.path.join(root, "tests/golden/*/config.json"))):
        with open(path, "rb") as file:
            yield file.read()
        generation = os.path.join(os.path.dirname(path), "generation_config.json")
        if os.path.exists(generation):
            with open(path, "rb") as file, open(generation, "rb") as more:
                yield file.read() + b"\0" + more.read()


def write(directory, seeds):
    os.makedirs(directory, exist_ok=True)
    for number, seed in enumerate(seeds):
        with open(os.path.join(directory, f"seed{number:02d}"), "wb") as file:
            file.write(seed)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    write(os.path.join(sys.argv[1], "safetensors"), safetensors_seeds())
    write(os.path.join(sys.argv[1], "config"), config_seeds(root))


if __name__ == "__main__":
    main()
