//! The kernel that appends rows to a cache.

use std::fmt;

use crate::compose::{Binding, Element, Output, elements, file};
use crate::key::{Access, Storage};
use crate::split::{device_suffix, params};

/// What a compiled `cache_append` pipeline depends on; its [`Display`](fmt::Display) is the pipeline's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppendKey {
    /// Storage of the new rows.
    pub from: Storage,
    /// How they are loaded: not by [`Access::Vec8`].
    pub access: Access,
    /// Storage of the cache.
    pub to: Storage,
    /// Whether the device knows how long the sequences are.
    pub device: bool,
}

impl AppendKey {
    /// Invocations a workgroup: one a vec4, or one a row of [`Storage::Int8`].
    pub const INVOCATIONS: u32 = 64;

    /// Where work that the device made is bound.
    const WORK: u32 = 2;

    pub(crate) fn bindings(&self) -> Vec<Binding> {
        let all = [
            (true, 1, "k", false),
            (self.device, Self::WORK, "work", false),
            (true, 3, "out", true),
            (true, 7, "aux", false),
        ];
        all.into_iter().filter(|b| b.0).map(|(_, slot, name, writes)| Binding { slot, name, writes }).collect()
    }

    pub(crate) fn constants() -> Vec<(&'static str, u32)> {
        vec![("THREADS", Self::INVOCATIONS)]
    }

    pub(crate) fn parts(&self) -> Vec<String> {
        let source =
            Element { name: "k", slot: 1, dim: "head_dim", storage: self.from, access: self.access, pairs: false };
        let int8 = self.to == Storage::Int8;
        let out = Output { name: "out", slot: 3, storage: self.to, access: Access::Vec4, dim: "head" };
        let outputs = [out];
        let mut parts = params(self.device.then_some(Self::WORK));
        parts.extend(elements(&[source], if int8 { &[] } else { &outputs }));
        let files = ["cache_place", if int8 { "cache_append_int8" } else { "cache_append" }];
        parts.extend(files.map(|name| file(name).to_owned()));
        parts
    }
}

impl fmt::Display for AppendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cache_append/{}-{}{}", self.from, self.to, self.access.suffix())?;
        f.write_str(device_suffix(self.device))
    }
}
