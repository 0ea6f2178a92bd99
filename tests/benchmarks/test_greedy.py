"""The pool of prompts of benchmarks/greedy.py, and how fixed ones are chosen from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.greedy import CUT, CUT_BYTES, WRITTEN, Fixed, Pool, choose, num_new, prompts_of, survey
from workers.models.transformer import ByteTransformer
from workers.qins.recoding import CODECS, recode


@pytest.mark.parametrize(
    ("text", "new"),
    [
        (b"abcdefgh", 8),
        (b"aaaaaaaa", 1),
        (b"abcabcab", 3),
        (b"xyabcabc", 5),
        (b"abcdefgabcdefgh", 15),
        (b"xxxxxxxy", 8),
        (b"ab" * 5 + b"c" * 4, 11),
    ],
)
def test_new_bytes_are_those_before_the_text_repeats_its_end(text: bytes, new: int) -> None:
    assert num_new(text) == new


def test_prompts_begin_lines_all_over_the_text() -> None:
    held_out = b"".join(b"line %d of the text, with an \xc3\xa4\n" % i for i in range(4000))
    prompts = prompts_of(held_out)
    assert len(prompts) == len(set(prompts)) == CUT + len(WRITTEN)
    assert all(prompt.startswith(b"line ") and CUT_BYTES - 1 <= len(prompt) <= CUT_BYTES for prompt in prompts[:CUT])
    assert held_out.index(prompts[CUT - 1]) > 0.9 * len(held_out)
    assert all(prompt.decode() for prompt in prompts)


def test_fixed_prompts_are_whole_texts_with_the_most_new_bytes(tmp_path: Path) -> None:
    texts = (b"abcdefgh", b"aaaaaaaa", b"abcabcab", b"abcdabcd")
    pool = Pool((b"p0", b"p1", b"p2", b"p3"), texts, {"v1": (7, 8, 8, 8), "bf16": (8, 8, 8, 3)})
    assert [pool.number_whole(codec) for codec in ("v1", "bf16")] == [3, 3]
    assert choose(pool, ["v1"], "today", 2).prompts == ["p3", "p2"]
    fixed = choose(pool, ["v1", "bf16"], "today", 2)
    assert fixed.prompts == ["p2", "p1"]
    with pytest.raises(ValueError, match="only 2 of the 4 texts whole, not 3"):
        choose(pool, ["v1", "bf16"], "today", 3)
    fixed.write(tmp_path / "file")
    assert Fixed.read(tmp_path / "file") == fixed


def test_a_survey_says_where_a_codec_takes_another_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ByteTransformer(256, 16, 16, 1, 2).eval()
    prompts, steps = (b"def ", b"class"), 30
    monkeypatch.setitem(CODECS, "coarse", lambda weight, name: {"": (weight * 8).round() / 8})
    pool = survey(model, prompts, ["v1", "coarse"], steps)
    for codec, agreed in pool.agreed.items():
        other = recode(model, CODECS[codec]).model
        for prompt, text, number in zip(prompts, pool.texts, agreed, strict=True):
            theirs = bytes(other.generate(torch.tensor(list(prompt)), steps))
            assert theirs[:number] == text[:number] and (number == steps or theirs[number] != text[number])
    assert min(pool.agreed["coarse"]) < steps


def test_qn15_the_fixed_prompts_are_on_record() -> None:
    fixed = Fixed.read()
    assert len(set(fixed.prompts)) == len(fixed.prompts) >= 4 and fixed.chosen
    assert all(prompt.encode() for prompt in fixed.prompts)
