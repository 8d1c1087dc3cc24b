//! The kernel table: for each kernel its files, its menu of shapes, its workgroup memory and what it can serve.

use crate::key::{FlashKey, Kernel, LaneShape, MatrixShape, MatrixSquare, Shape, TileShape};

/// The widest part of the value dim that one workgroup handles; wider values are split over workgroups.
pub const VALUE_SPLIT: u32 = 128;

/// The classes that head and value dims are rounded up to where they shape registers.
pub const DIM_CLASSES: [u32; 4] = [16, 32, 64, 128];

/// The largest head dim and value dim.
pub const MAX_DIM: u32 = 576;

/// The files that make a key's kernel, after the ones every kernel shares.
#[must_use]
pub fn kernel_files(key: &FlashKey) -> Vec<&'static str> {
    let masks = key.options.masks_elements();
    let tile = |invocation, rows| {
        vec![invocation, rows, if masks { "seen_tile" } else { "seen_tile_range" }, "flash_forward_tile"]
    };
    let rows = |seen| vec![if masks { seen } else { "seen_lane_range" }, "flash_forward_rows"];
    match (key.kernel, key.shape) {
        (Kernel::Matrix, _) | (_, Shape::Matrix(_)) => vec![
            "matrices",
            "invocation_subgroup",
            "rows_subgroup",
            "flash_forward_matrix",
            "matrix_values",
            "matrix_weights",
            if masks { "seen_tile" } else { "seen_tile_range" },
        ],
        (Kernel::TileSubgroup, _) => tile("invocation_subgroup", "rows_subgroup"),
        (Kernel::TileUniversal, Shape::Tile(_)) => tile("invocation", "rows_workgroup"),
        (Kernel::TileUniversal, Shape::Lanes(_)) => rows("seen_alone"),
        (Kernel::Broadcast, _) => rows("seen_lane"),
    }
}

/// A tile for GPUs that fits WebGPU's default 16 KiB of workgroup memory.
pub const TILE_GPU: TileShape = TileShape { tx: 8, ty: 16, rows: 4, keys: 4, k_chunks: 8 };

/// The same for value dims beyond 64: more invocations share a row, so that its output still fits their registers.
pub const TILE_GPU_WIDE: TileShape = TileShape { tx: 16, ty: 8, rows: 4, keys: 4, k_chunks: 4 };

/// The tile shapes of the menu.
pub const TILES: [TileShape; 2] = [TILE_GPU, TILE_GPU_WIDE];

/// The tile for a value dim. The other one serves too, but spills registers or leaves invocations idle.
#[must_use]
pub fn gpu_tile(value_dim: u32) -> TileShape {
    if value_dim > 64 { TILE_GPU_WIDE } else { TILE_GPU }
}

/// Rows in registers without subgroups, of `tile-universal` for CPU drivers: eight invocations fill a vector of most CPUs.
/// It has `rows` at most, and few keys a step, since each invocation loads them all: every load is compiled once for each.
pub const ROWS_CPU: LaneShape = LaneShape { lanes: 8, rows: 16, keys: 2 };

/// The subgroup sizes for which `broadcast` is on the menu.
pub const LANES: [u32; 3] = [4, 8, 16];

/// The rows a lane on the menu of kernels with rows in registers.
pub const LANE_ROWS: [u32; 6] = [1, 2, 4, 6, 8, 16];

/// Keys a step on the menu of `broadcast`.
pub const LANE_KEYS: [u32; 3] = [2, 4, 8];

/// The least keys a step of `broadcast`: the lanes share their rows, eight numbers for each.
#[must_use]
pub fn least_keys(lanes: u32, head_class: u32, value_class: u32) -> u32 {
    (lanes * 8 / head_class.min(value_class)).max(LANE_KEYS[0])
}

/// Keys a step of the backward pass by `broadcast`: few, since its code is long.
#[must_use]
pub fn backward_keys(lanes: u32, head_class: u32, value_class: u32) -> u32 {
    least_keys(lanes, head_class, value_class).max(lanes / 4)
}

/// Keys a step of the forward pass by `broadcast`. More keys touch the output less often; but with two, few rows of a small head dim are
/// so little code, one straight line, that a CPU keeps it decoded.
#[must_use]
pub fn forward_keys(lanes: u32, rows: u32, head_class: u32, value_class: u32) -> u32 {
    let short = lanes <= 8 && rows * head_class.max(value_class) <= 192;
    let keys = if short { 2 } else { lanes / 2 };
    keys.max(least_keys(lanes, head_class, value_class))
}

