#!/usr/bin/env python3
"""Makes demo.jsonl, demo-small.jsonl and multi-turn.jsonl in inputs/prompts: requests on the King
James text.

    python scripts/make_prompts.py --model inputs/models/kjv-demo --out inputs/prompts

Needs the Python package tokenizers and Debian's bible-kjv. Always writes the same files.
"""
import argparse
import json
import os
import random
import sys

from tokenizers import Tokenizer

import lib_kjv

BEGIN = 0
# Openings that a reader knows, and some of chapters that do not exist.
SMALL = [
    "Genesis 1\n1 In the beginning God", "Genesis 51\n1 And it came to pass after the death of",
    "Exodus 41\n1 And the LORD spake unto Moses, saying,", "Psalm 23\n1 The LORD is my shepherd;",
    "Psalm 151\n1 Praise ye the LORD. O", "Proverbs 32\n1 A wise son",
    "Ecclesiastes 13\n1 Vanity of vanities, saith", "Isaiah 67\n1 Hear, O heavens, and give ear,",
    "Jeremiah 53\n1 The word that came to Jeremiah from the LORD,",
    "Daniel 13\n1 In the third year of king Darius",
    "Jonah 5\n1 And the word of the LORD came unto",
    "Matthew 5\n1 And seeing the multitudes, he went up into a mountain: and when he was set, his "
    "disciples came unto him:\n2 And he opened his mouth, and taught them, saying,\n3 Blessed are",
    "Matthew 29\n1 And Jesus said unto his disciples,", "Mark 17\n1 And when the sabbath was past,",
    "Luke 25\n1 And it came to pass in those days, that", "John 22\n1 Then said Jesus unto them, I",
    "Acts 29\n1 And Paul, when he had", "Romans 17\n1 Therefore, brethren,",
    "1 Corinthians 17\n1 Now concerning", "Hebrews 14\n1 By faith",
    "Revelation 23\n1 And I saw a new", "Ruth 5\n1 Now Boaz", "1 Kings 23\n1 So king Solomon",
    "Judges 22\n1 And the children of Israel did",
]


class Writer:
    """Collects request lines; sampling fields are drawn as a mixed real load would have them."""

    def __init__(self, tokenizer, seed):
        self.tokenizer, self.rng, self.lines = tokenizer, random.Random(seed), []

    def encode(self, text):
        return [BEGIN] + self.tokenizer.encode(text, add_special_tokens=False).ids

    def add(self, name, ids, max_tokens, plain=False, **fields):
        body = {"model": "kjv-demo", "prompt": ids, "max_tokens": max_tokens, "temperature": 0}
        if not plain:
            body.update(self.sampling())
        body.update(fields)
        self.lines.append({"custom_id": name, "method": "POST", "url": "/v1/completions",
                           "body": body})

    def sampling(self):
        draw, fields = self.rng.random(), {}
        if draw < 0.15:
            fields = {"temperature": self.rng.choice((0.6, 0.8, 1.0)),
                      "top_p": self.rng.choice((0.9, 0.95, 1.0)),
                      "seed": self.rng.randrange(1, 1 << 31)}
        if self.rng.random() < 0.08:
            fields["logprobs"] = self.rng.choice((1, 5))
        return fields

    def length(self):
        return self.rng.choice((8, 12, 16, 16, 24, 24, 32, 32, 48, 64))

    def save(self, path):
        with open(path, "w", encoding="utf-8") as file:
            for line in self.lines:
                file.write(json.dumps(line, separators=(",", ":")) + "\n")


def cut(text, tokens, writer):
    """About `tokens` tokens of the chapter's start, ending after a whole word."""
    ids = writer.encode(text)
    if len(ids) <= tokens:
        return ids
    kept = writer.tokenizer.decode(ids[:tokens + 1], skip_special_tokens=True)
    return writer.encode(kept[:max(kept.rfind(" "), kept.rfind("\n"))])


def held_out_texts(writer, chapters):
    """Whole chapters that training never saw: scored, and continued a little."""
    for index, chapter in enumerate(chapters):
        if lib_kjv.held_out(index):
            ids = cut(chapter.text, 900, writer)
            name = f"held-{chapter.book}-{chapter.number}".replace(" ", "-")
            writer.add(name, ids, 8, plain=True,
                       prompt_logprobs=1)


