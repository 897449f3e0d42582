#!/usr/bin/env python3
"""Text to token files for `moebatch run`, and token ids in its responses back to text.

    tokenize.py --model DIR --in prompts.txt   --out tokens.jsonl --max-tokens 64
    tokenize.py --model DIR --in batch.jsonl   --out tokens.h5
    tokenize.py --model DIR --detokenize responses.jsonl [--out with_text.jsonl]

Input: a text file (one prompt per line), or OpenAI batch lines: /v1/completions with body.prompt a
string (or ids, which stay), /v1/chat/completions with body.messages, which go through the model's
chat template. Output: JSONL with ids, or HDF5 (.h5), by the name of --out. Needs the Python
package tokenizers (or tiktoken for a tiktoken.model), jinja2 for chat lines, h5py for .h5;
--detokenize needs none of them.
"""
import os
import sys

if __name__ != "__main__":
    # Scripts of this folder find this file when Python's own modules ask for the standard
    # library's `tokenize`. It then steps aside.
    import importlib.machinery
    import importlib.util
    _spec = importlib.machinery.PathFinder.find_spec("tokenize", [os.path.dirname(os.__file__)])
    sys.modules[__name__] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[__name__])
else:
    import argparse
    import json

    import lib_tokenize
    from lib_bpe import Vocabulary


def read_requests(path, escapes):
    """(line number, request) of a JSONL or text file."""
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not path.endswith(".jsonl"):
                text = line.rstrip("\n")
                text = text.replace("\\n", "\n") if escapes else text
                if text:
                    yield number, {"custom_id": f"line-{number}", "body": {"prompt": text}}
            elif line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise lib_tokenize.BadRequest(f"no JSON: {error}") from error


def convert(args):
    """All requests as lines with ids, --n copies of each."""
    encoder = lib_tokenize.Encoder(args.model)
    made, number = [], 0
    try:
        for number, request in read_requests(args.input, args.escapes):
            made.extend(lib_tokenize.token_lines(encoder, request, args.n, args.max_tokens))
    except lib_tokenize.BadRequest as error:
        sys.exit(f"tokenize.py: {args.input}:{number}: {error}")
    if args.out.endswith((".h5", ".hdf5")):
        lib_tokenize.write_hdf5(args.out, made)
    else:
        with lib_tokenize.replaced(args.out) as file:
            for line in made:
                file.write(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n")
    print(f"{args.out}: {len(made)} requests, "
          f"{sum(len(line['body']['prompt']) for line in made)} prompt tokens")


def fill_text(args):
    """Sets `text` of every choice from its token_ids."""
    vocabulary, count = Vocabulary(args.model), 0
    with open(args.detokenize, encoding="utf-8") as lines, \
            lib_tokenize.replaced(args.out or args.detokenize) as file:
        for line in lines:
            response = json.loads(line)
            body = (response.get("response") or {}).get("body") or {}
            for choice in body.get("choices", []):
                choice["text"] = vocabulary.decode(choice["token_ids"], args.special)
                count += 1
            file.write(json.dumps(response, separators=(",", ":"), ensure_ascii=False) + "\n")
    print(f"{args.out or args.detokenize}: text of {count} responses")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="directory with the tokenizer's files")
    parser.add_argument("--in", dest="input", help="text file, or JSONL batch lines")
    parser.add_argument("--out", help=".jsonl or .h5; with --detokenize: default is in place")
    parser.add_argument("--n", type=int, help="write N lines per request, seeds apart "
                                              "(default: its body.n, else 1)")
    parser.add_argument("--max-tokens", type=int, help="for requests that do not say")
    parser.add_argument("--escapes", action="store_true", help=r"text file: \n is a line break")
    parser.add_argument("--detokenize", metavar="RESPONSES", help="fill `text` in responses")
    parser.add_argument("--special", action="store_true", help="show special tokens in `text`")
    args = parser.parse_args()
    if args.detokenize:
        fill_text(args)
    elif args.input and args.out:
        convert(args)
    else:
        parser.error("give --in and --out, or --detokenize")


if __name__ == "__main__":
    main()
