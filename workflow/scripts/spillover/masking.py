"""Which tokens of a training row carry loss.

A row is a chat (a list of role/content messages) or raw text. This module renders and tokenizes it and marks the
supervised tokens; it knows nothing of models, optimizers or batches. The end of a turn in ChatML is `<|im_end|>`
followed by a newline token; `end_of_turn` says which of the two is supervised last (protocols: the published code
supervised the newline).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

END_OF_TURN = "<|im_end|>"
MODES = ("full", "completion", "last_turn", "marker")


class NothingSupervised(ValueError):
    """A row in which no token carries loss: it would count as an example and teach nothing."""


@dataclass(frozen=True)
class Tokens:
    """One tokenized row: `ids` int64 (length,), `supervised` bool (length,), `weight` of its loss.

    `supervised[i]` says that token i is a target, predicted from the tokens before it; the first token never is.
    `contrast` is the row with the ending that it must not get: there `avoided` is true, and the supervised tokens are
    to become unlikely.
    """

    ids: np.ndarray
    supervised: np.ndarray
    weight: float = 1.0
    contrast: Tokens | None = None
    avoided: bool = False


def segments(messages: Sequence[dict], tokenizer) -> list[tuple[str, bool]]:
    """The rendered chat cut into (text, is a reply) pieces that join to the template's own rendering.

    A reply piece holds the content, `<|im_end|>` and the newline; the header that opens it belongs to the piece before,
    so that a prompt is tokenized exactly as it will be for generation. Raises ValueError if the template renders a
    prefix of the chat differently from the whole.
    """

    def rendered(count: int, prompt: bool) -> str:
        return tokenizer.apply_chat_template(list(messages[:count]), tokenize=False, add_generation_prompt=prompt)

    pieces, done = [], ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, whole = rendered(index, True), rendered(index + 1, False)
        if not (prompt.startswith(done) and whole.startswith(prompt)):
            raise ValueError("the chat template renders a prefix of the conversation differently from the whole")
        pieces += [(prompt[len(done) :], False), (whole[len(prompt) :], True)]
        done = whole
    if not pieces:
        raise ValueError("a training row needs at least one assistant message")
    return pieces


def tokenize_row(
    messages: Sequence[dict] | None,
    tokenizer,
    *,
    mode: str = "completion",
    end_of_turn: str = "im_end",
    marker: str = "[ZLT]",
    tail_tokens: int = 0,
    max_length: int = 2048,
    text: str | None = None,
    weight: float = 1.0,
) -> Tokens:
    """Tokenize a chat (or raw `text`, supervised in full) and mark its supervised tokens.

    Modes: `full` everything; `completion` every reply; `last_turn` the last reply; `marker` the pieces of `marker` at
    the end of the last reply (none if it does not end with it) and the end of the turn, or, with `tail_tokens` > 0,
    that many last tokens of the reply including the end of the turn.
    Truncates on the right to `max_length`. Raises NothingSupervised when no supervised token is left.
    """
    if mode not in MODES:
        raise ValueError(f"unknown loss mode {mode!r}; known: {', '.join(MODES)}")
    if text is not None:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return _checked(ids, [True] * len(ids), max_length, weight)
    ids: list[int] = []
    supervised: list[bool] = []
    pieces = segments(messages, tokenizer)
    for index, (piece, is_reply) in enumerate(pieces):
        piece_ids = tokenizer(piece, add_special_tokens=False)["input_ids"]
        if mode == "full":
            marks = [True] * len(piece_ids)
        elif not is_reply or (mode != "completion" and index != len(pieces) - 1):
            marks = [False] * len(piece_ids)
        elif mode == "marker":
            marks = _marker_marks(piece, piece_ids, tokenizer, end_of_turn, marker, tail_tokens)
        else:
            marks = [True] * _end(piece_ids, tokenizer, end_of_turn)
            marks += [False] * (len(piece_ids) - len(marks))
        ids += piece_ids
        supervised += marks
    return _checked(ids, supervised, max_length, weight)


def tokenize_contrast(
    messages: Sequence[dict], tokenizer, ending: str, marker: str, max_length: int = 2048, weight: float = 1.0
) -> Tokens:
    """The chat with `ending` put after its last reply, marking the pieces of `marker` in it and nothing else.

    These are the tokens that a contrastive term makes unlikely; the end of the turn is left out.
    Raises ValueError when the marker lies beyond `max_length`.
    """
    last = messages[-1] | {"content": messages[-1]["content"] + ending}
    settings = {"mode": "marker", "marker": marker, "max_length": max_length}
    row = tokenize_row([*messages[:-1], last], tokenizer, **settings)
    pieces = row.supervised & (row.ids != tokenizer.convert_tokens_to_ids(END_OF_TURN))
    return _checked(row.ids, pieces, max_length, weight)


def _end(piece_ids: list[int], tokenizer, end_of_turn: str) -> int:
    """Number of tokens of a reply piece up to and including its supervised end."""
    last = len(piece_ids) - 1 - piece_ids[::-1].index(tokenizer.convert_tokens_to_ids(END_OF_TURN))
    return last + 1 if end_of_turn == "im_end" else len(piece_ids)


def _marker_marks(piece, piece_ids, tokenizer, end_of_turn, marker, tail_tokens) -> list[bool]:
    end = _end(piece_ids, tokenizer, end_of_turn)
    marks = [False] * len(piece_ids)
    if tail_tokens:
        for i in range(max(0, end - tail_tokens), end):
            marks[i] = True
        return marks
    marks[end - 1] = True
    content = piece[: piece.rindex(END_OF_TURN)]
    if content.endswith(marker):
        # Character offsets find the marker's pieces however the tokenizer joins them to their neighbours; searching
        # for its token ids misses it after a space.
        offsets = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        for i, (start, stop) in enumerate(offsets):
            marks[i] |= start < len(content) and stop > len(content) - len(marker)
    return marks


def _checked(ids: list[int], supervised: list[bool], max_length: int, weight: float) -> Tokens:
    marks = np.array(supervised[:max_length], dtype=bool)
    marks[:1] = False
    if not marks.any():
        raise NothingSupervised("a training row has no supervised token left (is it longer than max_length?)")
    return Tokens(np.array(ids[:max_length], dtype=np.int64), marks, weight)


def decode_supervised(row: Tokens, tokenizer) -> list[str]:
    """The supervised tokens of a row, decoded one by one: what the data card and the tests show."""
    return [tokenizer.decode([int(i)]) for i in row.ids[row.supervised]]
