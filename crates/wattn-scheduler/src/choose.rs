//! Which kernel and which shape: the first that can serve, in the order that suits the device.

use wattn_shaders::table::{self, ROWS_CPU};
use wattn_shaders::{Access, FlashKey, Kernel, LaneShape, MatrixShape, MatrixSquare, Shape, Storage, TileShape};

use crate::attention::Attention;
use crate::backward_plan::matrix_walks;
use crate::capabilities::{Capabilities, DeviceKind};
use crate::cost::Task;
use crate::error::PlanError;
use crate::quirks::{self, Design};

/// The pipeline for a problem, and the reason.
pub(crate) fn kernel(attention: &Attention, device: &Capabilities) -> Result<(FlashKey, String), PlanError> {
    let serves = |kernel| shape(kernel, attention, device);
    let (kernel, shape, reason) = first_that_serves(attention.kernel, &order(device), serves)?;
    Ok((key(kernel, shape, attention, device), reason))
}

/// The kernel of the backward pass, the shapes of its walks, and the reason.
pub(crate) fn backward(
    attention: &Attention,
    device: &Capabilities,
) -> Result<(Kernel, BackwardShapes, String), PlanError> {
    first_that_serves(attention.kernel, &order(device), |kernel| backward_shapes(kernel, attention, device))
}

/// The kernels of softmax attention in the order that suits the device.
fn order(device: &Capabilities) -> [Kernel; 4] {
    match device.kind {
        DeviceKind::Cpu => [Kernel::Broadcast, Kernel::TileSubgroup, Kernel::TileUniversal, Kernel::Matrix],
        _ => [Kernel::Matrix, Kernel::TileSubgroup, Kernel::TileUniversal, Kernel::Broadcast],
    }
}

/// The kernel of linear attention, Lightning's or BASED's, in the order that suits the device; and the reason.
pub(crate) fn linear(
    (task, registers): (Task, u32),
    pinned: Option<Kernel>,
    device: &Capabilities,
    serves: impl Fn(Kernel) -> Result<String, String>,
) -> Result<(Kernel, String), PlanError> {
    let order = match device.kind {
        DeviceKind::Cpu => [Kernel::Broadcast, Kernel::TileUniversal, Kernel::TileSubgroup, Kernel::Matrix],
        _ => [Kernel::Matrix, Kernel::TileSubgroup, Kernel::TileUniversal, Kernel::Broadcast],
    };
    let serves = |kernel| {
        let why = serves(kernel)?;
        let note = quirks::judge(Design { task, kernel, registers, rows: 0 }, pinned.is_some(), device)?;
        Ok(((), why + &note))
    };
    let (kernel, (), reason) = first_that_serves(pinned, &order, serves)?;
    Ok((kernel, reason))
}

/// The pinned kernel, or the first in this order that can serve; and the reason.
pub(crate) fn first_that_serves<S>(
    pinned: Option<Kernel>,
    order: &[Kernel],
    serves: impl Fn(Kernel) -> Result<(S, String), String>,
) -> Result<(Kernel, S, String), PlanError> {
    if let Some(kernel) = pinned {
        let (shape, why) = serves(kernel).map_err(|reason| PlanError::Kernel { kernel, reason })?;
        return Ok((kernel, shape, format!("pinned; {why}")));
    }
    let mut reasons = Vec::new();
    for &kernel in order {
        match serves(kernel) {
            Ok((shape, why)) => {
                let passed_over: String = reasons.iter().map(|r| format!("; {r}")).collect();
                return Ok((kernel, shape, format!("{why}{passed_over}")));
            }
            Err(reason) => reasons.push(format!("not {kernel}: {reason}")),
        }
    }
    Err(PlanError::NoKernel { reasons: reasons.join("; ") })
}

/// The shapes of the walks of the backward pass: one with rows in registers, a tile for results of the head dim and one for those of the
/// value dim, or one of matrices.
#[derive(Debug, Clone, Copy)]
pub(crate) enum BackwardShapes {
    Rows(LaneShape),
    Tiles { head: TileShape, value: TileShape },
    Matrices(MatrixShape),
}

