"""The skills: right answers, a split that nothing crosses, and a measure that can say no."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockref.models import skills

NAMES = sorted(skills.SKILLS)


def solve(name, prompt):
    """The answer, worked out another way than the generator does."""
    if name == "add":
        first, second = prompt.decode().rstrip("=").split("+")
        return f"{int(first) + int(second):03}\n".encode()
    return bytes(reversed(prompt.removesuffix(b">"))) + b"\n"


def twin(name, prompt):
    """The prompt whose answer follows from this one's: swapped operands, or the reversed word."""
    if name == "add":
        return b"+".join(reversed(prompt.removesuffix(b"=").split(b"+"))) + b"="
    return prompt[-2::-1] + b">"


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32 - 1), held_out=st.booleans())
@settings(max_examples=30, deadline=None)
def test_answers_are_right(name, seed, held_out):
    for prompt, answer in skills.skill_problems(name, np.random.default_rng(seed), 20, held_out):
        assert answer == solve(name, prompt)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_no_generator_crosses_the_split(name, seed):
    train = skills.skill_problems(name, np.random.default_rng(seed), 500, held_out=False)
    test = skills.skill_problems(name, np.random.default_rng(seed + 1), 100, held_out=True)
    seen = {prompt for prompt, _ in train}
    leaked = [p for p, _ in test if p in seen or twin(name, p) in seen]
    assert not leaked, f"held-out {name} problems in the training stream: {leaked}"


def test_the_split_holds_out_one_in_ten_of_all_sums():
    pairs = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    share = sum(skills.is_held_out(b"%d+%d" % pair) for pair in pairs) / len(pairs)
    # a fair hash is a binomial draw: five standard deviations
    assert abs(share - 0.1) < 5 * math.sqrt(0.1 * 0.9 / len(pairs))


def test_every_length_of_word_occurs():
    problems = skills.skill_problems("reverse", np.random.default_rng(0), 300, held_out=False)
    shortest, longest = skills.REVERSE_LENGTHS
    assert {len(prompt) - 1 for prompt, _ in problems} == set(range(shortest, longest + 1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("held_out", [False, True])
def test_packed_rows_are_lines_of_the_same_stream(name, held_out):
    packed = skills.pack_lines(name, np.random.default_rng(3), 4, 53, held_out)
    assert packed.shape == (4, 53) and packed.dtype == np.uint8
    lines = [line for row in packed for line in row.tobytes().split(b"\n")[:-1]]
    assert len(lines) > 4
    mark = b"=" if name == "add" else b">"
    for line in lines:
        prompt = line[: line.index(mark) + 1]
        assert line + b"\n" == prompt + solve(name, prompt)
        word = prompt[:-1]
        key = min(word, twin(name, prompt)[:-1])
        assert skills.is_held_out(key) == held_out


def test_draws_depend_on_the_generator_alone():
    first, again, other = (skills.pack_lines("add", np.random.default_rng(seed), 2, 40) for seed in (5, 5, 6))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_text_is_split_by_file_and_is_ascii():
    train, held_out = skills.stdlib_files(), skills.stdlib_files(held_out=True)
    assert train == sorted(train) and not set(train) & set(held_out)
    assert not any("site-packages" in path.parts for path in train + held_out)
    text = skills.stdlib_bytes(held_out=True)
    assert text.max() < 128
    assert np.array_equal(skills.stdlib_bytes(held_out=True, limit=5000), text[:5000])
    assert not np.array_equal(skills.stdlib_bytes(limit=5000), text[:5000])


def test_no_python_source_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(skills.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match="no Python source below"):
        skills.stdlib_bytes()


@given(length=st.integers(1, 60), spare=st.integers(0, 40), seed=st.integers(0, 999))
def test_text_rows_are_windows(length, spare, seed):
    text = np.arange(length + spare, dtype=np.uint8)  # each value names its place
    rows = skills.text_rows(text, np.random.default_rng(seed), 7, length)
    assert rows.shape == (7, length) and rows[:, 0].max() <= spare
    assert (rows == rows[:, :1] + np.arange(length)).all()


def test_the_last_window_is_drawn_too():
    rows = skills.text_rows(np.arange(5, dtype=np.uint8), np.random.default_rng(0), 99, 4)
    assert set(rows[:, 0].tolist()) == {0, 1}


def oracle(name):
    """next_bytes of a model that knows every answer, and says 0 where no answer is asked for."""

    def next_bytes(tokens):
        got = np.zeros_like(tokens)
        for row, out in zip(tokens, got, strict=True):
            line = row.tobytes()
            prompt = line[: line.index(b"=" if name == "add" else b">") + 1]
            answer = solve(name, prompt)
            out[len(prompt) - 1 :][: len(answer)] = np.frombuffer(answer, np.uint8)
        return got

    return next_bytes


@pytest.mark.parametrize("name", NAMES)
def test_exact_match_accepts_the_oracle_and_counts_its_faults(name):
    problems = skills.skill_problems(name, np.random.default_rng(1), 50, held_out=True)
    knows = oracle(name)
    assert skills.exact_match(knows, problems, batch=7) == 1.0

    def late(tokens):  # right bytes, one position off
        return np.roll(knows(tokens), 1, axis=1)

    def endless(tokens):  # never ends the line
        got = knows(tokens)
        return np.where(got == ord("\n"), ord(" "), got)

    def gaps(tokens):  # one wrong byte in some answers
        got = knows(tokens)
        return np.where(got == ord("q" if name == "reverse" else "9"), 0, got)

    assert skills.exact_match(late, problems) == 0.0
    assert skills.exact_match(endless, problems) == 0.0
    spared = [a for _, a in problems if (b"q" if name == "reverse" else b"9") not in a]
    assert 0 < len(spared) < len(problems)
    assert skills.exact_match(gaps, problems) == len(spared) / len(problems)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_one_forward_pass_decides_as_generation_does(seed):
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 3, size=(3, 3), dtype=np.uint8)  # next byte from the last two

    def next_bytes(tokens):
        before = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1] % 3
        return table[before, tokens % 3]

    problems = [
        tuple(rng.integers(0, 3, size=n, dtype=np.uint8).tobytes() for n in rng.integers(1, 4, 2)) for _ in range(30)
    ]
    generated = 0
    for prompt, answer in problems:
        line = prompt
        while len(line) < len(prompt + answer):
            line += bytes([next_bytes(np.frombuffer(line, np.uint8)[None])[0, -1]])
        generated += line == prompt + answer
    assert skills.exact_match(next_bytes, problems) == generated / len(problems)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: skills.skill_problems("chess", rng, 1, False), "'chess' is unknown"),
        (lambda rng: skills.skill_problems("add", rng, -1, False), "n must be at least 0"),
        (lambda rng: skills.pack_lines("chess", rng, 1, 9), "'chess' is unknown"),
        (lambda rng: skills.pack_lines("add", rng, -1, 9), "rows and length"),
        (lambda rng: skills.text_rows(np.zeros(3, np.uint8), rng, 1, 4), "3 bytes"),
        (lambda rng: skills.exact_match(lambda tokens: tokens, []), "at least one problem"),
        (lambda rng: skills.exact_match(lambda tokens: tokens[0], [(b"a", b"b")]), "shape"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(np.random.default_rng(0))
    assert "\n" not in str(caught.value)
