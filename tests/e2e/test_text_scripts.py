"""The text scripts: ids to text with the standard library, text to ids where tokenizers exists.

Alone: python3 -m pytest tests/e2e/test_text_scripts.py
"""
import base64
import importlib.util
import json
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRIPTS = os.path.join(ROOT, "scripts")
MODEL = os.path.join(ROOT, "inputs", "models", "kjv-demo")


def run(script, *args, code=0):
    done = subprocess.run([sys.executable, os.path.join(SCRIPTS, script), *map(str, args)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def bpe():
    spec = importlib.util.spec_from_file_location("lib_bpe", os.path.join(SCRIPTS, "lib_bpe.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def needs_tokenizers():
    pytest.importorskip("tokenizers", reason="text to ids needs the Python package tokenizers")


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def response(name, ids):
    return {"id": name, "custom_id": name, "error": None, "response": {"status_code": 200, "body": {
        "choices": [{"index": 0, "text": None, "token_ids": ids, "finish_reason": "length"}]}}}


@pytest.fixture(name="hub")
def hub_model(tmp_path):
    """A four-token vocabulary: an e with accent cut into its two bytes, and an end token."""
    data = {"added_tokens": [{"id": 3, "content": "<|end|>", "special": True}],
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": {"caf": 0, "\u00c3": 1, "\u00a9\u0120": 2}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return tmp_path


def test_byte_level_pieces_join_to_utf8(hub):
    vocabulary = bpe().Vocabulary(str(hub))
    assert vocabulary.decode([0, 1, 2, 3]) == "caf\u00e9 "
    assert vocabulary.decode([0, 3], show_special=True) == "caf<|end|>"
    assert vocabulary.decode([1]) == "\ufffd"
    assert vocabulary.decode([99, 0]) == "\ufffdcaf"


def test_tiktoken_vocabulary(tmp_path):
    lines = [f"{base64.b64encode(piece).decode()} {rank}"
             for rank, piece in enumerate((b"Am", b"en", b"\xc3", b"\xa9"))]
    (tmp_path / "tiktoken.model").write_text("\n".join(lines) + "\n", encoding="ascii")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {"4": {"content": "[EOS]"}}}), encoding="utf-8")
    vocabulary = bpe().Vocabulary(str(tmp_path))
    assert vocabulary.decode([0, 1, 2, 3, 4]) == "Amen\u00e9"
    assert vocabulary.decode([1, 4], show_special=True) == "en[EOS]"


def test_other_tokenizers_are_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"decoder": {"type": "WordPiece"}, "model": {"type": "WordPiece"}}),
        encoding="utf-8")
    with pytest.raises(ValueError, match="not byte-level BPE"):
        bpe().Vocabulary(str(tmp_path))


def test_detokenize_in_place_keeps_failed_lines(hub):
    failed = {"id": "b", "custom_id": "b", "response": None, "error": {"message": "too long"}}
    path = write(hub / "responses.jsonl", [response("a", [0, 1, 2, 3]), failed])
    run("tokenize.py", "--model", hub, "--detokenize", path)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines[0]["response"]["body"]["choices"][0]["text"] == "caf\u00e9 "
    assert lines[1] == failed


def test_show_text_follows_the_token_file(hub):
    requests = [{"custom_id": name, "body": {"prompt": [0]}} for name in ("a", "b", "c")]
    tokens = write(hub / "tokens.jsonl", requests)
    answers = write(hub / "responses.jsonl", [response("b", [0, 3]), response("a", [0, 0])])
    shown = run("show_text.py", "--model", hub, "--tokens", tokens, "--responses", answers,
                "--first", 2)
    assert shown.index("--- a: 1 tokens given, 2 written") < shown.index("--- b:")
    assert "  > cafcaf" in shown and "  > caf<|end|>" in shown and "--- c" not in shown


def test_scripts_folder_does_not_hide_the_standard_tokenize():
    code = (f"import sys; sys.path.insert(0, {SCRIPTS!r}); import tokenize, linecache; "
            "assert callable(tokenize.generate_tokens)")
    subprocess.run([sys.executable, "-c", code], check=True)


def convert(tmp_path, lines, *options, code=0):
    source, made = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    said = run("tokenize.py", "--model", MODEL, "--in", source, "--out", made, *options, code=code)
    if code:
        return said
    return [json.loads(line) for line in made.read_text(encoding="utf-8").splitlines()]


def test_completions_become_ids_and_come_back(tmp_path):
    needs_tokenizers()
    text = "Genesis 1\n1 In the beginning God created"
    [line] = convert(tmp_path, [{"custom_id": "a", "body": {"prompt": text, "max_tokens": 4}}])
    assert line["url"] == "/v1/completions" and line["body"]["max_tokens"] == 4
    assert line["body"]["prompt"][0] == 0  # <|begin|>
    assert bpe().Vocabulary(MODEL).decode(line["body"]["prompt"]) == text


def test_chat_lines_go_through_the_template(tmp_path):
    needs_tokenizers()
    pytest.importorskip("jinja2", reason="chat lines need the Python package jinja2")
    [line] = convert(tmp_path, [{"custom_id": "a", "body": {
        "messages": [{"role": "system", "content": "Psalm 23"},
                     {"role": "user", "content": "1 The LORD"}],
        "max_completion_tokens": 5, "stop": "<|end|>"}}])
    body = line["body"]
    assert bpe().Vocabulary(MODEL).decode(body["prompt"]) == "Psalm 23\n1 The LORD"
    assert body["prompt"].count(0) == 1 and body["max_tokens"] == 5
    assert body["stop_token_ids"] == [1] and "messages" not in body and "stop" not in body


def test_n_writes_lines_with_seeds_apart(tmp_path):
    needs_tokenizers()
    request = {"custom_id": "a", "body": {"prompt": [5, 6], "n": 2, "seed": 7}}
    lines = convert(tmp_path, [request])
    assert [(x["custom_id"], x["body"]["seed"]) for x in lines] == [("a-0", 7), ("a-1", 8)]
    assert all("n" not in x["body"] for x in lines)
    assert len(convert(tmp_path, [request], "--n", 3)) == 3


def test_what_cannot_be_done_says_why(tmp_path):
    needs_tokenizers()
    said = convert(tmp_path, [{"body": {"prompt": "a", "stop": "in the beginning"}}], code=1)
    assert "in.jsonl:1: body.stop 'in the beginning' is" in said
    assert "body.prompt is empty" in convert(tmp_path, [{"body": {"prompt": []}}], code=1)
    assert "body.echo" in convert(tmp_path, [{"body": {"prompt": "a", "echo": True}}], code=1)


def test_hdf5_token_file(tmp_path):
    needs_tokenizers()
    h5py = pytest.importorskip("h5py", reason="an HDF5 token file needs h5py")
    source = write(tmp_path / "in.jsonl", [
        {"custom_id": "a", "body": {"prompt": [1, 2, 3], "max_tokens": 9}},
        {"custom_id": "bb", "body": {"prompt": [4], "temperature": 0.5}}])
    made = tmp_path / "out.h5"
    run("tokenize.py", "--model", MODEL, "--in", source, "--out", made, "--max-tokens", 5)
    with h5py.File(made) as file:
        assert file["tokens"][:].tolist() == [1, 2, 3, 4]
        assert file["offsets"][:].tolist() == [0, 3, 4]
        assert file["custom_id"][:].tolist() == [b"a", b"bb"]
        assert file["max_tokens"][:].tolist() == [9, 5]
        assert file["temperature"][:].tolist() == [0.0, 0.5]
