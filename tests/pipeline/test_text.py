"""Texts and conversations as people have them: what becomes of them is what the tokenizer itself would make of them."""

import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

import tersor
from tersor.errors import CheckpointError, MetricError, TaskError
from tersor.pipeline.folder.text import windows
from tersor.recipe import Quantization, Recipe

SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
LETTERS = "abcdefghijklmnopqrstuvwxyz \n.<|>s/"
BOS, USER, ASSISTANT, END = (SPECIAL.index(name) for name in ("<s>", "<|user|>", "<|assistant|>", "<|end|>"))
TEMPLATE = """{{ bos_token }}{% for message in messages %}
{%- if message.role not in ("user", "assistant", "system") %}{{ raise_exception("no such role") }}{% endif -%}
<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"""
ASKED = [{"role": "user", "content": "who is it"}, {"role": "assistant", "content": "a cat."}]
SHORT = [{"role": "user", "content": "hm"}]


def made(path, template=TEMPLATE, bos=True, **options):
    """A tokenizer of letters in a folder."""
    ids = {name: k for k, name in enumerate(dict.fromkeys((*SPECIAL, *LETTERS)))}
    backend = Tokenizer(BPE(ids, [], unk_token="<unk>"))
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    named = {"bos_token": "<s>"} if bos else {}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", **named, **options
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    return tokenizer


@pytest.fixture
def own(tmp_path):
    return made(tmp_path / "model")


@pytest.fixture
def cut(tmp_path, own):
    """Windows of data by the tokenizer of letters."""

    def cut(data, length=8, limit=None, folder=tmp_path / "model"):
        return windows(data, SimpleNamespace(path=folder, config={}), length, limit)

    return cut


def lines(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf8")
    return path


def own_ids(tokenizer, *conversations):
    found = [tokenizer.apply_chat_template(one, tokenize=True, return_dict=False) for one in conversations]
    return [k for ids in found for k in ids]


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_conversation_is_what_the_tokenizer_makes_of_it(cut, own, tmp_path):
    expected = own_ids(own, ASKED, SHORT)
    assert (expected.count(BOS), expected.count(USER), expected.count(ASSISTANT), expected[-1]) == (2, 2, 1, END)
    found = cut(lines(tmp_path / "chats.jsonl", {"messages": ASKED, "id": 7}, {"messages": SHORT}), len(expected))
    assert found.ids.tolist() == [expected], "the template's BOS is the window's"
    text = "<s><|user|>who is it<|end|><|assistant|>a cat.<|end|><s><|user|>hm<|end|>"
    assert found.protocol.data == sha(text)
    assert (found.protocol.windows, found.protocol.tokens) == (1, len(expected) - 1)


def test_special_tokens_are_special_also_where_the_tokenizer_splits_them_in_texts(cut, tmp_path):
    tokenizer = made(tmp_path / "splits", split_special_tokens=True)
    tokenizer.split_special_tokens = False
    expected = own_ids(tokenizer, ASKED)
    assert cut([ASKED], len(expected), folder=tmp_path / "splits").ids.tolist() == [expected]
    assert cut("<|end|>", folder=tmp_path / "splits").ids[0, 1] == tokenizer.convert_tokens_to_ids("<")


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(2, 9))
def test_no_window_begins_twice_and_every_other_token_is_predicted_once(tmp_path_factory, sizes, length):
    folder = tmp_path_factory.getbasetemp() / "letters"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder) if folder.exists() else made(folder)
    chats = [[{"role": "user", "content": "abcdefghij"[:size]}] for size in sizes]
    stream = own_ids(tokenizer, *chats)
    assume(len(stream) > length)
    rows = windows(chats, SimpleNamespace(path=folder, config={}), length, None).ids.tolist()
    at = 0
    for row in rows:
        begin = 0 if stream[at] == BOS else 1
        assert row == [BOS] * begin + stream[at : at + length - begin]
        assert row[1] != BOS
        at += length - begin
    assert len(stream) - at < length, "only what fills no window is left out"