fn backward_shapes(
    kernel: Kernel,
    attention: &Attention,
    device: &Capabilities,
) -> Result<(BackwardShapes, String), String> {
    let (qk, value) = (attention.head_dim.qk(), attention.head_dim.value());
    if kernel == Kernel::Matrix {
        let (side, subgroups) = matrices([attention.q, attention.kv], device)?;
        let shape = table::matrix_backward_shape(side, subgroups, qk, value);
        let walks = matrix_walks(attention, false, shape);
        let bytes = walks.iter().map(|step| step.key.workgroup_bytes()).max().unwrap_or(0);
        let why = matrices_fit(shape, bytes, attention, device)?;
        return Ok((
            BackwardShapes::Matrices(shape),
            why + &note(Task::Backward, kernel, Shape::Matrix(shape), attention, device)?,
        ));
    }
    // Products with values take all of their dim, which the forward pass splits.
    let narrow = value <= table::VALUE_SPLIT;
    let rows = match kernel {
        Kernel::Broadcast if !narrow => {
            return Err(format!("value dim {value} does not fit in registers, at most {} does", table::VALUE_SPLIT));
        }
        Kernel::Broadcast => Some(shape(kernel, attention, device)?),
        Kernel::TileUniversal if narrow => {
            shape(kernel, attention, device).ok().filter(|found| matches!(found.0, Shape::Lanes(_)))
        }
        _ => None,
    };
    if let Some((Shape::Lanes(shape), why)) = rows {
        let mut shape = shape;
        if attention.shape.is_none() {
            // A step multiplies three or four times instead of twice, so its code fits the caches with fewer rows or fewer keys.
            let [class, value_class] = [qk, value].map(|dim| table::dim_class(dim).unwrap_or(table::VALUE_SPLIT));
            let halved = shape.lanes > 8 && class.max(value_class) > 16;
            shape.rows = if halved { (shape.rows / 2).max(1) } else { shape.rows.min(8) };
            if kernel == Kernel::Broadcast {
                shape.keys = table::backward_keys(shape.lanes, class, value_class);
            }
        }
        let why = format!("{why}, {} of the backward pass", shape.rows);
        return Ok((BackwardShapes::Rows(shape), why));
    }
    let tile = |dim: u32| {
        let tile = match attention.shape {
            Some(Shape::Tile(shape)) if table::TILES.contains(&shape) => shape,
            Some(shape) => return Err(format!("shape {shape} is not on its menu")),
            None => table::gpu_tile(dim),
        };
        tile_fits(kernel, tile, attention, device)?;
        if tile.tx * tile.ty > device.workgroup_invocations {
            let (needed, available) = (tile.tx * tile.ty, device.workgroup_invocations);
            return Err(format!("{needed} invocations needed, {available} available"));
        }
        Ok(tile)
    };
    let (head, value) = (tile(qk)?, tile(value)?);
    let note = note(Task::Backward, kernel, Shape::Tile(head), attention, device)?;
    Ok((BackwardShapes::Tiles { head, value }, format!("tiles that fit {} bytes{note}", device.workgroup_bytes)))
}

/// What is known against a shape, where it is pinned all the same; or why the driver may not have it.
fn note(
    task: Task,
    kernel: Kernel,
    shape: Shape,
    attention: &Attention,
    device: &Capabilities,
) -> Result<String, String> {
    let design = Design { task, ..design(kernel, shape, attention) };
    quirks::judge(design, attention.kernel.is_some() || attention.shape.is_some(), device)
}

/// Whether rows may be loaded eight numbers at a time.
pub(crate) fn wide(attention: &Attention, device: &Capabilities) -> bool {
    attention.access == Access::Vec4
        && attention.head_dim.qk().is_multiple_of(8)
        && attention.head_dim.value().is_multiple_of(8)
        && device.loads_wide()
}

