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
    }
);

mirror!(
    /// One sequence of a batch: where it lies and which keys its queries may see.
    Sequence {
        batch: u32, q_start: u32, queries: u32, k_start: u32, keys: u32, lo_shift: i32, hi_shift: i32, diagonal: i32,
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_shader_agree() {
        let source = include_str!("../params.wgsl");
        let module = naga::front::wgsl::parse_str(source).expect("params.wgsl parses by itself");
        for (name, fields, size) in [
            ("View", View::fields(), size_of::<View>()),
            ("ScoreView", ScoreView::fields(), size_of::<ScoreView>()),
            ("Params", Params::fields(), size_of::<Params>()),
            ("Sequence", Sequence::fields(), size_of::<Sequence>()),
        ] {
            let found = module.types.iter().find(|(_, t)| t.name.as_deref() == Some(name)).expect(name).1;
            let naga::TypeInner::Struct { members, span } = &found.inner else { panic!("{name} is no struct") };
            let shader: Vec<_> =
                members.iter().map(|m| (m.name.as_deref().unwrap_or_default(), m.offset as usize)).collect();
            assert_eq!(shader, fields, "{name}");
            assert_eq!(*span as usize, size, "{name}");
        }
    }
}