def shared_openings(writer, chapters, families, members):
    """One chapter's opening, and after it the first words of some other verse."""
    for family, chapter in enumerate(chapters[:families]):
        opening = chapter.text[:writer.rng.randrange(700, 1600)].rsplit("\n", 1)[0] + "\n"
        base = opening.count("\n")
        for member in range(members):
            other = writer.rng.choice(chapters)
            words = writer.rng.choice(other.verses).split()[1:]
            start = " ".join(words[:writer.rng.randrange(2, 12)])
            writer.add(f"opening-{family:02d}-{member:02d}",
                       writer.encode(f"{opening}{base} {start}"), writer.length())


def growing_texts(writer, chapters, families, turns):
    """The same chapter ever further along, as turns of one conversation would be."""
    for family, chapter in enumerate(chapters[:families]):
        tokens = writer.rng.randrange(130, 200)
        for turn in range(turns):
            writer.add(f"turn-{family:02d}-{turn:02d}", cut(chapter.text, tokens, writer),
                       writer.length())
            tokens += writer.rng.randrange(24, 72)


def single_texts(writer, chapters, count):
    lengths = [8, 12, 16, 24, 32, 40, 48, 64, 65, 80, 96, 128, 129, 160, 192, 224, 256]
    for number in range(count):
        chapter = writer.rng.choice(chapters)
        tokens = writer.rng.choice(lengths) if number % 20 else writer.rng.randrange(300, 860)
        writer.add(f"single-{number:03d}", cut(chapter.text, tokens, writer), writer.length())


def conversations(writer, chapters, opening, count, turns):
    """Conversations about chapters that begin with the same words. A turn's prompt is the one before,
    the answer to it as the text gives it, and the opening of another chapter. Returned turn by turn,
    the conversations of a turn in mixed order, as answers make them come back."""
    rounds = [[] for _ in range(turns)]
    for number in range(count):
        ids = list(opening)
        for turn in range(turns):
            verse = writer.rng.choice(chapters)
            ids = ids + writer.encode(f"{verse.book} {verse.number}\n")[1:]
            verses = "\n".join(verse.verses) + "\n"
            text = writer.encode(verses)[1:]
            asked, answer = writer.rng.randrange(16, 40), writer.rng.randrange(24, 49)
            ids = ids + text[:asked]
            rounds[turn].append((f"chat-{number:02d}-{turn}", ids, answer))
            ids = ids + text[asked:asked + answer]
    for turn in rounds:
        writer.rng.shuffle(turn)
    for name, ids, answer in (request for turn in rounds for request in turn):
        writer.add(name, ids, answer, plain=True, ignore_eos=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="directory with tokenizer.json")
    parser.add_argument("--out", required=True, help="directory of the three files")
    parser.add_argument("--text", help="verse lines 'Ge1:1 In the...' (default: run `bible`)")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(os.path.join(args.model, "tokenizer.json"))
    chapters = lib_kjv.chapters(args.text)
    os.makedirs(args.out, exist_ok=True)

    writer = Writer(tokenizer, seed=1611)
    held_out_texts(writer, chapters)
    longer = [c for c in chapters if len(c.text) > 3000]
    writer.rng.shuffle(longer)
    shared_openings(writer, longer, families=10, members=14)
    growing_texts(writer, longer[10:], families=12, turns=8)
    single_texts(writer, chapters, 320)
    # A load arrives mixed; the order also decides which prefixes are still in memory.
    writer.rng.shuffle(writer.lines)
    writer.save(os.path.join(args.out, "demo.jsonl"))

    small = Writer(tokenizer, seed=1611)
    for number, text in enumerate(SMALL):
        small.add(f"small-{number:02d}", small.encode(text), 32 if number % 3 else 24, plain=True)
    small.save(os.path.join(args.out, "demo-small.jsonl"))

    chats = Writer(tokenizer, seed=1611)
    opening = cut(longer[0].text, 150, chats)
    conversations(chats, longer[1:], opening, count=16, turns=6)
    chats.save(os.path.join(args.out, "multi-turn.jsonl"))
    report(writer.lines, small.lines, chats.lines)
    return 0


def report(*files):
    for lines in files:
        lengths = sorted(len(line["body"]["prompt"]) for line in lines)
        print(f"{len(lines)} requests, {sum(lengths)} prompt tokens, lengths {lengths[0]} to "
              f"{lengths[-1]}, median {lengths[len(lengths) // 2]}, "
              f"{sum(32 <= n <= 256 for n in lengths)} of 32 to 256; "
              f"{sum(line['body']['max_tokens'] for line in lines)} tokens asked for")


if __name__ == "__main__":
    sys.exit(main())
