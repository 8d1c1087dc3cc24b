//! The host's side of `params.wgsl`: a test holds both to the same names and offsets.

use bytemuck::{Pod, Zeroable};

macro_rules! mirror {
    ($(#[$doc:meta])* $struct:ident { $($name:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
        #[expect(missing_docs, reason = "the fields are described in params.wgsl, word for word the same struct")]
        pub struct $struct { $(pub $name: $type),* }

        #[cfg(test)]
        impl $struct {
            fn fields() -> Vec<(&'static str, usize)> {
                vec![$((stringify!($name), std::mem::offset_of!($struct, $name))),*]
            }
        }
    };
}

mirror!(
    /// Where a tensor [batch, heads, seq, dim] lies in its binding, in the storage units of its access.
    View { offset: u32, batch: u32, head: u32, seq: u32, dim: u32 }
);

mirror!(
    /// Where a tensor [batch, heads, queries, keys] lies in its binding.
    ScoreView { offset: u32, batch: u32, head: u32, query: u32, key: u32 }
);

mirror!(
    /// What one dispatch is told, at the start of the buffer `aux`.
    Params {
        first: u32, last: u32, entries: u32, head_first: u32, heads: u32, head_block: u32, group: u32, splits: u32,
        head_dim: u32, value_dim: u32, head_chunks: u32, value_chunks: u32,
        q: View, k: View, v: View, out: View, lse: View, bias: ScoreView, mask: ScoreView,
        score_scale: f32, softcap: f32,
        records: u32, slopes: u32, sinks: u32, list: u32,
        partials: u32, tables: u32, page_log2: u32,
        grad_out: View, grad_lse: View, rows: View, dq: View, dk: View, dv: View, dbias: ScoreView,
        gradient_scale: f32, lse_scale: f32,
        batch_first: u32, batches: u32, queries: u32, keys: u32, shared_batches: u32, shared_heads: u32, accumulate: u32,
    }
);

mirror!(
    /// One sequence of a batch: where it lies and which keys its queries may see.
    Sequence {
        batch: u32, q_start: u32, queries: u32, k_start: u32, keys: u32, lo_shift: i32, hi_shift: i32, diagonal: i32,
        stored: u32,
    }
);

mirror!(
    /// What `flash_lengths` is told, at the start of the buffer `aux`.
    LengthsParams {
        sequences: u32, tiles: u32, tile_rows: u32, rows: u32, group: u32, lengths: u32, templates: u32, row_tiles: u32,
        keys: u32, busy: u32, step: u32, most_keys: u32, share: u32, workgroups_per_axis: u32,
        records: u32, stretches: u32, list: u32, spans: u32,
    }
);

mirror!(
    /// Where states [item, heads, key dim, value dim] lie in their binding.
    StateView { offset: u32, item: u32, head: u32, row: u32, column: u32 }
);

mirror!(
    /// What one dispatch of a linear-attention kernel is told, at the start of the buffer `aux`.
    LinearParams {
        first: u32, last: u32, head_first: u32, heads: u32, splits: u32,
        head_dim: u32, value_dim: u32, head_chunks: u32, value_chunks: u32, state_rows: u32,
        step: u32, forward: f32,
        q: View, k: View, v: View, out: View, gate: View, state0: StateView, state: StateView,
        score_scale: f32, read_scale: f32, write_scale: f32, eps: f32, normalize: u32,
        segments: u32, walks: u32, slopes: u32, totals: u32,
        g: View, block: u32,
    }
);

mirror!(
    /// A stretch of tokens of one sequence that is walked in one go.
    Segment { batch: u32, origin: u32, tokens: u32, keys: u32, state0: u32, state: u32 }
);

mirror!(
    /// The segments of one sequence, which the scan walks.
    Walk { first: u32, segments: u32, state0: u32, state: u32 }
);

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, fields with their offsets, and size of a struct.
    type Struct<'a> = (&'a str, Vec<(&'static str, usize)>, usize);

    /// The structs of these files are laid out as on the host.
    fn agree(source: &str, structs: &[Struct<'_>]) {
        let module = naga::front::wgsl::parse_str(source).expect("the files parse by themselves");
        for (name, fields, size) in structs {
            let found = module.types.iter().find(|(_, t)| t.name.as_deref() == Some(*name)).expect(name).1;
            let naga::TypeInner::Struct { members, span } = &found.inner else { panic!("{name} is no struct") };
            let shader: Vec<_> =
                members.iter().map(|m| (m.name.as_deref().unwrap_or_default(), m.offset as usize)).collect();
            assert_eq!(&shader, fields, "{name}");
            assert_eq!(*span as usize, *size, "{name}");
        }
    }

    #[test]
    fn host_and_shader_agree() {
        let source = format!("{}{}", include_str!("../view.wgsl"), crate::compose::params());
        agree(
            &source,
            &[
                ("View", View::fields(), size_of::<View>()),
                ("ScoreView", ScoreView::fields(), size_of::<ScoreView>()),
                ("Params", Params::fields(), size_of::<Params>()),
                ("Sequence", Sequence::fields(), size_of::<Sequence>()),
            ],
        );
        let source = include_str!("../flash_lengths.wgsl").replace("THREADS", "64");
        agree(&source, &[("LengthsParams", LengthsParams::fields(), size_of::<LengthsParams>())]);
        let source = concat!(include_str!("../view.wgsl"), include_str!("../linear_params.wgsl"));
        agree(
            source,
            &[
                ("StateView", StateView::fields(), size_of::<StateView>()),
                ("Params", LinearParams::fields(), size_of::<LinearParams>()),
                ("Segment", Segment::fields(), size_of::<Segment>()),
                ("Walk", Walk::fields(), size_of::<Walk>()),
            ],
        );
    }
}