/// Keys whose values a tile kernel takes up a turn of its inner loop.
pub const KEY_STEP: u32 = 4;

/// Vec4 columns of the output that an invocation holds.
#[must_use]
pub fn columns(tile: TileShape, value_class: u32) -> u32 {
    (value_class / 4).div_ceil(tile.tx)
}

/// Size of the slab, in vec4: the tile's keys, with one more between neighbouring columns.
#[must_use]
pub fn slab(tile: TileShape) -> u32 {
    tile.keys * slab_row(tile)
}

/// Size of the slab's rows.
fn slab_row(tile: TileShape) -> u32 {
    tile.k_chunks * (tile.tx + 1)
}

/// Values that fit a row of the slab, a step of the inner loop at most: a power of two.
#[must_use]
pub fn row_values(tile: TileShape, value_class: u32) -> u32 {
    let fit = slab_row(tile) / (tile.tx * columns(tile, value_class));
    if fit >= KEY_STEP { KEY_STEP } else { 1 << fit.ilog2() }
}

/// Values that fit the slab at a time.
#[must_use]
pub fn value_keys(tile: TileShape, value_class: u32) -> u32 {
    tile.keys * row_values(tile, value_class)
}

/// Turns of its loops that a kernel takes for a tile of keys, at most.
#[must_use]
pub fn turns(key: &FlashKey, head_dim: u32) -> u32 {
    match key.shape {
        Shape::Lanes(_) => 1,
        Shape::Matrix(shape) => matrix_turns(shape, key, head_dim),
        Shape::Tile(tile) => {
            let slabs = head_dim.div_ceil(4).div_ceil(tile.k_chunks);
            let values = value_keys(tile, key.value_class);
            2 + slabs * (2 + tile.k_chunks) + (tile.tx * tile.keys).div_ceil(values) * (2 + values / KEY_STEP)
        }
    }
}

/// Bytes of workgroup memory that a key's kernel declares.
#[must_use]
pub fn workgroup_bytes(key: &FlashKey) -> u32 {
    match key.shape {
        Shape::Lanes(_) => 0,
        Shape::Tile(tile) => tile_bytes(tile, key.kernel == Kernel::TileUniversal, key.options.masks_elements()),
        Shape::Matrix(shape) => matrix_bytes(shape, key),
    }
}

/// Bytes of a tile: of its weights and its slab, of `rows` that reduce there, and of the keys that are `seen`.
pub(crate) fn tile_bytes(tile: TileShape, rows: bool, seen: bool) -> u32 {
    let (tile_q, tile_k) = (tile.ty * tile.rows, tile.tx * tile.keys);
    let weights = 16 * tile_k * (tile_q / 4 + 1);
    let rows = if rows { 16 * tile.tx * tile.ty } else { 0 };
    weights + 16 * slab(tile) + rows + seen_bytes(tile_k, seen)
}

/// Bytes of a bit a key, rounded up as wgpu rounds each variable.
pub(crate) fn seen_bytes(tile_k: u32, seen: bool) -> u32 {
    if seen { (4 * tile_k.div_ceil(32)).next_multiple_of(16) } else { 0 }
}

/// The least class that holds `dim`.
#[must_use]
pub fn dim_class(dim: u32) -> Option<u32> {
    DIM_CLASSES.into_iter().find(|&class| dim <= class)
}

/// Rows and columns of the cooperative matrices on the menu.
pub const MATRIX_SIDES: [u32; 2] = [8, 16];

/// Columns that `matrix` sums at a time in products over a dim that is beyond the classes.
pub const STREAM_DIMS: u32 = 64;

/// The tile of `matrix` for matrices of `side` and subgroups of `min` to `max` lanes: 64 queries x 32 keys, less of both for subgroups so
/// small that four of them have fewer than 128 lanes.
#[must_use]
pub fn matrix_shape(side: u32, (min, max): (u32, u32)) -> MatrixShape {
    let threads = (4 * min).clamp(32, 128);
    let strips = (threads / 2).max(32) / side;
    let own = (strips * min / threads, (strips * max).div_ceil(threads));
    MatrixShape { side, strips, own, key_blocks: (threads / 2).min(32) / side, threads }
}

