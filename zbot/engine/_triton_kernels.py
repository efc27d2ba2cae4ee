# pyright: basic, reportIndexIssue=false, reportMissingImports=false
# ruff: noqa: N803  compile-time constants are written in capitals, as Triton does
# Triton has no type information, and the bodies of its kernels are not Python that a type checker can follow.
"""The bodies of the Triton kernels: each reads and writes its tensors once."""

import triton
import triton.language as tl


@triton.jit
def _wait_for_input(EARLY: tl.constexpr):
    # Launched early, a kernel stands ready when the one before it ends; what that one wrote may be read from here on.
    if EARLY:
        tl.extra.cuda.gdc_wait()


@triton.jit
def _rms(x, weight, eps, DIM: tl.constexpr, DTYPE: tl.constexpr):
    # The two roundings are diffusers' RMSNorm: to the tensor's dtype before and after the weight.
    normed = x * tl.rsqrt(tl.sum(x * x, axis=0) / DIM + eps)
    return (normed.to(DTYPE).to(tl.float32) * weight).to(DTYPE).to(tl.float32)


@triton.jit
def _store_row(
    x,
    row,
    columns,
    inside,
    out_ptr,
    values_ptr,
    scales_ptr,
    DTYPE: tl.constexpr,
    DIM: tl.constexpr,
    EXACT: tl.constexpr,
    FP8: tl.constexpr,
):
    """Store a row exactly, in 8 bits with its scale (zbot.engine._fp8), or both."""
    x = x.to(DTYPE)
    if EXACT:
        tl.store(out_ptr + row * DIM + columns, x, mask=inside)
    if FP8:
        x = x.to(tl.float32)
        scale = tl.maximum(tl.max(tl.abs(x), axis=0), 1e-12) / 448.0
        tl.store(scales_ptr + row, scale)
        tl.store(
            values_ptr + row * DIM + columns,
            tl.div_rn(x, tl.broadcast_to(scale, x.shape)).to(tl.float8e4nv),
            mask=inside,
        )


@triton.jit
def in_form_kernel(x_ptr, values_ptr, scales_ptr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < DIM
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + row * DIM + columns, mask=inside, other=0.0)
    _store_row(x, row, columns, inside, x_ptr, values_ptr, scales_ptr, dtype, DIM, False, True)