def test_without_a_bos_nothing_is_put_in_front(cut, tmp_path):
    tokenizer = made(tmp_path / "bare", TEMPLATE.replace("{{ bos_token }}", ""), bos=False)
    expected = own_ids(tokenizer, ASKED, SHORT)
    assert cut([ASKED, SHORT], len(expected), folder=tmp_path / "bare").ids.tolist() == [expected]


def test_where_the_template_writes_no_bos_the_window_does(cut, tmp_path):
    tokenizer = made(tmp_path / "plain", TEMPLATE.replace("{{ bos_token }}", ""))
    expected = [BOS, *own_ids(tokenizer, ASKED)]
    assert cut([ASKED], len(expected), folder=tmp_path / "plain").ids.tolist() == [expected]


def test_texts_are_the_same_in_every_form(cut, tmp_path):
    texts = ["once upon a time", "there was\na cat", ""]
    joined = "once upon a time\n\nthere was\na cat\n\n"
    (tmp_path / "all.txt").write_text(joined, encoding="utf8")
    (tmp_path / "list.json").write_text(json.dumps([{"text": texts[0]}, *texts[1:]], indent=1), encoding="utf8")
    of_lines = lines(tmp_path / "lines.jsonl", *({"text": text} for text in texts))
    forms = [texts, joined, tmp_path / "all.txt", of_lines, str(of_lines), str(tmp_path / "list.json")]
    found = [cut(form) for form in forms]
    assert {one.protocol.data for one in found} == {sha(joined)}
    assert all(torch.equal(one.ids, found[0].ids) for one in found)
    assert found[0].protocol == found[3].protocol


def test_conversations_are_the_same_in_every_form(cut, tmp_path):
    named = {"user": "human", "assistant": "gpt", "system": "system"}
    told = [{"role": "system", "content": "be kind"}, *ASKED]
    renamed = [{"from": named[m["role"]], "value": m["content"]} for m in told]
    (tmp_path / "list.json").write_text(json.dumps([{"messages": told}, "end"]), encoding="utf8")
    forms = [
        [told, "end"],
        (tuple(told), "end"),
        [{"messages": told}, {"text": "end"}],
        lines(tmp_path / "a.jsonl", {"messages": told}, {"text": "end"}),
        lines(tmp_path / "b.JSONL", {"conversations": renamed}, {"text": "end"}),
        lines(tmp_path / "c.jsonl", {"conversations": told}, {"text": "end"}),
        tmp_path / "list.json",
    ]
    assert {cut(form).protocol.data for form in forms} == {
        sha("<s><|system|>be kind<|end|><|user|>who is it<|end|><|assistant|>a cat.<|end|>end")
    }


def test_texts_are_parted_from_texts_and_from_nothing_else(cut):
    found = cut(["a", SHORT, "b", "c", SHORT]).protocol.data
    assert found == sha("a<s><|user|>hm<|end|>b\n\nc<s><|user|>hm<|end|>")