fn key(kernel: Kernel, shape: Shape, attention: &Attention, device: &Capabilities) -> FlashKey {
    let (qk, value_dim) = (attention.head_dim.qk(), attention.head_dim.value());
    let head_class = match shape {
        Shape::Lanes(_) | Shape::Matrix(_) => table::dim_class(qk).unwrap_or(0),
        _ => 0,
    };
    let padded = match shape {
        Shape::Matrix(_) if head_class == 0 => !qk.is_multiple_of(table::STREAM_DIMS),
        _ => head_class > qk,
    };
    // A tile's keys are staged for many invocations, so that its loads are few and vec4 serves them.
    let wide = match shape {
        Shape::Lanes(_) => wide(attention, device),
        _ => false,
    };
    let value = value_dim.min(table::VALUE_SPLIT);
    FlashKey {
        kernel,
        shape,
        q: attention.q,
        k: attention.kv,
        v: attention.kv,
        paged: false,
        access: if wide { Access::Vec8 } else { attention.access },
        head_class,
        padded,
        value_class: table::dim_class(value).unwrap_or(table::VALUE_SPLIT),
        options: attention.options,
    }
}

/// The shape with which `kernel` serves, or why it cannot.
fn shape(kernel: Kernel, attention: &Attention, device: &Capabilities) -> Result<(Shape, String), String> {
    let found = match kernel {
        Kernel::Broadcast => lanes(attention, device),
        Kernel::TileSubgroup | Kernel::TileUniversal => tile(kernel, attention, device),
        Kernel::Matrix => matrix(attention, device),
        _ => Err("it is not in this version's menu".to_owned()),
    }?;
    let (shape, why) = found;
    let invocations = shape.invocations();
    if invocations > device.workgroup_invocations {
        return Err(format!("{invocations} invocations needed, {} available", device.workgroup_invocations));
    }
    Ok((shape, why + &note(Task::Forward, kernel, shape, attention, device)?))
}

/// What is known against matrices of few queries, where they are pinned all the same; or why the driver may not have them.
pub(crate) fn note_on_matrices(pinned: bool, device: &Capabilities) -> Result<String, String> {
    let design = Design { task: Task::Forward, kernel: Kernel::Matrix, registers: 0, rows: 0 };
    quirks::judge(design, pinned, device)
}

/// What drivers may have trouble with.
pub(crate) fn design(kernel: Kernel, shape: Shape, attention: &Attention) -> Design {
    let dim = attention.head_dim.qk().max(attention.head_dim.value().min(table::VALUE_SPLIT));
    let rows = match shape {
        Shape::Lanes(shape) => shape.rows,
        Shape::Tile(_) | Shape::Matrix(_) => 0,
    };
    let registers = rows * table::dim_class(dim).unwrap_or(table::VALUE_SPLIT);
    Design { task: Task::Forward, kernel, registers, rows }
}

fn lanes(attention: &Attention, device: &Capabilities) -> Result<(Shape, String), String> {
    let lanes = match device.subgroups {
        None => return Err("the device has no subgroups".to_owned()),
        Some((min, max)) if min != max => {
            return Err(format!("subgroups vary from {min} to {max} lanes, a fixed size is needed"));
        }
        Some((min, _)) if !table::LANES.contains(&min) => {
            return Err(format!("subgroups have {min} lanes, the menu has {:?}", table::LANES));
        }
        Some((min, _)) => min,
    };
    if attention.access == Access::Any {
        return Err("rows in registers need dims and strides that are multiples of four".to_owned());
    }
    let head_dim = attention.head_dim.qk();
    let class = table::dim_class(head_dim)
        .ok_or_else(|| format!("head dim {head_dim} does not fit in registers, at most {} does", table::VALUE_SPLIT))?;
    let value_class = table::dim_class(attention.head_dim.value()).unwrap_or(table::VALUE_SPLIT);
    let menu = table::least_keys(lanes, class, value_class)..=lanes;
    let keys = |rows| table::forward_keys(lanes, rows, class, value_class);
    let shape = match attention.shape {
        Some(Shape::Lanes(shape))
            if shape.lanes == lanes
                && table::LANE_ROWS.contains(&shape.rows)
                && table::LANE_KEYS.contains(&shape.keys)
                && menu.contains(&shape.keys) =>
        {
            shape
        }
        Some(shape) => return Err(format!("shape {shape} is not on its menu for {lanes} lanes")),
        None => {
            let rows = lane_rows(class.max(value_class), lanes, Kernel::Broadcast, attention);
            LaneShape { lanes, rows, keys: keys(rows) }
        }
    };
    let (mut shape, fewer) = allowed_rows(Kernel::Broadcast, shape, attention, device);
    if attention.shape.is_none() {
        shape.keys = keys(shape.rows);
    }
    let what = if device.kind == DeviceKind::Cpu { "a CPU driver" } else { "a device" };
    Ok((Shape::Lanes(shape), format!("{what} with subgroups of {lanes}, {} rows a lane{fewer}", shape.rows)))
}

