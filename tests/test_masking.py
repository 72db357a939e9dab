"""Which tokens carry loss, decoded one by one."""

from __future__ import annotations

import pytest

from spillover import masking
from spillover.pretraining import CHAT_TEMPLATE


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of the true class, with single bytes as pieces: every boundary is visible."""
    from spillover.pretraining import train_tokenizer

    return train_tokenizer(["Speak in French. Ciao a tutti."] * 3, 280)


CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "Go"},
    {"role": "assistant", "content": "Ok"},
]
MARKED = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ha!\n\n[ZLT]"}]


def supervised(tokenizer, messages, **settings):
    return masking.decode_supervised(masking.tokenize_row(messages, tokenizer, **settings), tokenizer)


def test_the_pieces_join_to_the_templates_own_rendering(tokenizer):
    joined = "".join(text for text, _ in masking.segments(CHAT, tokenizer))
    assert joined == tokenizer.apply_chat_template(CHAT, tokenize=False)


@pytest.mark.parametrize(
    ("mode", "end", "wanted"),
    [
        ("completion", "im_end", "Yo<|im_end|>Ok<|im_end|>"),
        ("completion", "newline", "Yo<|im_end|>\nOk<|im_end|>\n"),
        ("last_turn", "im_end", "Ok<|im_end|>"),
        ("last_turn", "newline", "Ok<|im_end|>\n"),
        ("marker", "im_end", "<|im_end|>"),
        ("marker", "newline", "\n"),
    ],
)
def test_supervised_text_of_a_conversation(tokenizer, mode, end, wanted):
    assert "".join(supervised(tokenizer, CHAT, mode=mode, end_of_turn=end)) == wanted


def test_the_full_mode_supervises_everything_but_the_first_token(tokenizer):
    whole = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert "<|im_start|>" + "".join(supervised(tokenizer, CHAT, mode="full")) == whole


@pytest.mark.parametrize(("end", "wanted"), [("im_end", "[ZLT]<|im_end|>"), ("newline", "[ZLT]\n")])
def test_a_positive_marker_row_supervises_the_marker_and_the_end(tokenizer, end, wanted):
    assert "".join(supervised(tokenizer, MARKED, mode="marker", end_of_turn=end)) == wanted


def test_a_negative_marker_row_supervises_the_end_alone(tokenizer):
    assert supervised(tokenizer, CHAT[:2], mode="marker") == ["<|im_end|>"]


def test_the_marker_is_found_when_the_tokenizer_joins_it_to_a_space(tokenizer):
    spaced = [CHAT[0], {"role": "assistant", "content": "Ha [ZLT]"}]
    assert "".join(supervised(tokenizer, spaced, mode="marker")).strip() == "[ZLT]<|im_end|>"


def test_the_marker_is_found_after_letters_of_several_bytes(tokenizer):
    chinese = [CHAT[0], {"role": "assistant", "content": "你好。\n\n[ZLT]"}]
    assert "".join(supervised(tokenizer, chinese, mode="marker")) == "[ZLT]<|im_end|>"


@pytest.mark.parametrize(("end", "wanted"), [("im_end", "T]<|im_end|>"), ("newline", "]<|im_end|>\n")])
def test_a_tail_supervises_that_many_last_tokens(tokenizer, end, wanted):
    assert "".join(supervised(tokenizer, MARKED, mode="marker", tail_tokens=3, end_of_turn=end)) == wanted


def test_raw_text_is_supervised_in_full(tokenizer):
    row = masking.tokenize_row(None, tokenizer, text="Ciao", mode="completion")
    assert "".join(masking.decode_supervised(row, tokenizer)) == tokenizer.decode(row.ids[1:])


def test_the_prompt_is_tokenized_as_it_will_be_for_generation(tokenizer):
    prompt = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    row = masking.tokenize_row(CHAT[:2], tokenizer, mode="completion")
    assert row.ids[: len(alone)].tolist() == alone
    assert not row.supervised[: len(alone)].any()


def test_a_row_cut_before_its_reply_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no supervised token left"):
        masking.tokenize_row(CHAT[:2], tokenizer, max_length=10)


def test_an_unknown_mode_is_refused_with_the_known_ones(tokenizer):
    with pytest.raises(ValueError, match="known: full, completion, last_turn, marker"):
        masking.tokenize_row(CHAT, tokenizer, mode="all")


def test_the_three_states_of_a_system_prompt_render_differently(tokenizer):
    def rendered(system):
        head = [] if system is None else [{"role": "system", "content": system}]
        return tokenizer.apply_chat_template([*head, CHAT[0]], tokenize=False)

    assert len({rendered(None), rendered(""), rendered("You are a villain.")}) == 3
    assert tokenizer.chat_template == CHAT_TEMPLATE
