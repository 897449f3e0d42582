"""Text, completions and chat lines to token ids; the working part of tokenize.py."""
import contextlib
import os
import zlib

from lib_bpe import read_json, Vocabulary

# Kimi-K2's way of cutting text into words, as its tokenization_kimi.py has it; tiktoken.model
# itself holds only the merges.
KIMI_WORDS = "|".join([
    r"[\p{Han}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
KIMI_RESERVED = 256  # special ids after the last merge

# Columns of an HDF5 token file: type and the value of a request that does not say.
COLUMNS = {"max_tokens": ("i4", 64), "temperature": ("f4", 0.0), "top_p": ("f4", 1.0),
           "top_k": ("i4", 0), "seed": ("u8", None), "logprobs": ("u1", 0),
           "prompt_logprobs": ("u1", 0), "ignore_eos": ("u1", 0)}


class BadRequest(ValueError):
    """A line that cannot become token ids; the message says what to change."""


def needed(name, why):
    try:
        return __import__(name)
    except ImportError as error:
        raise SystemExit(f"tokenize.py: {why} needs the Python package {name}: "
                         f"pip install {name}") from error


def token_text(entry):
    """tokenizer_config.json writes a special token as a string or as an object."""
    return entry["content"] if isinstance(entry, dict) else entry


class Encoder:
    """One model directory's tokenizer and chat template."""

    def __init__(self, directory):
        self.directory = directory
        path = os.path.join(directory, "tokenizer_config.json")
        self.config = read_json(path) if os.path.exists(path) else {}
        hub = os.path.join(directory, "tokenizer.json")
        if os.path.exists(hub):
            self.tokenizer = needed("tokenizers", "tokenizer.json").Tokenizer.from_file(hub)
            self.tiktoken = None
        else:
            self.tiktoken = self.load_tiktoken()
        self.template = None

    def load_tiktoken(self):
        tiktoken = needed("tiktoken", "tiktoken.model")
        vocabulary = Vocabulary(self.directory)
        ranks = {piece: rank for rank, piece in vocabulary.pieces.items()
                 if rank not in vocabulary.special}
        special = {f"<|reserved_token_{number}|>": number
                   for number in range(len(ranks), len(ranks) + KIMI_RESERVED)
                   if number not in vocabulary.special}
        special.update({name: number for number, name in vocabulary.special.items()})
        return tiktoken.Encoding("model", pat_str=KIMI_WORDS, mergeable_ranks=ranks,
                                 special_tokens=special)

    def ids(self, text, begin):
        """Special tokens' names in the text become their ids; `begin`: as the model starts."""
        if self.tiktoken:
            return self.tiktoken.encode(text, allowed_special="all")
        ids = self.tokenizer.encode(text, add_special_tokens=begin).ids
        name = token_text(self.config.get("bos_token"))
        if begin and self.config.get("add_bos_token") and name:
            first = self.tokenizer.token_to_id(name)
            if ids[:1] != [first]:
                ids = [first] + ids
        return ids

    def chat(self, messages):
        """The chat template's text, up to where the assistant speaks."""
        if self.template is None:
            self.template = self.load_template()
        names = {key: token_text(value) for key, value in self.config.items()
                 if key.endswith("_token") and value}
        names.setdefault("bos_token", "")
        try:
            return self.template.render(messages=messages, add_generation_prompt=True, **names)
        except Exception as error:  # a template may raise what it likes
            raise BadRequest(f"the chat template refuses body.messages: {error}") from error

    def load_template(self):
        needed("jinja2", "a chat line")
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        source = self.config.get("chat_template")
        if isinstance(source, list):
            source = next((s["template"] for s in source if s["name"] == "default"), None)
        path = os.path.join(self.directory, "chat_template.jinja")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                source = file.read()
        if not source:
            raise BadRequest(f"body.messages needs a chat template, and {self.directory} has none")

        def refuse(message):
            raise ValueError(message)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.globals["raise_exception"] = refuse
        return environment.from_string(source)


def prompt_ids(encoder, body):
    """Token ids of one request's prompt, and nothing of it left in `body`."""
    messages, prompt = body.pop("messages", None), body.pop("prompt", None)
    if messages is not None:
        return encoder.ids(encoder.chat(messages), begin=False)
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, str):
        ids = encoder.ids(prompt, begin=True)
    elif isinstance(prompt, list) and all(type(token) is int for token in prompt):
        ids = prompt
    else:
        raise BadRequest("body.prompt is no string and no list of token ids: write one line a "
                         "prompt")
    if not ids:
        raise BadRequest("body.prompt is empty")
    return ids


def stop_ids(encoder, stop):
    """A stop string that is one token; the engine knows no others."""
    found = []
    for text in [stop] if isinstance(stop, str) else stop or []:
        ids = encoder.ids(text, begin=False)
        if len(ids) != 1:
            raise BadRequest(f"body.stop {text!r} is {len(ids)} tokens, only single tokens can "
                             f"stop: remove it, or cut the text afterwards")
        found += ids
    return found


def token_lines(encoder, request, copies, max_tokens):
    """The request as `copies` lines (default body.n, else 1) that `moebatch run` takes."""
    body = dict(request.get("body") or {})
    prompt = prompt_ids(encoder, body)
    stops = stop_ids(encoder, body.pop("stop", None))
    if stops:
        body["stop_token_ids"] = list(body.get("stop_token_ids", [])) + stops
    if body.pop("echo", False):
        raise BadRequest("body.echo is not supported: remove it, the prompt is in the token file")
    limit = body.pop("max_completion_tokens", None)
    body.setdefault("max_tokens", limit if limit is not None else max_tokens)
    if body["max_tokens"] is None:
        del body["max_tokens"]
    count = copies or body.get("n") or 1
    body.pop("n", None)
    name = request.get("custom_id", "request")
    lines = []
    for copy in range(count):
        fields = dict(body)
        if count > 1 and fields.get("seed") is not None:
            fields["seed"] += copy  # else all copies would say the same
        lines.append({"custom_id": name if count == 1 else f"{name}-{copy}", "method": "POST",
                      "url": "/v1/completions", "body": {"prompt": prompt, **fields}})
    return lines


@contextlib.contextmanager
def replaced(path):
    """A file that takes its name only when it is complete."""
    part = path + ".part"
    with open(part, "w", encoding="utf-8") as file:
        yield file
    os.replace(part, path)


def column(lines, name):
    """One value a request, or None when no request has the field."""
    if not any(name in line["body"] for line in lines):
        return None
    kind, default = COLUMNS[name]
    values = []
    for line in lines:
        value = line["body"].get(name)
        if value is None:
            # A column has no gaps; a seed of the name's own keeps such requests apart.
            value = zlib.crc32(line["custom_id"].encode()) if name == "seed" else default
        values.append(int(bool(value)) if kind == "u1" else value)
    return kind, values


def write_hdf5(path, lines):
    """/tokens, /offsets and the columns that any request uses."""
    h5py = needed("h5py", "an HDF5 token file")
    for line in lines:
        if line["body"].get("stop_token_ids"):
            raise SystemExit(f"tokenize.py: {line['custom_id']}: stop_token_ids has no place in an "
                             f"HDF5 token file: write .jsonl")
    offsets, tokens = [0], []
    for line in lines:
        tokens.extend(line["body"]["prompt"])
        offsets.append(len(tokens))
    with h5py.File(path + ".part", "w") as file:
        file.create_dataset("tokens", data=tokens, dtype="i4")
        file.create_dataset("offsets", data=offsets, dtype="i8")
        names = [line["custom_id"].encode() for line in lines]
        file.create_dataset("custom_id", data=names, dtype=f"S{max(map(len, names), default=1)}")
        for name in COLUMNS:
            found = column(lines, name)
            if found:
                file.create_dataset(name, data=found[1], dtype=found[0])
    os.replace(path + ".part", path)