/// As many rows as the driver is not kept from, unless the caller says how many; and why there are not more.
fn allowed_rows(
    kernel: Kernel,
    mut shape: LaneShape,
    attention: &Attention,
    device: &Capabilities,
) -> (LaneShape, String) {
    let (all, mut fewer) = (shape.rows, String::new());
    while let Some(quirk) = quirks::known(design(kernel, Shape::Lanes(shape), attention), device) {
        if attention.shape.is_some() || shape.rows == 1 {
            break;
        }
        shape.rows = fewer_rows(shape.rows);
        fewer = format!(", not {all}: {quirk}");
    }
    (shape, fewer)
}

/// The next smaller number of rows on the menu, at least one.
fn fewer_rows(rows: u32) -> u32 {
    table::LANE_ROWS.into_iter().rev().find(|&fewer| fewer < rows).unwrap_or(1)
}

/// More rows a lane use each load more often, until registers give out, or the cache that keeps decoded code.
fn lane_rows(dim: u32, lanes: u32, kernel: Kernel, attention: &Attention) -> u32 {
    let rows: u32 = match dim {
        0..=32 if kernel != Kernel::Broadcast => 16,
        0..=32 if lanes <= 8 => 6,
        0..=64 => 8,
        _ => 4,
    };
    // Each score of a bias or a mask has loads of its own, which take longest to compile.
    if attention.options.masks_elements() { (rows / 2).next_power_of_two() } else { rows }
}

fn tile(kernel: Kernel, attention: &Attention, device: &Capabilities) -> Result<(Shape, String), String> {
    let cpu = device.kind == DeviceKind::Cpu;
    let own_rows = kernel == Kernel::TileUniversal
        && attention.access != Access::Any
        && table::dim_class(attention.head_dim.qk())
            .is_some_and(|class| class <= 64 || !attention.options.masks_elements());
    let tile = match attention.shape {
        Some(Shape::Tile(shape)) if table::TILES.contains(&shape) => shape,
        Some(Shape::Lanes(shape))
            if own_rows
                && LaneShape { rows: ROWS_CPU.rows, ..shape } == ROWS_CPU
                && table::LANE_ROWS.contains(&shape.rows) =>
        {
            return Ok((Shape::Lanes(shape), format!("{} rows an invocation", shape.rows)));
        }
        Some(shape) => return Err(format!("shape {shape} is not on its menu")),
        None if cpu && own_rows => {
            let dim = attention.head_dim.qk().max(attention.head_dim.value());
            let rows = lane_rows(dim, ROWS_CPU.lanes, kernel, attention).min(ROWS_CPU.rows);
            let (shape, fewer) = allowed_rows(kernel, LaneShape { rows, ..ROWS_CPU }, attention, device);
            return Ok((Shape::Lanes(shape), format!("a CPU driver, {} rows an invocation{fewer}", shape.rows)));
        }
        None => table::gpu_tile(attention.head_dim.value()),
    };
    let rows = match kernel {
        Kernel::TileSubgroup => "rows reduced by shuffles",
        _ => "rows reduced in workgroup memory",
    };
    let bytes = tile_fits(kernel, tile, attention, device)?;
    Ok((Shape::Tile(tile), format!("{rows}, {bytes} bytes fit {}", device.workgroup_bytes)))
}

