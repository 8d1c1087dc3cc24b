//! Whether linear attention walks tokens in one go or in segments side by side, and how long these are.

use crate::capabilities::Capabilities;
use crate::error::PlanError;
use crate::lightning::{Schedule, Tokens};

/// Segments a head, at most.
const MAX_SEGMENTS: u32 = 64;

/// Tokens that a segment should have at least, so that its state is worth a scan.
const MIN_SEGMENT: u32 = 128;

/// Side by side where sequences, heads and parts of the value dim leave the device mostly idle and are long enough.
pub(crate) fn schedule(
    pinned: Option<Schedule>,
    extent: Tokens,
    items: u64,
    longest: u32,
    device: &Capabilities,
    reason: &mut String,
) -> Result<Schedule, PlanError> {
    let width = u64::from(device.width());
    let enough = u64::from(extent.tokens) >= 4 * u64::from(MIN_SEGMENT) * together(extent);
    let (schedule, why) = match pinned {
        Some(Schedule::Sequential) if extent.tokens > longest => {
            return Err(PlanError::invalid(
                "schedule",
                format!("sequential over {} tokens", extent.tokens),
                format!("at most {longest} tokens in one walk: this driver ends longer loops; or segments"),
            ));
        }
        Some(schedule) => (schedule, "pinned".to_owned()),
        None if extent.tokens > longest => {
            (Schedule::Segments, format!("this driver ends loops after {longest} tokens"))
        }
        // States are walked twice: it must pay more than that.
        None if items.saturating_mul(4) <= width && enough => {
            (Schedule::Segments, format!("{items} workgroups for a width of {width}"))
        }
        None => (Schedule::Sequential, format!("{items} workgroups for a width of {width}")),
    };
    *reason += &format!("; {schedule}: {why}");
    Ok(schedule)
}

/// Tokens of a segment, and how many segments all sequences have together at most.
pub(crate) fn segments(extent: Tokens, items: u64, longest: u32, device: &Capabilities) -> (u32, u32) {
    let wanted = u64::from(device.width()).div_ceil(items.max(1)).clamp(1, u64::from(MAX_SEGMENTS));
    let tokens = u64::from(extent.tokens).div_ceil(wanted * together(extent));
    #[expect(clippy::cast_possible_truncation, reason = "at most the tokens of the extent")]
    let tokens = (tokens as u32).max(MIN_SEGMENT).min(longest);
    // Packed sequences may each leave a part of one empty.
    let segments = if extent.packed {
        u64::from(extent.tokens / tokens) + u64::from(extent.batch)
    } else {
        u64::from(extent.batch) * u64::from(extent.tokens.div_ceil(tokens).max(1))
    };
    // More than 2^32 workgroups are refused in any case.
    (tokens, u32::try_from(segments).unwrap_or(u32::MAX))
}

/// Sequences that share the tokens of an extent.
fn together(extent: Tokens) -> u64 {
    if extent.packed { u64::from(extent.batch.max(1)) } else { 1 }
}
