//! The kernel table: for each kernel its files, its menu of shapes, its workgroup memory and what it can serve.

use crate::key::{Kernel, Key, LaneShape, Shape, TileShape};

/// The widest part of the value dim that one workgroup handles; wider values are split over workgroups.
pub const VALUE_SPLIT: u32 = 128;

/// The classes that head and value dims are rounded up to where they shape registers.
pub const DIM_CLASSES: [u32; 4] = [16, 32, 64, 128];

/// The largest head dim and value dim.
pub const MAX_DIM: u32 = 576;

/// The files that make a key's kernel, after the ones every kernel shares.
#[must_use]
pub fn kernel_files(key: &Key) -> Vec<&'static str> {
    let masks = key.options.masks_elements();
    let tile = |rows| {
        let staged = matches!(key.shape, Shape::Tile(TileShape { k_chunks: Some(_), .. }));
        vec![
            rows,
            if masks { "seen_tile" } else { "seen_tile_range" },
            if staged { "keys_staged" } else { "keys_direct" },
            "flash_forward_tile",
        ]
    };
    let rows = |seen| vec![if masks { seen } else { "seen_lane_range" }, "flash_forward_rows"];
    match (key.kernel, key.shape) {
        (Kernel::TileSubgroup, _) => tile("rows_subgroup"),
        (Kernel::TileUniversal, Shape::Tile(_)) => tile("rows_workgroup"),
        (Kernel::TileUniversal, Shape::Lanes(_)) => rows("seen_alone"),
        (Kernel::Broadcast, _) => rows("seen_lane"),
    }
}

/// A tile for GPUs that fits WebGPU's default 16 KiB of workgroup memory.
pub const TILE_GPU: TileShape = TileShape { tx: 8, ty: 16, rows: 4, keys: 4, k_chunks: Some(8) };

/// The same for value dims up to 32, which fewer invocations a row share.
pub const TILE_GPU_NARROW: TileShape = TileShape { tx: 4, ty: 16, rows: 4, keys: 8, k_chunks: Some(8) };

/// A tile of `tile-subgroup` for CPU drivers, where large blocks in registers pay and staging does not.
pub const TILE_CPU: TileShape = TileShape { tx: 8, ty: 4, rows: 8, keys: 8, k_chunks: None };

/// The tile shapes of the menu.
pub const TILES: [TileShape; 3] = [TILE_GPU, TILE_GPU_NARROW, TILE_CPU];

/// Rows in registers without subgroups, of `tile-universal` for CPU drivers: eight invocations fill a vector of most CPUs.
pub const ROWS_CPU: LaneShape = LaneShape { lanes: 8, rows: 4, keys: 4 };

/// The subgroup sizes for which `broadcast` is on the menu.
pub const LANES: [u32; 3] = [4, 8, 16];

/// The rows a lane on the menu of kernels with rows in registers.
pub const LANE_ROWS: [u32; 4] = [1, 2, 4, 8];

/// Vec4 columns of the output that an invocation holds, even.
#[must_use]
pub fn columns(tile: TileShape, value_class: u32) -> u32 {
    (value_class / 4).div_ceil(tile.tx).next_multiple_of(2)
}

/// Size of the slab, in vec4: the tile's keys with one column between neighbours.
#[must_use]
pub fn slab(tile: TileShape, k_chunks: u32) -> u32 {
    tile.tx * tile.keys * (k_chunks + 1)
}

/// Values that fit the slab at a time, a multiple of four.
#[must_use]
pub fn value_keys(tile: TileShape, k_chunks: u32, value_class: u32) -> u32 {
    let fit = slab(tile, k_chunks) / (tile.tx * columns(tile, value_class));
    (fit / 4 * 4).min(tile.tx * tile.keys)
}

/// Bytes of workgroup memory that a key's kernel declares.
#[must_use]
pub fn workgroup_bytes(key: &Key) -> u32 {
    let Shape::Tile(tile) = key.shape else { return 0 };
    let (tile_q, tile_k) = (tile.ty * tile.rows, tile.tx * tile.keys);
    let weights = 16 * tile_k * (tile_q / 4 + 1);
    let slab = tile.k_chunks.map_or(0, |k_chunks| 16 * slab(tile, k_chunks));
    let rows = if key.kernel == Kernel::TileUniversal { 16 * tile.tx * tile.ty } else { 0 };
    // wgpu rounds each variable up to 16 bytes.
    let seen = if key.options.masks_elements() { (4 * tile_k.div_ceil(32)).next_multiple_of(16) } else { 0 };
    weights + slab + rows + seen
}

/// The least class that holds `dim`.
#[must_use]
pub fn dim_class(dim: u32) -> Option<u32> {
    DIM_CLASSES.into_iter().find(|&class| dim <= class)
}