@triton.jit
def rms_norm_kernel(
    x_ptr,
    weight_ptr,
    scale_ptr,
    out_ptr,
    values_ptr,
    scales_ptr,
    eps,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    EXACT: tl.constexpr,
    FP8: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < DIM
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + row * DIM + columns, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    out = _rms(x, weight, eps, DIM, dtype)
    if HAS_SCALE:
        out = out * tl.load(scale_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    _store_row(out, row, columns, inside, out_ptr, values_ptr, scales_ptr, dtype, DIM, EXACT, FP8)


@triton.jit
def add_rms_norm_kernel(
    x_ptr,
    y_ptr,
    weight_ptr,
    gate_ptr,
    next_weight_ptr,
    next_scale_ptr,
    out_ptr,
    values_ptr,
    scales_ptr,
    eps,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_NEXT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    EXACT: tl.constexpr,
    FP8: tl.constexpr,
    EARLY: tl.constexpr,
):
    _wait_for_input(EARLY)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < DIM
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    y = tl.load(y_ptr + row * DIM + columns, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + row * DIM + columns, mask=inside, other=0.0).to(tl.float32)
    update = y
    if HAS_NORM:
        weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        update = _rms(y, weight, eps, DIM, dtype)
    if HAS_GATE:
        gate = tl.load(gate_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        update = (update * gate).to(dtype).to(tl.float32)
    x = (x + update).to(dtype)
    tl.store(x_ptr + row * DIM + columns, x, mask=inside)
    if HAS_NEXT:
        next_weight = tl.load(next_weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        out = _rms(x.to(tl.float32), next_weight, eps, DIM, dtype)
        if HAS_SCALE:
            out = out * tl.load(next_scale_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        _store_row(out, row, columns, inside, out_ptr, values_ptr, scales_ptr, dtype, DIM, EXACT, FP8)


@triton.jit
def norm_and_rotate_kernel(
    qkv_ptr,
    q_weight_ptr,
    k_weight_ptr,
    cos_ptr,
    sin_ptr,
    eps,
    HEADS: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    EARLY: tl.constexpr,
):
    _wait_for_input(EARLY)
    row = tl.program_id(0).to(tl.int64)
    is_key = tl.program_id(1)
    heads = tl.arange(0, HEADS_BLOCK)[:, None]
    columns = tl.arange(0, HEAD_DIM)
    pointers = (
        qkv_ptr + row * (3 * HEADS * HEAD_DIM) + is_key * (HEADS * HEAD_DIM) + heads * HEAD_DIM + columns
    )
    inside = heads < HEADS
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    x = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    if is_key == 0:
        weight = tl.load(q_weight_ptr + columns).to(tl.float32)
    else:
        weight = tl.load(k_weight_ptr + columns).to(tl.float32)
    x = x * tl.rsqrt(tl.sum(x * x, axis=1) / HEAD_DIM + eps)[:, None]
    x = (x.to(dtype).to(tl.float32) * weight[None, :]).to(dtype).to(tl.float32)
    left, right = tl.split(tl.reshape(x, (HEADS_BLOCK, HEAD_DIM // 2, 2)))
    angles = row * (HEAD_DIM // 2) + tl.arange(0, HEAD_DIM // 2)
    cos = tl.load(cos_ptr + angles)[None, :]
    sin = tl.load(sin_ptr + angles)[None, :]
    rotated = tl.join(left * cos - right * sin, left * sin + right * cos)
    tl.store(pointers, tl.reshape(rotated, (HEADS_BLOCK, HEAD_DIM)).to(dtype), mask=inside)


@triton.jit
def norm_and_rotate_halves_kernel(
    qkv_ptr,
    q_weight_ptr,
    k_weight_ptr,
    cos_ptr,
    sin_ptr,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < HALF
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    pointers = qkv_ptr + row * ((HEADS + 2 * KV_HEADS) * 2 * HALF) + head * (2 * HALF) + columns
    left = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(pointers + HALF, mask=inside, other=0.0).to(tl.float32)
    weight_ptr = q_weight_ptr if head < HEADS else k_weight_ptr
    scale = tl.rsqrt(tl.sum(left * left + right * right, axis=0) / (2 * HALF) + eps)
    left_weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    right_weight = tl.load(weight_ptr + HALF + columns, mask=inside, other=0.0).to(tl.float32)
    left = ((left * scale).to(dtype).to(tl.float32) * left_weight).to(dtype).to(tl.float32)
    right = ((right * scale).to(dtype).to(tl.float32) * right_weight).to(dtype).to(tl.float32)
    cos = tl.load(cos_ptr + row * (2 * HALF) + columns, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + row * (2 * HALF) + columns, mask=inside, other=0.0).to(tl.float32)
    # Each product is rounded before the sum, as transformers does it.
    new_left = (left * cos).to(dtype).to(tl.float32) - (right * sin).to(dtype).to(tl.float32)
    new_right = (right * cos).to(dtype).to(tl.float32) + (left * sin).to(dtype).to(tl.float32)
    tl.store(pointers, new_left.to(dtype), mask=inside)
    tl.store(pointers + HALF, new_right.to(dtype), mask=inside)


@triton.jit
def gated_silu_kernel(
    x_ptr,
    out_ptr,
    values_ptr,
    scales_ptr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    EXACT: tl.constexpr,
    FP8: tl.constexpr,
    EARLY: tl.constexpr,
):
    """In 8 bits, a program must see its whole row: BLOCK is then no less than HIDDEN."""
    _wait_for_input(EARLY)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    left = tl.load(x_ptr + row * (2 * HIDDEN) + columns, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(x_ptr + row * (2 * HIDDEN) + HIDDEN + columns, mask=inside, other=0.0).to(tl.float32)
    silu = (left / (1.0 + tl.exp(-left))).to(dtype).to(tl.float32)
    _store_row(silu * right, row, columns, inside, out_ptr, values_ptr, scales_ptr, dtype, HIDDEN, EXACT, FP8)


@triton.jit(do_not_specialize=["pixels", "pixels_per_program"])
def channel_moments_kernel(
    x_ptr,
    moments_ptr,
    pixels,
    pixels_per_program,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write, per program and channel, the mean and the sum of squared distances from it of a run of pixels."""
    program = tl.program_id(0)
    channels = tl.arange(0, BLOCK)
    inside = channels < CHANNELS
    first = program.to(tl.int64) * pixels_per_program
    last = tl.minimum(first + pixels_per_program, pixels)
    # Sums are taken of the distance from the run's first pixel: a large common mean must not eat the variance.
    origin = tl.load(x_ptr + first * CHANNELS + channels, mask=inside, other=0.0).to(tl.float32)
    # Summed lane by lane, and across lanes only once at the end: that is what makes this run at memory speed.
    totals = tl.zeros((ROWS, BLOCK), tl.float32)
    squares = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, pixels_per_program, ROWS):
        rows = first + start + tl.arange(0, ROWS)
        valid = (rows < last)[:, None] & inside[None, :]
        x = tl.load(x_ptr + rows[:, None] * CHANNELS + channels[None, :], mask=valid, other=0.0).to(
            tl.float32
        )
        x = tl.where(valid, x - origin[None, :], 0.0)
        totals += x
        squares += x * x
    total = tl.sum(totals, axis=0)
    count = (last - first).to(tl.float32)
    mean = total / count
    out = moments_ptr + program.to(tl.int64) * (2 * CHANNELS) + channels
    tl.store(out, origin + mean, mask=inside)
    tl.store(out + CHANNELS, tl.sum(squares, axis=0) - total * mean, mask=inside)


@triton.jit(do_not_specialize=["pixels", "pixels_per_program", "programs"])
def group_affine_kernel(
    moments_ptr,
    conv_bias_ptr,
    weight_ptr,
    bias_ptr,
    affine_ptr,
    pixels,
    pixels_per_program,
    programs,
    eps,
    CHANNELS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    PER_GROUP_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_CONV_BIAS: tl.constexpr,
):
    """Join one group's moments (Chan's formula) and write its channels' factor and summand."""
    lane = tl.arange(0, PER_GROUP_BLOCK)
    channels = tl.program_id(0) * PER_GROUP + lane
    inside = lane < PER_GROUP
    shift = tl.zeros((PER_GROUP_BLOCK,), tl.float32)
    if HAS_CONV_BIAS:
        shift = tl.load(conv_bias_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, PER_GROUP_BLOCK), tl.float32)
    for start in range(0, programs, ROWS):
        rows = start + tl.arange(0, ROWS)
        valid = (rows < programs)[:, None] & inside[None, :]
        count = tl.minimum(pixels - rows * pixels_per_program, pixels_per_program).to(tl.float32)[:, None]
        mean = tl.load(
            moments_ptr + rows[:, None] * (2 * CHANNELS) + channels[None, :], mask=valid, other=0.0
        )
        total += tl.where(valid, (mean + shift[None, :]) * count, 0.0)
    size = pixels.to(tl.float32) * PER_GROUP
    group_mean = tl.sum(tl.sum(total, axis=0), axis=0) / size
    squares = tl.zeros((ROWS, PER_GROUP_BLOCK), tl.float32)
    for start in range(0, programs, ROWS):
        rows = start + tl.arange(0, ROWS)
        valid = (rows < programs)[:, None] & inside[None, :]
        count = tl.minimum(pixels - rows * pixels_per_program, pixels_per_program).to(tl.float32)[:, None]
        pointers = moments_ptr + rows[:, None] * (2 * CHANNELS) + channels[None, :]
        mean = tl.load(pointers, mask=valid, other=0.0) + shift[None, :]
        within = tl.load(pointers + CHANNELS, mask=valid, other=0.0)
        distance = mean - group_mean
        squares += tl.where(valid, within + count * distance * distance, 0.0)
    variance = tl.sum(tl.sum(squares, axis=0), axis=0) / size
    weight = tl.load(weight_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    factor = weight * tl.rsqrt(variance + eps)
    tl.store(affine_ptr + channels, factor, mask=inside)
    tl.store(affine_ptr + CHANNELS + channels, bias + (shift - group_mean) * factor, mask=inside)


@triton.jit
def affine_silu_kernel(
    x_ptr, affine_ptr, out_ptr, size, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    channels = offsets % CHANNELS
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    x = x * tl.load(affine_ptr + channels) + tl.load(affine_ptr + CHANNELS + channels)
    if SILU:
        x = x.to(dtype).to(tl.float32)
        x = x / (1.0 + tl.exp(-x))
    tl.store(out_ptr + offsets, x.to(dtype), mask=inside)


@triton.jit
def add_with_bias_kernel(
    x_ptr,
    x_bias_ptr,
    y_ptr,
    y_bias_ptr,
    size,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_X_BIAS: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    channels = offsets % CHANNELS
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_X_BIAS:
        x = (x + tl.load(x_bias_ptr + channels).to(tl.float32)).to(dtype).to(tl.float32)
    y = (y + tl.load(y_bias_ptr + channels).to(tl.float32)).to(dtype).to(tl.float32)
    tl.store(y_ptr + offsets, (x + y).to(dtype), mask=inside)


@triton.jit(do_not_specialize=["pixels", "width"])
def double_kernel(
    x_ptr, out_ptr, pixels, width, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channels = tl.arange(0, BLOCK)
    inside = (pixel < pixels)[:, None] & (channels < CHANNELS)[None, :]
    x = tl.load(x_ptr + pixel.to(tl.int64)[:, None] * CHANNELS + channels[None, :], mask=inside)
    row, column = pixel // width, pixel % width
    corner = row.to(tl.int64) * 4 * width + 2 * column
    for index in tl.static_range(4):
        target = corner + (index // 2) * 2 * width + index % 2
        tl.store(out_ptr + target[:, None] * CHANNELS + channels[None, :], x, mask=inside)


@triton.jit(do_not_specialize=["length"])
def softmax_kernel(scores_ptr, out_ptr, scale, length, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    scores_ptr += row * length
    out_ptr += row * length
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(scores_ptr + columns, mask=columns < length, other=float("-inf")) * scale
        higher = tl.maximum(highest, x)
        # A lane that has seen nothing yet holds minus infinity twice; their difference must count as no weight.
        seen = higher > float("-inf")
        total = tl.where(seen, total * tl.exp(highest - higher) + tl.exp(x - higher), 0.0)
        highest = higher
    top = tl.max(highest, axis=0)
    share = 1.0 / tl.sum(total * tl.exp(highest - top), axis=0)
    for start in range(0, length, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(scores_ptr + columns, mask=columns < length, other=float("-inf")) * scale
        tl.store(
            out_ptr + columns, (tl.exp(x - top) * share).to(out_ptr.dtype.element_ty), mask=columns < length
        )


@triton.jit
def _attend(
    query, key, value, there, largest, total, mixed, scale, DTYPE: tl.constexpr, ALL_THERE: tl.constexpr
):
    """Take a block of keys and values into the running softmax of a block of queries."""
    scores = tl.dot(query, tl.trans(key))
    if not ALL_THERE:
        scores = tl.where(there[None, :], scores, float("-inf"))
    above = tl.maximum(largest, tl.max(scores, axis=1) * scale)
    weights = tl.exp2(scores * scale - above[:, None])
    fade = tl.exp2(largest - above)
    total = total * fade + tl.sum(weights, axis=1)
    mixed = tl.dot(weights.to(DTYPE), value, mixed * fade[:, None])
    return above, total, mixed


@triton.jit
def attention_kernel(
    qkv,  # a tensor descriptor of [rows, 3 * HEADS * HEAD_DIM] in blocks of [BLOCK, HEAD_DIM]
    out_ptr,
    rows,
    scale,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    _wait_for_input(EARLY)
    first = tl.program_id(0) * BLOCK
    head = tl.program_id(1)
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    scale = scale * 1.4426950408889634  # the card's exponentials are of two
    query = qkv.load([first, head * HEAD_DIM])
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    mixed = tl.zeros((BLOCK, HEAD_DIM), tl.float32)
    whole = rows // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        key = qkv.load([start, (HEADS + head) * HEAD_DIM])
        value = qkv.load([start, (2 * HEADS + head) * HEAD_DIM])
        largest, total, mixed = _attend(query, key, value, None, largest, total, mixed, scale, dtype, True)
    if whole < rows:
        there = whole + tl.arange(0, BLOCK) < rows
        key = qkv.load([whole, (HEADS + head) * HEAD_DIM])
        value = qkv.load([whole, (2 * HEADS + head) * HEAD_DIM])
        largest, total, mixed = _attend(query, key, value, there, largest, total, mixed, scale, dtype, False)
    row = first + tl.arange(0, BLOCK)
    at = row[:, None].to(tl.int64) * (HEADS * HEAD_DIM) + head * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(out_ptr + at, (mixed / total[:, None]).to(dtype), mask=(row < rows)[:, None])