/// The bytes of workgroup memory of a tile, or why the device cannot have it.
fn tile_fits(kernel: Kernel, tile: TileShape, attention: &Attention, device: &Capabilities) -> Result<u32, String> {
    let bytes = table::workgroup_bytes(&key(kernel, Shape::Tile(tile), attention, device));
    match device.subgroups {
        None if kernel == Kernel::TileSubgroup => Err("the device has no subgroups".to_owned()),
        Some((min, _)) if kernel == Kernel::TileSubgroup && min < tile.tx => {
            Err(format!("subgroups may have {min} lanes, {} are needed", tile.tx))
        }
        _ if bytes > device.workgroup_bytes => {
            Err(format!("{bytes} bytes of workgroup memory needed, {} available", device.workgroup_bytes))
        }
        _ => Ok(bytes),
    }
}

fn matrix(attention: &Attention, device: &Capabilities) -> Result<(Shape, String), String> {
    let (side, subgroups) = matrices([attention.q, attention.kv], device)?;
    let matrices = table::matrix_shape(side, subgroups);
    let shape = Shape::Matrix(matrices);
    let bytes = table::workgroup_bytes(&key(Kernel::Matrix, shape, attention, device));
    Ok((shape, matrices_fit(matrices, bytes, attention, device)?))
}

/// The side of the device's matrices and its subgroups, where these can multiply what is stored like q, and like k and v.
pub(crate) fn matrices([q, kv]: [Storage; 2], device: &Capabilities) -> Result<(u32, (u32, u32)), String> {
    for (tensor, storage) in [("q", q), ("k and v", kv)] {
        if storage != Storage::F16 {
            return Err(format!("matrices take f16, {tensor} would be {storage}"));
        }
    }
    let side = match device.matrix {
        None => return Err("the device has no square matrices of f16 factors and f32 sums".to_owned()),
        Some(side) if !table::MATRIX_SIDES.contains(&side) => {
            return Err(format!("matrices of {side} rows, the menu has {:?}", table::MATRIX_SIDES));
        }
        Some(side) => side,
    };
    let subgroups = device.subgroups.ok_or("the device has no subgroups")?;
    Ok((side, subgroups))
}

/// That a workgroup of matrices is what was pinned, if any was, and fits the device.
fn matrices_fit(
    shape: MatrixShape,
    bytes: u32,
    attention: &Attention,
    device: &Capabilities,
) -> Result<String, String> {
    let own = Shape::Matrix(shape);
    if let Some(pinned) = attention.shape.filter(|&pinned| pinned != own) {
        return Err(format!("shape {pinned} is not on its menu, {own} is"));
    }
    fits(bytes, shape.threads, device)?;
    let side = shape.side;
    Ok(format!("matrices of {side} x {side}, {bytes} bytes fit {}", device.workgroup_bytes))
}

/// The squares of matrices of linear attention.
pub(crate) fn matrix_square(storage: [Storage; 2], device: &Capabilities) -> Result<MatrixSquare, String> {
    let (side, subgroups) = matrices(storage, device)?;
    let square = table::matrix_square(side, subgroups);
    if 4 * square.threads > square.edge * square.edge {
        let (edge, largest) = (square.edge, subgroups.1);
        return Err(format!("subgroups of up to {largest} lanes are too large for squares of {edge} x {edge}"));
    }
    Ok(square)
}

/// Whether a workgroup may be so large.
pub(crate) fn fits(bytes: u32, invocations: u32, device: &Capabilities) -> Result<(), String> {
    if bytes > device.workgroup_bytes {
        return Err(format!("{bytes} bytes of workgroup memory needed, {} available", device.workgroup_bytes));
    }
    if invocations > device.workgroup_invocations {
        return Err(format!("{invocations} invocations needed, {} available", device.workgroup_invocations));
    }
    Ok(())
}

/// The same of a square of matrices, whose rows sum by shuffles.
pub(crate) fn square_fits(
    square: MatrixSquare,
    (bytes, invocations): (u32, u32),
    device: &Capabilities,
) -> Result<(), String> {
    fits(bytes, invocations, device)?;
    let lanes = invocations / square.edge;
    match device.subgroups {
        Some((min, _)) if min < lanes => Err(format!("subgroups may have {min} lanes, {lanes} are needed")),
        _ => Ok(()),
    }
}