/// The square of linear attention for matrices of `side` and subgroups of `min` to `max` lanes: 32 x 32, less for subgroups so small that
/// many matrices would wait for few. Each subgroup has matrices of one column, so that there are at least as many as columns.
#[must_use]
pub fn matrix_square(side: u32, (min, max): (u32, u32)) -> MatrixSquare {
    let edge = if side == 16 || min >= 32 { 32 } else { 16 };
    let grid = edge / side;
    let threads = (4 * min).max(grid * max).max(2 * edge);
    MatrixSquare { side, edge, own: (grid * grid * min / threads, (grid * grid * max).div_ceil(threads)), threads }
}

/// The tile of `matrix` in the backward pass. Where rows of wide dims stay in matrices, twice as many as in the forward pass, those of the
/// largest subgroups would not hold more than 16.
#[must_use]
pub fn matrix_backward_shape(side: u32, (min, max): (u32, u32), head_dim: u32, value_dim: u32) -> MatrixShape {
    let shape = matrix_shape(side, (min, max));
    let widest = head_dim.max(value_dim);
    if widest <= 64 || dim_class(widest).is_none() {
        return shape;
    }
    let strips = shape.strips.min(16 / side * shape.threads.div_ceil(max));
    let own = (strips * min / shape.threads, (strips * max).div_ceil(shape.threads));
    MatrixShape { strips, own, ..shape }
}

/// Columns of queries and keys that lie in the slab of `matrix` at a time.
pub(crate) fn matrix_head_dims(key: &FlashKey) -> u32 {
    if key.head_class > 0 { key.head_class } else { STREAM_DIMS }
}

/// Loads of four keys' values, four columns each, that an invocation of `matrix` does at most.
pub(crate) fn value_loads(keys: u32, value_class: u32, threads: u32) -> u32 {
    (keys * value_class / 16).div_ceil(threads)
}

/// Turns of the loops of `matrix` for a tile of keys, at most: where it stages, where it rescales, and one wherever a subgroup looks
/// whether it has a strip.
fn matrix_turns(shape: MatrixShape, key: &FlashKey, head_dim: u32) -> u32 {
    let (tile_q, tile_k) = (shape.strips * shape.side, shape.key_blocks * shape.side);
    let columns = key.value_class / 4;
    let rescale = columns.div_ceil(shape.threads / tile_q);
    let groups = key.value_class.div_ceil(tile_k);
    let slabs = match key.head_class {
        0 => head_dim.div_ceil(STREAM_DIMS) * (1 + tile_q * STREAM_DIMS / 4 / shape.threads + shape.own.1),
        _ => shape.own.1,
    };
    1 + slabs + rescale + shape.own.1 * (2 + 2 * groups)
}

/// Whether `matrix` stages values with their keys: where there is room for both, unless it takes the scores to know which are seen.
pub(crate) fn matrix_stages_early(key: &FlashKey) -> bool {
    (1..=64).contains(&key.head_class) && key.value_class <= 64 && !key.options.masks_elements()
}

/// Size of the slab of `matrix`, in 16 bytes, and where values begin in it. Queries that stay in matrices pass through it before any
/// key; others are staged with their keys.
pub(crate) fn matrix_slab(shape: MatrixShape, key: &FlashKey) -> (u32, u32) {
    let (tile_q, tile_k) = (shape.strips * shape.side, shape.key_blocks * shape.side);
    let head = matrix_head_dims(key) / 8 + 1;
    let values = key.value_class * (tile_k / 8 + 1);
    let rows = if key.head_class > 0 { tile_q.max(tile_k) } else { tile_q + tile_k };
    let values_at = if matrix_stages_early(key) { tile_k * head } else { 0 };
    ((rows * head).max(values_at + values), values_at)
}

/// Bytes of the slab, of scores in f32 and weights in f16, of the flag that the reference of a row has risen, and of the keys seen.
fn matrix_bytes(shape: MatrixShape, key: &FlashKey) -> u32 {
    let (tile_q, tile_k) = (shape.strips * shape.side, shape.key_blocks * shape.side);
    let scores = tile_q * (tile_k / 4 + 1);
    let weights = tile_q * (tile_k / 8 + 1);
    16 * (matrix_slab(shape, key).0 + scores + weights + 1) + seen_bytes(tile_k, key.options.masks_elements())
}
