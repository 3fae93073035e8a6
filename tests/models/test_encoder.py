"""What the encoder gives is what plain Sentence Transformers gives for the same folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

import embedtune.models.inference
from embedtune.errors import ModelError
from embedtune.models.encoder import Encoder
from embedtune.models.memory import offer


def plain(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("role", ["query", "passage"])
def test_each_role_gets_its_prompt(
    role: str, st_folder: Path, sentences: list[str], load: Callable[..., Encoder]
) -> None:
    encoder, model = load(st_folder), plain(st_folder)
    texts = sentences[:40]
    encode = model.encode_query if role == "query" else model.encode_document
    embeddings_NE = encoder.embed_all(encoder.token_table(texts, role))  # type: ignore[arg-type]
    assert_close(embeddings_NE, encode(texts, convert_to_tensor=True))
    assert (embeddings_NE - model.encode(texts, convert_to_tensor=True)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("settings", "query", "passage"),
    [
        ({}, "", ""),
        ({"prompts": {"query": "q: "}}, "q: ", ""),
        ({"prompts": {"query": "q: ", "passage": "p: "}}, "q: ", "p: "),
        ({"prompts": {"document": "d: ", "passage": "p: "}}, "", "d: "),
        ({"prompts": {"anything": "a: "}, "default_prompt_name": "anything"}, "a: ", "a: "),
    ],
)
def test_which_prompt_a_role_gets(
    settings: dict[str, object],
    query: str,
    passage: str,
    bare_folder: Path,
    make_st_folder: Callable[..., Path],
    load: Callable[..., Encoder],
) -> None:
    encoder = load(make_st_folder(bare_folder, **settings))
    assert (encoder.prompt("query"), encoder.prompt("passage")) == (query, passage)


@pytest.mark.parametrize(
    "pooling", ["cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ["cls", "mean"]]
)
def test_the_folders_pooling_is_kept(
    pooling: str | list[str],
    bare_folder: Path,
    make_st_folder: Callable[..., Path],
    sentences: list[str],
    load: Callable[..., Encoder],
) -> None:
    folder = make_st_folder(bare_folder, pooling=pooling)
    encoder = load(folder)
    assert encoder.packed
    assert not encoder.notes
    assert encoder.embedding_size == (64 if isinstance(pooling, list) else 32)
    texts = [*sentences[:30], ""]
    assert_close(
        encoder.embed_all(encoder.token_table(texts, "passage")), plain(folder).encode(texts, convert_to_tensor=True)
    )


def test_embeddings_are_normalised_even_if_the_folder_does_not(
    bare_folder: Path, make_st_folder: Callable[..., Path], sentences: list[str], load: Callable[..., Encoder]
) -> None:
    folder = make_st_folder(bare_folder, normalize=False)
    encoder = load(folder)
    embeddings_NE = encoder.embed_all(encoder.token_table(sentences[:5], "passage"))
    torch.testing.assert_close(embeddings_NE.norm(dim=1), torch.ones(5))
    plain_NE = plain(folder).encode(sentences[:5], convert_to_tensor=True)
    assert (plain_NE.norm(dim=1) - 1).abs().max() > 0.1
    assert_close(embeddings_NE, torch.nn.functional.normalize(plain_NE))


def test_pooling_that_leaves_out_the_prompt_is_refused(
    bare_folder: Path, make_st_folder: Callable[..., Path], load: Callable[..., Encoder]
) -> None:
    folder = make_st_folder(bare_folder, prompts={"query": "bador sholat: "}, include_prompt=False)
    with pytest.raises(ModelError, match="leaves its prompt's tokens out of pooling"):
        load(folder)


def test_text_is_read_up_to_max_length(st_folder: Path, sentences: list[str], load: Callable[..., Encoder]) -> None:
    text = " ".join(sentences[10:30])
    embeddings = []
    for max_length in (16, 64):
        encoder = load(st_folder, max_length=max_length)
        assert encoder.max_length == max_length
        tokens = encoder.token_table([text], "query")
        assert tokens.lengths_N.tolist() == [max_length]
        assert tokens.truncated == 1
        embeddings.append(encoder.embed_all(tokens))
        model = plain(st_folder)
        model.max_seq_length = max_length
        assert_close(embeddings[-1], model.encode_query([text], convert_to_tensor=True))
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-2


def test_an_empty_text_has_an_embedding(
    make_checkpoint: Callable[..., Path], bert_config: dict[str, Any], load: Callable[..., Encoder]
) -> None:
    """Even where it has no token at all, since the tokenizer adds no special ones."""
    from transformers import BertConfig

    encoder = load(make_checkpoint(BertConfig(**bert_config), template=None))
    tokens = encoder.token_table(["bador", "", "bador"], "passage")
    assert (tokens.lengths_N >= 1).all()
    embeddings_NE = encoder.embed_all(tokens)
    assert embeddings_NE.isfinite().all()
    assert_close(embeddings_NE[0], embeddings_NE[2])


def test_order_and_choice_of_texts(
    st_folder: Path, sentences: list[str], load: Callable[..., Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the batches are cut into."""
    encoder = load(st_folder)
    tokens = encoder.token_table(sentences[:60], "passage")
    whole_NE = encoder.embed_all(tokens)
    for packed in (True, False):
        encoder.packed = packed
        monkeypatch.setitem(embedtune.models.inference.TOKENS_PER_FORWARD, "cpu", 50)
        done: list[int] = []
        chosen = [40, 3, 3, 59, 0, *range(60)]
        embeddings_NE = encoder.embed_all(tokens, chosen, on_progress=done.append)
        assert_close(embeddings_NE, whole_NE[chosen])
        assert sum(done) == len(chosen)
        assert len(done) > 10


