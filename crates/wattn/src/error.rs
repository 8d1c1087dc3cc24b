//! What can go wrong after planning.

pub use wattn_scheduler::{CacheError, PlanError};

/// Why a call was not encoded. Every message names the operand, what was given and what is needed; nothing has been recorded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// An operand that the plan needs is missing.
    #[error("{argument}: missing, the plan has this option")]
    Missing {
        /// The operand.
        argument: &'static str,
    },
    /// An operand that the plan does not use.
    #[error(
        "{argument}: given, but no call of this plan takes it: the plan does not have this option, or the work tells"
    )]
    Unused {
        /// The operand.
        argument: &'static str,
    },
    /// A list of the wrong length.
    #[error("{argument}: {given} given, {needed} needed")]
    Count {
        /// The list.
        argument: &'static str,
        /// Its length.
        given: usize,
        /// The length needed.
        needed: usize,
    },
    /// A number that is not finite.
    #[error("{argument}[{index}]: {value} given, a finite number is needed")]
    NotFinite {
        /// The list.
        argument: &'static str,
        /// The number's place in it.
        index: usize,
        /// The number.
        value: String,
    },
    /// A buffer that shaders may not use as storage.
    #[error("{argument}: the buffer's usage is {given:?}, STORAGE is needed")]
    Usage {
        /// The operand.
        argument: &'static str,
        /// The buffer's usage.
        given: wgpu::BufferUsages,
    },
    /// A buffer that ends before its view does.
    #[error("{argument}: the view ends at byte {needed}, the buffer has {available}")]
    TooSmall {
        /// The operand.
        argument: &'static str,
        /// Bytes that the view reaches.
        needed: u64,
        /// Bytes that the buffer has.
        available: u64,
    },
    /// An offset or stride that the planned access cannot use.
    #[error("{argument}: {what} is {given} elements, {allowed}")]
    Misaligned {
        /// The operand.
        argument: &'static str,
        /// Offset, or which stride.
        what: &'static str,
        /// Its value in elements.
        given: u64,
        /// What the planned access needs.
        allowed: &'static str,
    },
    /// Two operands, one of them written, in the same buffer.
    #[error("{written} and {other} are in the same buffer; what is written needs a buffer of its own")]
    Aliased {
        /// The operand that is written.
        written: &'static str,
        /// The other one.
        other: &'static str,
    },
    /// A view of a written operand in which elements share memory.
    #[error(
        "{argument}: its stride {stride} along {axis} is below the {needed} elements that one step spans, so writes would overlap"
    )]
    Overlapping {
        /// The operand.
        argument: &'static str,
        /// The axis.
        axis: &'static str,
        /// The stride along it.
        stride: u64,
        /// Elements spanned by the axes inside it.
        needed: u64,
    },
    /// A view that spans more than a binding may hold.
    #[error(
        "{argument}: the view spans {needed} bytes, a binding may hold {available}; use a layout with heads outside, or smaller batches"
    )]
    Binding {
        /// The operand.
        argument: &'static str,
        /// Bytes spanned.
        needed: u64,
        /// Bytes that a binding may hold.
        available: u64,
    },
    /// Lengths or offsets that do not fit the plan.
    #[error(transparent)]
    Lengths(#[from] PlanError),
    /// A slice that the plan does not have.
    #[error("slice {given} given, the plan has {slices}")]
    Slice {
        /// The slice asked for.
        given: u32,
        /// How many there are.
        slices: u32,
    },
    /// Work that another plan made.
    #[error("work: made by another plan; ask this plan for its own")]
    OtherWork,
    /// Work that the device was not told to make.
    #[error("work: not made yet; record an update from the lengths first")]
    NotMade,
    /// A step that does not fit the cache any more.
    #[error("step: of another cache, or from before this one was extended, truncated, evicted from or released from")]
    OtherStep,
    /// The device refused a kernel.
    #[error("kernel {label} does not compile on this device: {message}")]
    Pipeline {
        /// The pipeline's label.
        label: String,
        /// The device's message.
        message: String,
    },
}

/// Why a call on host slices failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The problem was refused.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The call was refused.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A slice of the wrong length.
    #[error("{argument}: {given} numbers given, {needed} needed")]
    Length {
        /// The slice.
        argument: &'static str,
        /// Its length.
        given: usize,
        /// The length needed.
        needed: usize,
    },
    /// A cache refused.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A buffer that may not be copied to.
    #[error("{argument}: the buffer's usage is {given:?}, COPY_DST is needed")]
    CopyUsage {
        /// The buffer.
        argument: &'static str,
        /// Its usage.
        given: wgpu::BufferUsages,
    },
    /// A file of states that cannot be written or read.
    #[error("states in a file: {0}")]
    File(String),
    /// No adapter or no device.
    #[error("no GPU to run on: {0}")]
    NoDevice(String),
    /// Memory for a buffer was refused.
    #[error("{bytes} bytes for {argument} could not be allocated: {message}")]
    OutOfMemory {
        /// What the buffer is for.
        argument: &'static str,
        /// Its size.
        bytes: u64,
        /// The device's message.
        message: String,
    },
    /// The device did not finish in time, or was lost.
    #[error("the device did not finish: {0}")]
    Device(String),
}

/// Why tuning failed.
#[cfg(feature = "tune")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TuneError {
    /// A problem that was refused, or a device that failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The operator's kernel, shape, schedule or stretches are pinned.
    #[error("the kernel, shape, schedule or stretches are pinned: there is nothing to choose")]
    Pinned,
    /// What the planner chooses by itself does not run, or not all is a number that it writes.
    #[error("the planner's own choice fails: {0}")]
    Own(String),
    /// A file of tuned choices that cannot be read or written.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        message: String,
    },
}
