//! The kernel table: for each kernel its files, its menu of shapes, its workgroup memory and what it can serve.

use crate::key::{Kernel, Key, LaneShape, Shape, Stage, TileShape};

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
        let staged = matches!(key.shape, Shape::Tile(TileShape { stage: Some(_), .. }));
        vec![
            rows,
            if masks { "seen_tile" } else { "seen_tile_range" },
            if staged { "keys_staged" } else { "keys_direct" },
            "flash_forward_tile",
        ]
    };
    match key.kernel {
        Kernel::TileUniversal => tile("rows_workgroup"),
        Kernel::TileSubgroup => tile("rows_subgroup"),
        Kernel::Broadcast => vec![if masks { "seen_lane" } else { "seen_lane_range" }, "flash_forward_broadcast"],
    }
}

/// A tile for GPUs that fits WebGPU's default 16 KiB of workgroup memory.
pub const TILE_GPU: TileShape =
    TileShape { tx: 8, ty: 16, rows: 4, keys: 4, stage: Some(Stage { k_chunks: 8, v_columns: 1 }) };

/// A tile for CPU drivers, where large blocks in registers pay and workgroup memory does not.
pub const TILE_CPU: TileShape = TileShape { tx: 8, ty: 4, rows: 16, keys: 8, stage: None };

/// The tile shapes of the menu.
pub const TILES: [TileShape; 2] = [TILE_GPU, TILE_CPU];

/// The subgroup sizes for which `broadcast` is on the menu.
pub const LANES: [u32; 3] = [4, 8, 16];

/// The rows a lane for which `broadcast` is on the menu.
pub const LANE_ROWS: [u32; 6] = [1, 2, 4, 5, 6, 8];

/// Bytes of workgroup memory that a key's kernel declares.
#[must_use]
pub fn workgroup_bytes(key: &Key) -> u32 {
    let Shape::Tile(tile) = key.shape else { return 0 };
    let (tile_q, tile_k) = (tile.ty * tile.rows, tile.tx * tile.keys);
    let weights = 16 * tile_k * (tile_q / 4 + 1);
    let columns = (key.value_class / 4).div_ceil(tile.tx);
    let slab = tile.stage.map_or(0, |s| 16 * tile_k * (s.k_chunks + 1).max(tile.tx * s.v_columns.min(columns)));
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

/// The lane shapes of the menu, every subgroup size with every number of rows.
pub fn lane_shapes() -> impl Iterator<Item = LaneShape> {
    LANES.into_iter().flat_map(|lanes| LANE_ROWS.into_iter().map(move |rows| LaneShape { lanes, rows }))
}
