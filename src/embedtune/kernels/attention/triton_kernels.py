"""The Triton kernels of packed attention; `triton.py` beside this file launches them.

A program takes one head of one tile (`tiles.py`): rows of queries with a loop over their keys, or keys with a loop over
their rows. Scores and their sums are in fp32; exponentials are to base 2, and so are the saved logarithms. Hidden
positions are masked and everything past a tile's end is read as zero, so no program depends on a neighbour's values.

Pointers: query, out and their gradients (T, H, D); key, value (T, K, D); the gradients of keys and values by query
head, (T, H, D); `lse` (log of the sum of exponentials) and `delta` (sum of output times its gradient) (H, T). The last
axis of all but the bias is contiguous; `*_token`, `*_head`, `*_row`, `*_column` are strides.
"""

from __future__ import annotations

import triton
import triton.language as tl

UNSPECIALISED = ["tokens", "heads", "window", "sequences", "length"]
"""Numbers that differ from batch to batch or model to model: compiling anew for some of them would gain nothing."""


@triton.jit  # type: ignore[untyped-decorator]
def _load(  # type: ignore[no-untyped-def]
    ptr, first, stop, head, stride_token, stride_head, ROWS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr
):
    """Packed tokens from `first` on, (ROWS, WIDTH); zero from `stop` on and past the head size."""
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, WIDTH)[None, :]
    ptr += first.to(tl.int64) * stride_token + head.to(tl.int64) * stride_head
    return tl.load(ptr + rows * stride_token + columns, mask=(rows < stop - first) & (columns < SIZE), other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _store(  # type: ignore[no-untyped-def]
    ptr, x, first, stop, head, stride_token, ROWS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr
):
    """What `_load` reads, to a contiguous tensor."""
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, WIDTH)[None, :]
    ptr += first.to(tl.int64) * stride_token + head.to(tl.int64) * SIZE
    inside = (rows < stop - first) & (columns < SIZE)
    tl.store(ptr + rows * stride_token + columns, x.to(ptr.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _visible(rows, keys, keys_stop, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which keys a row sees; both are packed places in one sequence. What rows past the end see comes to nothing."""
    seen = keys < keys_stop
    if CAUSAL:
        seen = seen & (keys <= rows)
    if WINDOWED:
        seen = seen & (keys - rows < window) & (rows - keys < window)
    return seen


@triton.jit
def _bias(ptr, head, rows, keys, sequence, inside, bias_head, bias_row, bias_column):  # type: ignore[no-untyped-def]
    """The bias of these rows and keys, to be added to scores to base 2."""
    ptr += head.to(tl.int64) * bias_head
    at = (rows - sequence) * bias_row + (keys - sequence) * bias_column
    return tl.load(ptr + at, mask=inside, other=0.0).to(tl.float32) * 1.4426950408889634


@triton.jit  # type: ignore[untyped-decorator]
def _range(first, stop, low, high, window, ROWS_SEEN: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The part of the sequence (low, high) that rows first to stop see; with `ROWS_SEEN`, that sees such keys."""
    if WINDOWED:
        low = tl.maximum(low, first - window + 1)
        high = tl.minimum(high, stop + window - 1)
    if CAUSAL:
        if ROWS_SEEN:
            low = tl.maximum(low, first)
        else:
            high = tl.minimum(high, stop)
    return low, high


@triton.jit(do_not_specialize=UNSPECIALISED)  # type: ignore[untyped-decorator]
def forward_kernel(  # type: ignore[no-untyped-def]
    query_ptr, key_ptr, value_ptr, bias_ptr, out_ptr, lse_ptr, tiles_ptr,
    query_token, query_head, key_token, key_head, value_token, value_head, out_token,
    bias_head, bias_row, bias_column,
    tokens, heads, scale, window,
    SHARING: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BIASED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows with a loop over keys: softmax with a running maximum (Milakov & Gimelshein 2018; Dao 2023, algorithm 1)."""
    tile, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    first, stop = tl.load(tiles_ptr + 4 * tile), tl.load(tiles_ptr + 4 * tile + 1)
    sequence, sequence_stop = tl.load(tiles_ptr + 4 * tile + 2), tl.load(tiles_ptr + 4 * tile + 3)
    shared_head = head // SHARING
    rows = first + tl.arange(0, ROWS)
    query = _load(query_ptr, first, stop, head, query_token, query_head, ROWS, SIZE, WIDTH)
    out = tl.zeros([ROWS, WIDTH], tl.float32)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    low, high = _range(first, stop, sequence, sequence_stop, window, False, CAUSAL, WINDOWED)
    for offset in range(0, high - low, STEP):
        at = low + offset
        keys = at + tl.arange(0, STEP)
        key = _load(key_ptr, at, high, shared_head, key_token, key_head, STEP, SIZE, WIDTH)
        value = _load(value_ptr, at, high, shared_head, value_token, value_head, STEP, SIZE, WIDTH)
        seen = _visible(rows[:, None], keys[None, :], high, window, CAUSAL, WINDOWED)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * (scale * 1.4426950408889634)
        if BIASED:
            inside = seen & (rows[:, None] < stop)
            scores += _bias(
                bias_ptr, head, rows[:, None], keys[None, :], sequence, inside, bias_head, bias_row, bias_column
            )
        scores = tl.where(seen, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        # A row that has seen nothing yet has no peak to take off.
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        exponentials = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(exponentials, 1)
        out = tl.dot(exponentials.to(value.dtype), value, out * shrink[:, None], input_precision=PRECISION)
        peak = new_peak
    total = tl.where(total == 0.0, 1.0, total)
    _store(out_ptr, out / total[:, None], first, stop, head, out_token, ROWS, SIZE, WIDTH)
    lse_ptr += head.to(tl.int64) * tokens
    tl.store(lse_ptr + rows, peak + tl.log2(total), mask=rows < stop)


@triton.jit  # type: ignore[untyped-decorator]
def _gradient(  # type: ignore[no-untyped-def]
    query, key, value, grad, lse, delta, bias_ptr, head, rows, keys, rows_stop, keys_stop, sequence,
    bias_head, bias_row, bias_column, scale, window,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BIASED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Probabilities and the gradient of the scores, keys down and rows across (Dao 2023, algorithm 2)."""
    seen = _visible(rows[None, :], keys[:, None], keys_stop, window, CAUSAL, WINDOWED)
    scores = tl.dot(key, tl.trans(query), input_precision=PRECISION) * (scale * 1.4426950408889634)
    if BIASED:
        inside = seen & (rows[None, :] < rows_stop)
        scores += _bias(
            bias_ptr, head, rows[None, :], keys[:, None], sequence, inside, bias_head, bias_row, bias_column
        )
    probabilities = tl.exp2(tl.where(seen, scores - lse[None, :], float("-inf")))
    grad_probabilities = tl.dot(value, tl.trans(grad), input_precision=PRECISION)
    return probabilities, probabilities * (grad_probabilities - delta[None, :])


@triton.jit(do_not_specialize=UNSPECIALISED)  # type: ignore[untyped-decorator]
def rows_backward_kernel(  # type: ignore[no-untyped-def]
    query_ptr, key_ptr, value_ptr, bias_ptr, out_ptr, lse_ptr, grad_ptr, delta_ptr,
    grad_query_ptr, grad_key_ptr, grad_value_ptr, tiles_ptr,
    query_token, query_head, key_token, key_head, value_token, value_head, out_token, grad_token, grad_head,
    bias_head, bias_row, bias_column,
    tokens, heads, scale, window,
    WHOLE: tl.constexpr,
    SHARING: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BIASED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows with a loop over keys: the gradient of queries, and where the tile is all of a sequence, the others too."""
    tile, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    first, stop = tl.load(tiles_ptr + 4 * tile), tl.load(tiles_ptr + 4 * tile + 1)
    sequence, sequence_stop = tl.load(tiles_ptr + 4 * tile + 2), tl.load(tiles_ptr + 4 * tile + 3)
    shared_head = head // SHARING
    rows = first + tl.arange(0, ROWS)
    query = _load(query_ptr, first, stop, head, query_token, query_head, ROWS, SIZE, WIDTH)
    grad = _load(grad_ptr, first, stop, head, grad_token, grad_head, ROWS, SIZE, WIDTH)
    out = _load(out_ptr, first, stop, head, out_token, SIZE, ROWS, SIZE, WIDTH)
    by_row = head.to(tl.int64) * tokens + rows
    lse = tl.load(lse_ptr + by_row, mask=rows < stop, other=0.0)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    tl.store(delta_ptr + by_row, delta, mask=rows < stop)
    grad_query = tl.zeros([ROWS, WIDTH], tl.float32)
    low, high = _range(first, stop, sequence, sequence_stop, window, False, CAUSAL, WINDOWED)
    for offset in range(0, high - low, STEP):
        at = low + offset
        keys = at + tl.arange(0, STEP)
        key = _load(key_ptr, at, high, shared_head, key_token, key_head, STEP, SIZE, WIDTH)
        value = _load(value_ptr, at, high, shared_head, value_token, value_head, STEP, SIZE, WIDTH)
        probabilities, grad_scores = _gradient(
            query, key, value, grad, lse, delta, bias_ptr, head, rows, keys, stop, high, sequence,
            bias_head, bias_row, bias_column, scale, window, CAUSAL, WINDOWED, BIASED, PRECISION,
        )  # fmt: skip
        grad_scores = grad_scores.to(key.dtype)
        grad_query = tl.dot(tl.trans(grad_scores), key, grad_query, input_precision=PRECISION)
        if WHOLE:
            grad_value = tl.dot(probabilities.to(grad.dtype), grad, input_precision=PRECISION)
            _store(grad_value_ptr, grad_value, at, high, head, out_token, STEP, SIZE, WIDTH)
            grad_key = tl.dot(grad_scores, query, input_precision=PRECISION) * scale
            _store(grad_key_ptr, grad_key, at, high, head, out_token, STEP, SIZE, WIDTH)
    _store(grad_query_ptr, grad_query * scale, first, stop, head, out_token, ROWS, SIZE, WIDTH)


@triton.jit(do_not_specialize=UNSPECIALISED)  # type: ignore[untyped-decorator]
def keys_backward_kernel(  # type: ignore[no-untyped-def]
    query_ptr, key_ptr, value_ptr, bias_ptr, lse_ptr, grad_ptr, delta_ptr,
    grad_key_ptr, grad_value_ptr, tiles_ptr,
    query_token, query_head, key_token, key_head, value_token, value_head, out_token, grad_token, grad_head,
    bias_head, bias_row, bias_column,
    tokens, heads, scale, window,
    SHARING: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, STEP: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BIASED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Keys with a loop over rows: the gradients of keys and values; `delta` is there already."""
    tile, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    first, stop = tl.load(tiles_ptr + 4 * tile), tl.load(tiles_ptr + 4 * tile + 1)
    sequence, sequence_stop = tl.load(tiles_ptr + 4 * tile + 2), tl.load(tiles_ptr + 4 * tile + 3)
    shared_head = head // SHARING
    keys = first + tl.arange(0, KEYS)
    key = _load(key_ptr, first, stop, shared_head, key_token, key_head, KEYS, SIZE, WIDTH)
    value = _load(value_ptr, first, stop, shared_head, value_token, value_head, KEYS, SIZE, WIDTH)
    grad_key = tl.zeros([KEYS, WIDTH], tl.float32)
    grad_value = tl.zeros([KEYS, WIDTH], tl.float32)
    lse_ptr += head.to(tl.int64) * tokens
    delta_ptr += head.to(tl.int64) * tokens
    low, high = _range(first, stop, sequence, sequence_stop, window, True, CAUSAL, WINDOWED)
    for offset in range(0, high - low, STEP):
        at = low + offset
        rows = at + tl.arange(0, STEP)
        query = _load(query_ptr, at, high, head, query_token, query_head, STEP, SIZE, WIDTH)
        grad = _load(grad_ptr, at, high, head, grad_token, grad_head, STEP, SIZE, WIDTH)
        lse = tl.load(lse_ptr + rows, mask=rows < high, other=0.0)
        delta = tl.load(delta_ptr + rows, mask=rows < high, other=0.0)
        probabilities, grad_scores = _gradient(
            query, key, value, grad, lse, delta, bias_ptr, head, rows, keys, high, stop, sequence,
            bias_head, bias_row, bias_column, scale, window, CAUSAL, WINDOWED, BIASED, PRECISION,
        )  # fmt: skip
        grad_value = tl.dot(probabilities.to(grad.dtype), grad, grad_value, input_precision=PRECISION)
        grad_key = tl.dot(grad_scores.to(query.dtype), query, grad_key, input_precision=PRECISION)
    _store(grad_key_ptr, grad_key * scale, first, stop, head, out_token, KEYS, SIZE, WIDTH)
    _store(grad_value_ptr, grad_value, first, stop, head, out_token, KEYS, SIZE, WIDTH)


@triton.jit(do_not_specialize=UNSPECIALISED)  # type: ignore[untyped-decorator]
def bias_backward_kernel(  # type: ignore[no-untyped-def]
    query_ptr, key_ptr, value_ptr, bias_ptr, lse_ptr, grad_ptr, delta_ptr, grad_bias_ptr, cu_seqlens_ptr,
    query_token, query_head, key_token, key_head, value_token, value_head, grad_token, grad_head,
    bias_head, bias_row, bias_column,
    tokens, heads, sequences, length, scale, window,
    SHARING: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of the bias of one head, its gradient summed over every so many sequences; (splits, H, L, L)."""
    row_from, key_from = tl.program_id(0) * BLOCK, tl.program_id(1) * BLOCK
    split, head = tl.program_id(2) // heads, tl.program_id(2) % heads
    splits = tl.num_programs(2) // heads
    shared_head = head // SHARING
    lse_ptr += head.to(tl.int64) * tokens
    delta_ptr += head.to(tl.int64) * tokens
    grad_bias = tl.zeros([BLOCK, BLOCK], tl.float32)
    for number in range(split, sequences, splits):
        sequence, stop = tl.load(cu_seqlens_ptr + number), tl.load(cu_seqlens_ptr + number + 1)
        row_at, key_at = sequence + row_from, sequence + key_from
        if (row_at < stop) & (key_at < stop):
            rows, keys = row_at + tl.arange(0, BLOCK), key_at + tl.arange(0, BLOCK)
            query = _load(query_ptr, row_at, stop, head, query_token, query_head, BLOCK, SIZE, WIDTH)
            grad = _load(grad_ptr, row_at, stop, head, grad_token, grad_head, BLOCK, SIZE, WIDTH)
            key = _load(key_ptr, key_at, stop, shared_head, key_token, key_head, BLOCK, SIZE, WIDTH)
            value = _load(value_ptr, key_at, stop, shared_head, value_token, value_head, BLOCK, SIZE, WIDTH)
            lse = tl.load(lse_ptr + rows, mask=rows < stop, other=0.0)
            delta = tl.load(delta_ptr + rows, mask=rows < stop, other=0.0)
            _, grad_scores = _gradient(
                query, key, value, grad, lse, delta, bias_ptr, head, rows, keys, stop, stop, sequence,
                bias_head, bias_row, bias_column, scale, window, CAUSAL, WINDOWED, True, PRECISION,
            )  # fmt: skip
            grad_bias += grad_scores
    keys, rows = key_from + tl.arange(0, BLOCK)[:, None], row_from + tl.arange(0, BLOCK)[None, :]
    grad_bias_ptr += tl.program_id(2).to(tl.int64) * length * length
    tl.store(grad_bias_ptr + rows * length + keys, grad_bias, mask=(rows < length) & (keys < length))
