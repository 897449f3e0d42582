"""The King James text as Debian packages it (bible-kjv-text, read with `bible` of bible-kjv).

Gives the demo model's corpus as a list of chapters. Knows nothing of tokens or models.
"""
import re
import subprocess
from collections import namedtuple

# One chapter is one document: `text` is its heading line and one line a verse.
Chapter = namedtuple("Chapter", "book number verses text")

# The package's abbreviations in its order, and the name that the corpus spells out.
BOOKS = dict(pair.split("=") for pair in (
    "Ge=Genesis,Exo=Exodus,Lev=Leviticus,Num=Numbers,Deu=Deuteronomy,Josh=Joshua,Jdgs=Judges,"
    "Ruth=Ruth,1Sm=1 Samuel,2Sm=2 Samuel,1Ki=1 Kings,2Ki=2 Kings,1Chr=1 Chronicles,"
    "2Chr=2 Chronicles,Ezra=Ezra,Neh=Nehemiah,Est=Esther,Job=Job,Psa=Psalm,Prv=Proverbs,"
    "Eccl=Ecclesiastes,SSol=Song of Solomon,Isa=Isaiah,Jer=Jeremiah,Lam=Lamentations,"
    "Eze=Ezekiel,Dan=Daniel,Hos=Hosea,Joel=Joel,Amos=Amos,Obad=Obadiah,Jonah=Jonah,Mic=Micah,"
    "Nahum=Nahum,Hab=Habakkuk,Zep=Zephaniah,Hag=Haggai,Zec=Zechariah,Mal=Malachi,Mat=Matthew,"
    "Mark=Mark,Luke=Luke,John=John,Acts=Acts,Rom=Romans,1Cor=1 Corinthians,2Cor=2 Corinthians,"
    "Gal=Galatians,Eph=Ephesians,Phi=Philippians,Col=Colossians,1Th=1 Thessalonians,"
    "2Th=2 Thessalonians,1Tim=1 Timothy,2Tim=2 Timothy,Titus=Titus,Phmn=Philemon,Heb=Hebrews,"
    "Jas=James,1Pet=1 Peter,2Pet=2 Peter,1Jn=1 John,2Jn=2 John,3Jn=3 John,Jude=Jude,"
    "Rev=Revelation").split(","))

VERSE = re.compile(r"^([1-3]?[A-Za-z]+)(\d+):(\d+) (.*)$")


def read_verses(path=None):
    """Lines `Ge1:1 In the beginning...`, from a file, or from the `bible` program."""
    if path:
        with open(path, encoding="ascii") as lines:
            return lines.read().splitlines()
    done = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], check=True, capture_output=True)
    return done.stdout.decode("ascii").splitlines()


def chapters(path=None):
    """All 1189 chapters in the order of the books."""
    found = {}
    for line in read_verses(path):
        match = VERSE.match(line)
        if not match:
            raise ValueError(f"not a verse line: {line[:60]!r} (expected 'Ge1:1 In the ...')")
        book, chapter, verse, words = match.groups()
        found.setdefault((BOOKS[book], int(chapter)), []).append(f"{verse} {words.strip()}")
    if len(found) != 1189:
        raise ValueError(f"{len(found)} chapters instead of 1189: is the text complete?")
    return [Chapter(book, number, verses, f"{book} {number}\n" + "\n".join(verses) + "\n")
            for (book, number), verses in found.items()]


def held_out(index):
    """Whether chapter `index` (0..1188) is kept from training: every 48th, 25 in all."""
    return index % 48 == 24
