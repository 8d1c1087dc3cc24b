//! How a cache of keys and values is laid out in pages.

use std::fmt;

use wattn_shaders::Storage;

use crate::attention::HeadDim;
use crate::error::PlanError;
use crate::plan::MAX_LENGTH;

/// The layout of a cache: pages of `page` tokens, each `[kv heads, page, dim]`, in one buffer of keys and one of values a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheLayout {
    kv_heads: u32,
    dims: HeadDim,
    k: Storage,
    v: Storage,
    page: u32,
    pages: u32,
    layers: u32,
}

/// The smallest page, tokens.
const MIN_PAGE: u32 = 16;

impl CacheLayout {
    /// `pages` pages of `page` tokens, a power of two from 16, for one layer in f32. Dims are multiples of four.
    ///
    /// # Errors
    /// No heads or pages, a page that is no power of two from 16 on, more tokens than the longest sequence may have, or dims that are no
    /// multiples of four.
    pub fn new(kv_heads: u32, dims: HeadDim, page: u32, pages: u32) -> Result<Self, PlanError> {
        if kv_heads == 0 {
            return Err(PlanError::invalid("kv_heads", kv_heads, "at least 1"));
        }
        if !page.is_power_of_two() || !(MIN_PAGE..=MAX_LENGTH).contains(&page) {
            let allowed = format!("a power of two from {MIN_PAGE} to {MAX_LENGTH}");
            return Err(PlanError::invalid("page", page, allowed));
        }
        if pages == 0 || pages > MAX_LENGTH / page {
            return Err(PlanError::invalid("pages", pages, format!("1 to {}", MAX_LENGTH / page)));
        }
        for (argument, dim) in [("head_dim", dims.qk()), ("value_head_dim", dims.value())] {
            if !dim.is_multiple_of(4) {
                return Err(PlanError::invalid(argument, dim, "a multiple of 4 in a cache (pad with zeros)"));
            }
        }
        Ok(Self { kv_heads, dims, k: Storage::F32, v: Storage::F32, page, pages, layers: 1 })
    }

    /// One page a sequence, which holds `capacity` tokens rounded up to a power of two: contiguous keys and values.
    ///
    /// # Errors
    /// As [`new`](Self::new), or a capacity beyond the longest sequence.
    pub fn contiguous(kv_heads: u32, dims: HeadDim, capacity: u32, sequences: u32) -> Result<Self, PlanError> {
        if capacity > MAX_LENGTH {
            return Err(PlanError::invalid("capacity", capacity, format!("at most {MAX_LENGTH}")));
        }
        Self::new(kv_heads, dims, capacity.next_power_of_two().max(MIN_PAGE), sequences)
    }

    /// The same with so many pages.
    pub(crate) fn with_pages(self, pages: u32) -> Result<Self, PlanError> {
        let Self { kv_heads, dims, page, layers, k, v, .. } = self;
        Ok(Self::new(kv_heads, dims, page, pages)?.layers(layers).storage(k, v))
    }

    /// So many layers, which share the pages' numbers and lengths but not their buffers; at least one.
    #[must_use]
    pub fn layers(mut self, layers: u32) -> Self {
        self.layers = layers.max(1);
        self
    }

    /// The storage of keys and that of values.
    #[must_use]
    pub fn storage(mut self, k: Storage, v: Storage) -> Self {
        (self.k, self.v) = (k, v);
        self
    }

    /// Key/value heads.
    #[must_use]
    pub fn kv_heads(&self) -> u32 {
        self.kv_heads
    }

    /// The dims of keys and of values.
    #[must_use]
    pub fn dims(&self) -> HeadDim {
        self.dims
    }

    /// The storage of keys.
    #[must_use]
    pub fn k_storage(&self) -> Storage {
        self.k
    }

    /// The storage of values.
    #[must_use]
    pub fn v_storage(&self) -> Storage {
        self.v
    }

    /// Tokens of a page.
    #[must_use]
    pub fn page(&self) -> u32 {
        self.page
    }

    /// Pages of a layer.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Layers.
    #[must_use]
    pub fn layer_count(&self) -> u32 {
        self.layers
    }

    /// Bytes of a page of keys in one layer.
    #[must_use]
    pub fn k_page_bytes(&self) -> u64 {
        self.page_bytes(self.dims.qk(), self.k)
    }

    /// Bytes of a page of values in one layer.
    #[must_use]
    pub fn v_page_bytes(&self) -> u64 {
        self.page_bytes(self.dims.value(), self.v)
    }

    fn page_bytes(&self, dim: u32, storage: Storage) -> u64 {
        // Saturating, here and below: what does not fit 64 bits is beyond every device's memory.
        (u64::from(self.kv_heads) * u64::from(self.page)).saturating_mul(storage.row_bytes(dim).into())
    }

    /// Bytes of all pages of all layers, keys and values.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let page = self.k_page_bytes().saturating_add(self.v_page_bytes());
        page.saturating_mul(self.pages.into()).saturating_mul(self.layers.into())
    }

    /// Pages that `tokens` tokens take.
    #[must_use]
    pub fn pages_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.page)
    }
}

impl fmt::Display for CacheLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kv_heads, dims, k, v, page, pages, layers: _ } = self;
        write!(
            f,
            "{pages} pages of {page} tokens, {kv_heads} heads of dims {}/{}, keys {k}, values {v}",
            dims.qk(),
            dims.value()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims() -> HeadDim {
        HeadDim::new(576).unwrap()
    }

    #[test]
    fn what_is_too_long_is_refused_by_name() {
        for (layout, needle) in [
            (CacheLayout::contiguous(1, dims(), u32::MAX, 1), "capacity: 4294967295"),
            (CacheLayout::contiguous(1, dims(), (1 << 29) + 1, 1), "at most 536870912"),
            (CacheLayout::new(1, dims(), 1 << 30, 1), "page: 1073741824"),
            (CacheLayout::new(1, dims(), 1 << 30, 1), "a power of two from 16 to 536870912"),
            (CacheLayout::new(1, dims(), 1 << 29, 2), "1 to 1"),
        ] {
            let error = layout.unwrap_err();
            assert!(error.to_string().contains(needle), "{error}");
        }
        assert_eq!(CacheLayout::contiguous(1, dims(), 0, 1).unwrap().page(), 16);
        assert_eq!(CacheLayout::contiguous(1, dims(), 1 << 29, 1).unwrap().page(), 1 << 29);
    }

    #[test]
    fn bytes_beyond_all_memory_do_not_wrap() {
        let layout = CacheLayout::contiguous(u32::MAX, dims(), 1 << 29, 1).unwrap().layers(u32::MAX);
        assert_eq!((layout.k_page_bytes(), layout.v_page_bytes(), layout.bytes()), (u64::MAX, u64::MAX, u64::MAX));
    }
}
