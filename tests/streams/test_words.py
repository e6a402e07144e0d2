"""Texts: how they are read and numbered, and the codes of their words."""

import json

import numpy as np
import pytest
import torch

from torchrsm.streams import check_stream
from torchrsm.streams.words import END, UNKNOWN, WordStream, coded_text, given_codes, learned_codes, read_text


def write(folder, **parts):
    for name, text in parts.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture
def small(tmp_path):
    return write(tmp_path, train="b a\na c a\n\n", valid="a x\n", test="c <unk> a\n")


def test_words_are_numbered_by_their_frequency(small):
    text = read_text(small)
    assert text.words == ("a", END, "b", "c", UNKNOWN)
    assert text.train.tolist() == [2, 0, 1, 0, 3, 0, 1]
    assert text.validation.tolist() == [0, 4, 1]
    assert text.test.tolist() == [3, 4, 0, 1]


def test_rare_words_are_unknown(small):
    text = read_text(small, vocabulary=3)
    assert text.words == ("a", END, UNKNOWN)
    assert text.train.tolist() == [2, 0, 1, 0, 2, 0, 1]


def test_the_files_of_the_treebank_have_other_names(tmp_path):
    write(tmp_path, **{"ptb.train": "a b\n", "ptb.valid": "a\n", "ptb.test": "b\n"})
    assert read_text(tmp_path).words == (END, "a", "b", UNKNOWN)


def test_a_single_file_is_held_out_at_its_end(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("\n".join(f"word{number} again" for number in range(60)))
    text = read_text(file)
    assert len(text.train) == 54 * 3
    assert len(text.validation) == len(text.test) == 3 * 3
    assert "word53" in text.words
    assert "word54" not in text.words


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": "\n\n", "valid": "a", "test": "a"}, "the train part of .* must have words; got none"),
        ({"train": "a", "valid": "", "test": "a"}, "the validation part of .* must have words; got none"),
    ],
)
def test_an_empty_part_is_refused(tmp_path, parts, message):
    with pytest.raises(ValueError, match=message):
        read_text(write(tmp_path, **parts))


def test_what_is_no_text_is_refused(tmp_path, small):
    with pytest.raises(FileNotFoundError, match="text must be a folder or a file"):
        read_text(tmp_path / "nowhere")
    one = tmp_path / "one.txt"
    one.write_text("a single sentence\n")
    with pytest.raises(ValueError, match="must have >= 40 sentences, one a line; got 1"):
        read_text(one)
    one.write_bytes(b"\xff\xfe\x00" * 50)
    with pytest.raises(ValueError, match="must be text in UTF-8"):
        read_text(one)
    (small / "test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"must hold test\.txt"):
        read_text(small)
    with pytest.raises(ValueError, match="vocabulary must be >= 2; got 1"):
        read_text(small, vocabulary=1)


def like_words(length=20_000):
    """A row of pairs: 0 or 1, then 2 or 3, or 4 or 5, then 6 or 7. So 0 and 1 are used alike, and so on."""
    draw = np.random.default_rng(0)
    first = draw.integers(0, 2, length) * 4
    one, two = first + draw.integers(0, 2, length), first + 2 + draw.integers(0, 2, length)
    return np.stack([one, two], 1).ravel()


def test_words_of_like_use_have_like_codes():
    codes = learned_codes(like_words(), 8, 4, window=1)
    assert codes.shape == (8, 4)
    assert codes.min() == 0
    assert codes.max() == 1
    apart = ((codes[:, None] - codes[None]) ** 2).sum(-1)
    pairs = [apart[word, word + 1] for word in (0, 2, 4, 6)]
    others = [apart[word, other] for word in range(8) for other in range(8) if word // 2 != other // 2]
    assert max(pairs) < np.mean(others)


def test_codes_are_the_same_each_time():
    words = like_words(500)
    assert np.array_equal(learned_codes(words, 8, 3), learned_codes(words, 8, 3))
    with pytest.raises(ValueError, match=r"numbers must be in 1\.\.8"):
        learned_codes(words, 8, 9)
    with pytest.raises(ValueError, match="window must be >= 1; got 0"):
        learned_codes(words, 8, 3, window=0)


def test_given_codes_are_ranked(tmp_path):
    file = tmp_path / "codes.txt"
    file.write_text("a 0.1 5\nb -3 7\nother 9 9\nc 0.2 6\n")
    codes = given_codes(file, ["c", "missing", "a", "b"])
    assert codes.tolist() == [[1.0, 0.5], [0.5, 0.5], [0.5, 0.0], [0.0, 1.0]]
    for text, message in (
        ("a 1 2\nb 3\n", "line 2 must be a word and 2 numbers"),
        ("x 1\n", "must have codes of words"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            given_codes(file, ["a", "b"])


def test_it_is_a_stream(small):
    check_stream(WordStream(coded_text(small, numbers=3), 2), 20)


def test_elements_read_the_text_from_different_places(small):
    coded = coded_text(small, numbers=3)
    stream = WordStream(coded, 2)
    batches = [next(stream) for _ in range(8)]
    symbols = torch.stack([batch.symbols for batch in batches], 1).tolist()
    text = coded.text.train.tolist()
    assert symbols == [[*text, text[0]], [*text[3:], *text[:3], text[3]]]
    assert [batch.starts.tolist() for batch in batches] == [[True, True], *[[False, False]] * 7]
    assert torch.equal(batches[1].frames[:, :, 0, 0], torch.from_numpy(coded.codes)[batches[1].symbols])


def test_a_foreign_position_is_refused(small):
    stream = WordStream(coded_text(small, numbers=3), 2)
    position = json.loads(json.dumps(stream.state_dict()))
    for change in ({"split": "test"}, {"step": -1}, {"text": "another"}):
        with pytest.raises(ValueError, match="saved position"):
            stream.load_state_dict(position | change)
    with pytest.raises(ValueError, match="batch_size must be an integer in 1..7; got 8"):
        WordStream(coded_text(small, numbers=3), 8)


def test_a_text_that_has_changed_is_read_again(small):
    before = coded_text(small, numbers=2)
    assert coded_text(small, numbers=2) is before
    (small / "train.txt").write_text("z z z\n")
    assert coded_text(small, numbers=2).text.words[0] == "z"