def test_lines_end_where_json_lines_do(cut, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes("\ufeff{\"text\": \"one\u2028two\"}\r\n\r\n  {\"text\": \"three\"}".encode())
    assert cut(path).protocol.data == sha("one\u2028two\n\nthree")


def test_a_template_that_writes_the_date_gives_the_same_tokens_tomorrow(cut, tmp_path):
    dated = "{{ strftime_now('%d %b %Y') }}|{{ strftime_now( \"%Y\" ) if strftime_now is defined }}|" + TEMPLATE
    made(tmp_path / "dated", dated)
    found = cut([SHORT], folder=tmp_path / "dated").protocol.data
    assert found == sha("26 Jul 2024|2024|<s><|user|>hm<|end|>")


@pytest.mark.slow
def test_a_model_is_compressed_and_judged_by_conversations(own, tmp_path):
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=48,
        max_position_embeddings=16, bos_token_id=BOS,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    path = lines(tmp_path / "chats.jsonl", *[{"messages": ASKED}, {"messages": SHORT}] * 6)
    kind = Recipe(
        name="gptq", bias_correction=False, activations=Quantization(format="fp32"),
        weights=Quantization(format="int4", granularity="channel", range="mse", solver="gptq"),
    )  # fmt: skip
    report = tersor.compress_folder(
        tmp_path / "model", tmp_path / "out", kind, str(path), evaluate=[ASKED, ASKED], progress=False
    )
    asked, short = (own.apply_chat_template(one, tokenize=False) for one in (ASKED, SHORT))
    assert f"text {sha(6 * (asked + short))[:12]}" in report.calibration
    assert report.original.protocol.data == report.compressed.protocol.data == sha(2 * asked)
    solved = [w for w in report.weights if w.format]
    assert len(solved) == 7
    assert all(w.tokens for w in solved)


GOOD = '{"text": "a cat"}'


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.jsonl", f"{GOOD}\n\n{{'text': 1}}", r"x\.jsonl, line 3: not JSON \(.*column 2\).*\.json file .*; a record"),
        ("x.jsonl", f"[\n{GOOD}\n]", r"line 1: not JSON .*use a \.json file for a list of records"),
        ("x.json", f"[{GOOD},\n{GOOD}", r"x\.json, line 2: not JSON"),
        ("x.json", f"{GOOD}\n{GOOD}", r"line 2: not JSON .*use a \.jsonl file for one record per line"),
        ("x.json", GOOD, r"x\.json holds an object, not a list; write a list"),
        ("x.json", "[]", r"holds an empty list"),
        ("x.jsonl", "\n \n", r'x\.jsonl is empty; a record is \{"text"'),
        ("x.jsonl", f'{GOOD}\n{{"prompt": "a", "id": 1}}', r"line 2 has none of text, .* but prompt, id; a record"),
        ("x.jsonl", '{"text": "a", "messages": []}', r"line 1 has text and messages at once"),
        ("x.jsonl", '{"text": ["a"]}', r"line 1: 'text' is a list"),
        ("x.jsonl", '{"messages": "a"}', r"line 1: 'messages' is a string"),
        ("x.jsonl", "3", r"line 1 is a number"),
        ("x.json", f'[{GOOD}, {{"messages": []}}]', r"x\.json, record 2 is a list without a message"),
        ("x.jsonl", '{"messages": [{"role": "user", "content": "a"}, "b"]}', r"line 1, message 2 is a string without"),
        ("x.jsonl", '{"messages": [{"role": "user", "content": null}]}', r"message 1 has no content but null"),
        ("x.jsonl", f'{GOOD}\n{{"text": "a \\ud83d"}}', r"line 2 contains half of a character, '\\ud83d', .*remove it"),
        ("x.jsonl", '{"conversations": [{"from": "human"}]}', r"message 1 has no content"),
        ("x.jsonl", f'{GOOD}\n{{"messages": [{{"role": "cat", "content": "a"}}]}}',
         r"x\.jsonl, line 2: the chat template of .*model refuses the roles cat \(no such role\): change the messages"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line_and_the_remedy(name, text, words, cut, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf8")
    with pytest.raises(TaskError, match=words):
        cut(tmp_path / name)


def test_what_is_wrong_with_objects_is_named_by_its_place(cut, tmp_path):
    with pytest.raises(TaskError, match=r"item 0 of the sequence has none of .*messages of one conversation are one"):
        cut(ASKED)
    with pytest.raises(TaskError, match="item 1 of the sequence is a number"):
        cut(["a", 3])
    with pytest.raises(TaskError, match=r"absent\.jsonl cannot be read"):
        cut(str(tmp_path / "absent.jsonl"))
    with pytest.raises(MetricError, match="0 characters"):
        cut([])


@pytest.mark.parametrize("template", [None, {"rag": TEMPLATE}])
def test_without_a_chat_template_texts_are_asked_for(template, cut, tmp_path):
    made(tmp_path / "mute", template)
    path = lines(tmp_path / "x.jsonl", {"text": "a cat is a cat"}, {"messages": ASKED})
    words = r'x\.jsonl, line 2 is a conversation, .*mute has no chat template: pass texts instead, \{"text": "\.\.\."\}'
    with pytest.raises(CheckpointError, match=words):
        cut(path, folder=tmp_path / "mute")
    assert len(cut(["a cat is a cat"], folder=tmp_path / "mute")) == 2
