#!/usr/bin/env python3
"""Prints prompts and their continuations as text; Python's standard library is enough.

    python3 scripts/show_text.py --model inputs/models/kjv-demo \\
        --tokens inputs/prompts/demo-small.jsonl --responses outputs/demo.jsonl --first 4
"""
import argparse
import json
import sys
import textwrap

import lib_bpe


def read_lines(path):
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def wrapped(text, margin, width):
    """Each line of `text` folded to `width`, every printed line behind `margin`."""
    for line in text.split("\n"):
        for part in textwrap.wrap(line, width - len(margin)) or [""]:
            print(margin + part)


def shortened(text, letters):
    """The end of a long prompt: what the continuation follows."""
    return text if len(text) <= letters else "[...] " + text[-letters:].split(" ", 1)[-1]


def show(vocabulary, request, response, width, letters):
    prompt = request["body"]["prompt"]
    prompt = prompt[0] if prompt and isinstance(prompt[0], list) else prompt
    name = request["custom_id"]
    if response is None or response.get("error"):
        reason = response["error"]["message"] if response else "no response"
        print(f"--- {name}: {len(prompt)} tokens given; {reason}\n")
        return
    choice = response["response"]["body"]["choices"][0]
    ids = choice["token_ids"]
    print(f"--- {name}: {len(prompt)} tokens given, {len(ids)} written "
          f"({choice['finish_reason']})")
    wrapped(shortened(vocabulary.decode(prompt), letters), "    ", width)
    wrapped(vocabulary.decode(ids, show_special=True), "  > ", width)
    print()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="directory with tokenizer.json")
    parser.add_argument("--tokens", required=True, help="token file (JSONL) of the requests")
    parser.add_argument("--responses", required=True, help="responses (JSONL) of `moebatch run`")
    parser.add_argument("--first", type=int, help="show only so many, in the token file's order")
    parser.add_argument("--id", action="append", help="show only these custom_ids")
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--letters", type=int, default=600, help="of a long prompt, show its end")
    args = parser.parse_args()
    vocabulary = lib_bpe.Vocabulary(args.model)
    responses = {line["custom_id"]: line for line in read_lines(args.responses)}
    shown = 0
    for request in read_lines(args.tokens):
        if args.id and request["custom_id"] not in args.id:
            continue
        if args.first is not None and shown == args.first:
            break
        show(vocabulary, request, responses.get(request["custom_id"]), args.width, args.letters)
        shown += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