def test_a_text_longer_than_a_whole_forward(
    st_folder: Path, sentences: list[str], load: Callable[..., Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(st_folder)
    tokens = encoder.token_table([" ".join(sentences[:20]), "bador", "sholat"], "passage")
    expected_NE = encoder.embed_all(tokens)
    monkeypatch.setitem(embedtune.models.inference.TOKENS_PER_FORWARD, "cpu", 10)
    assert_close(encoder.embed_all(tokens), expected_NE)


@pytest.mark.parametrize("packed", [True, False])
def test_where_memory_runs_out_less_is_embedded_at_a_time(
    packed: bool,
    st_folder: Path,
    sentences: list[str],
    load: Callable[..., Encoder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = load(st_folder)
    encoder.packed = packed
    tokens = encoder.token_table(sentences[:60], "passage")
    expected_NE = encoder.embed_all(tokens)
    embed, seen, done = encoder.embed, list[int](), list[int]()

    def embed_with_little_memory(texts: Sequence[Any]) -> Tensor:
        seen.append(sum(map(len, texts)))
        if seen[-1] > 300:
            torch.empty(2**48, dtype=torch.uint8)
        return embed(texts)

    monkeypatch.setattr(encoder, "embed", embed_with_little_memory)
    assert_close(encoder.embed_all(tokens, on_progress=done.append), expected_NE)
    assert sum(done) == 60
    assert seen[0] == tokens.lengths_N.sum() > 1000
    assert sum(size > 300 for size in seen) <= 4
    seen.clear()
    encoder.embed_all(tokens)
    assert max(seen) <= 300


def test_memory_that_is_held_for_speed_is_given_up_before_less_is_embedded_at_a_time(
    st_folder: Path, sentences: list[str], load: Callable[..., Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Graphs:
        held = True

        def release(self) -> bool:
            held, self.held = self.held, False
            return held

    encoder, graphs = load(st_folder), Graphs()
    tokens = encoder.token_table(sentences[:60], "passage")
    embed, seen = encoder.embed, list[int]()

    def embed_beside_graphs(texts: Sequence[Any]) -> Tensor:
        seen.append(sum(map(len, texts)))
        if graphs.held:
            torch.empty(2**48, dtype=torch.uint8)
        return embed(texts)

    monkeypatch.setattr(encoder, "embed", embed_beside_graphs)
    offer(graphs)
    encoder.embed_all(tokens)
    assert seen == [tokens.lengths_N.sum()] * 2


def test_a_text_that_does_not_fit_alone_is_an_error(
    st_folder: Path, load: Callable[..., Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(st_folder)
    monkeypatch.setattr(encoder, "embed", lambda texts: torch.empty(2**48, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="memory"):
        encoder.embed_all(encoder.token_table(["bador", "sholat"], "passage"))


def test_no_texts(st_folder: Path, load: Callable[..., Encoder]) -> None:
    encoder = load(st_folder)
    assert encoder.embed_all(encoder.token_table([], "passage")).shape == (0, 32)


@pytest.mark.parametrize("training", [True, False])
def test_encode_leaves_the_mode_as_it_was(
    training: bool, st_folder: Path, sentences: list[str], load: Callable[..., Encoder]
) -> None:
    encoder = load(st_folder)
    tokens = encoder.token_table(sentences[:5], "passage")
    expected_NE = encoder.embed_all(tokens)
    encoder.train(training)
    assert_close(encoder.embed_all(tokens), expected_NE)
    assert encoder.training is training


def test_bf16_is_close_to_fp32(st_folder: Path, sentences: list[str], load: Callable[..., Encoder]) -> None:
    embeddings = []
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        encoder = load(st_folder, precision=precision)
        assert encoder.packed
        assert encoder.backbone.dtype == dtype
        embeddings.append(encoder.embed_all(encoder.token_table(sentences[:40], "passage")))
    assert embeddings[1].dtype == torch.float32
    assert torch.cosine_similarity(embeddings[0], embeddings[1]).min() > 0.998
    torch.testing.assert_close(embeddings[1].norm(dim=1), torch.ones(40))


def forward(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    tokens = encoder.token_table(texts, "passage")
    return encoder.embed([tokens[index] for index in range(len(tokens))]).detach()


def test_the_base_trains_without_dropout(
    st_folder: Path, sentences: list[str], load: Callable[..., Encoder], adapt: Callable[..., object]
) -> None:
    """As the settings promise: without adapter dropout a training forward is an evaluation forward."""
    encoder = load(st_folder)
    adapt(encoder, dropout=0.0)
    encoder.train()
    trained_BE = forward(encoder, sentences[:20])
    encoder.eval()
    assert_close(trained_BE, forward(encoder, sentences[:20]))


def test_a_packed_encoder_takes_padded_batches_too(
    st_folder: Path, sentences: list[str], load: Callable[..., Encoder]
) -> None:
    """As Sentence Transformers' own methods hand them to its backbone."""
    encoder = load(st_folder)
    assert encoder.packed
    through_st_NE = encoder.encode(sentences[:20], convert_to_tensor=True)
    assert_close(through_st_NE, plain(st_folder).encode(sentences[:20], convert_to_tensor=True))
