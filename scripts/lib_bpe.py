"""Token ids to text with Python's standard library alone, for byte-level BPE vocabularies.

Reads a Hugging Face tokenizer.json (models of type BPE with the ByteLevel decoder, as all of
DeepSeek's are) or a tiktoken.model (Kimi-K2's). It only decodes: text to ids is tokenize.py's.
"""
import base64
import json
import os


def byte_of_letter():
    """The byte-level alphabet: which byte each printable stand-in character means.

    Printable Latin-1 characters mean themselves; the other bytes, in rising order, are
    U+0100, U+0101, ...
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    table.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return table


def read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


class Vocabulary:
    """`pieces[id]` are a token's bytes; `special[id]` the name of a token that is no text."""

    def __init__(self, directory):
        self.pieces, self.special = {}, {}
        hub = os.path.join(directory, "tokenizer.json")
        ranks = os.path.join(directory, "tiktoken.model")
        if os.path.exists(hub):
            self.read_hub(read_json(hub), hub)
        elif os.path.exists(ranks):
            self.read_tiktoken(ranks, os.path.join(directory, "tokenizer_config.json"))
        else:
            raise FileNotFoundError(f"{directory} has neither tokenizer.json nor tiktoken.model")

    def read_hub(self, data, path):
        decoders = data.get("decoder") or {}
        kinds = {part["type"] for part in decoders.get("decoders", [decoders]) if "type" in part}
        if data["model"]["type"] != "BPE" or "ByteLevel" not in kinds:
            raise ValueError(f"{path} is not byte-level BPE (model {data['model']['type']}, "
                             f"decoder {sorted(kinds)}): install the Python package `tokenizers`")
        letters = byte_of_letter()
        for piece, token in data["model"]["vocab"].items():
            # Added tokens such as <|end|> may stand in the vocabulary too, spelled as they are.
            if all(letter in letters for letter in piece):
                self.pieces[token] = bytes(letters[letter] for letter in piece)
            else:
                self.pieces[token] = piece.encode()
        for token in data.get("added_tokens", []):
            self.pieces[token["id"]] = token["content"].encode()
            if token["special"]:
                self.special[token["id"]] = token["content"]

    def read_tiktoken(self, path, config_path):
        with open(path, encoding="ascii") as lines:
            for line in lines:
                if line.strip():
                    piece, rank = line.split()
                    self.pieces[int(rank)] = base64.b64decode(piece)
        if os.path.exists(config_path):
            for token, entry in read_json(config_path).get("added_tokens_decoder", {}).items():
                self.special[int(token)] = entry["content"]
                self.pieces[int(token)] = entry["content"].encode()

    def decode(self, ids, show_special=False):
        """Text of the ids; bytes that are no UTF-8 become U+FFFD, special tokens vanish."""
        raw = b"".join(self.pieces.get(token, b"\xef\xbf\xbd") for token in ids
                       if show_special or token not in self.special)
        return raw.decode("utf-8", errors="replace")
